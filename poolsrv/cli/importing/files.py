"""Read the files that the user names: which format each has, and its lines."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from .inetd import InetdFile
from .lines import read_lines
from .service import BadSource, Place, Service
from .socket_unit import SocketUnit
from .xinetd import XinetdConfig


def read_services(paths: Iterable[Path]) -> list[Service]:
    """Read the services of all files and folders, in their order. The defaults of xinetd hold for all its files.

    :raises BadSource: with every mistake in them.
    """
    return _Reader().read(paths)


class _Reader:
    def __init__(self) -> None:
        self._xinetd = XinetdConfig()
        self._others: list[InetdFile | SocketUnit] = []
        self._seen: set[str] = set()
        self._errors: list[str] = []

    def read(self, paths: Iterable[Path]) -> list[Service]:
        for path in paths:
            self._try(self._add, path)
        services: list[Service] = []
        for part in (self._xinetd, *self._others):
            try:
                services += part.services()
            except BadSource as error:
                self._errors += error.lines
        if self._errors:
            raise BadSource(*self._errors)
        return services

    def _try(self, add: Callable[[Path], None], path: Path, place: Place | None = None) -> None:
        try:
            add(path)
        except BadSource as error:
            self._errors += error.lines
        except (OSError, ValueError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            self._errors.append(f"{place}: {path}: {reason}" if place else f"{path}: {reason}")

    def _add(self, path: Path) -> None:
        if not path.is_dir():
            self._add_file(path)
            return
        names = sorted(os.listdir(path))
        units = [name for name in names if name.endswith(".socket")]
        chosen = units or [name for name in names if is_included(name)]
        files = [path / name for name in chosen if (path / name).is_file()]
        for file in files:
            self._try(self._add_file if not units else self._add_unit_of_folder, file)
        if not files:
            raise Place(path).mistake("nothing to import in this folder, expected files of xinetd.d, or .socket units")

    def _add_unit_of_folder(self, path: Path) -> None:
        unit = SocketUnit(path, read_lines(path))
        if unit.accepts and self._is_new(path):
            self._others.append(unit)

    def _add_file(self, path: Path) -> None:
        lines = read_lines(path)
        if not self._is_new(path):
            return
        first = next((line.text.strip() for line in lines if line.is_significant), "")
        if path.suffix == ".socket" or first == "[Socket]":
            self._others.append(SocketUnit(path, lines))
        elif re.fullmatch(r"\[[\w-]+\]", first):
            raise Place(path).mistake("not a .socket unit, expected one: its service is found by its name")
        elif re.match(r"(service|defaults|include|includedir)(\s|$|\{)", first):
            for included, place in self._xinetd.parse(lines):
                self._try(self._include, included, place)
        else:
            self._others.append(InetdFile(lines))

    def _include(self, path: Path) -> None:
        if path.is_dir():
            for name in sorted(os.listdir(path)):
                if is_included(name) and (path / name).is_file():
                    self._try(self._include, path / name)
            return
        lines = read_lines(path)
        if self._is_new(path):
            for included, place in self._xinetd.parse(lines):
                self._try(self._include, included, place)

    def _is_new(self, path: Path) -> bool:
        """Whether it has not been read yet: a folder may be named, and included too."""
        real = os.path.realpath(path)
        is_new = real not in self._seen
        self._seen.add(real)
        return is_new


def is_included(name: str) -> bool:
    """Whether xinetd reads a file of this name in an ``includedir``."""
    return "." not in name and not name.endswith("~")
