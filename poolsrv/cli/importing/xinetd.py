"""The syntax of xinetd.conf(5): entries with attributes, ``defaults``, and what is included."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from ...core.words import did_you_mean
from .attributes import ATTRIBUTES, DEFAULTS, SETS, Attribute
from .lines import Line
from .service import BadSource, Place, Service
from .xinetd_service import service_of


class Entry(msgspec.Struct):
    """``service NAME { ... }``, or ``defaults { ... }`` with an empty name."""

    name: str
    place: Place
    source: list[str]
    attributes: dict[str, Attribute]


class XinetdConfig:
    """All files of xinetd's config together."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._defaults: dict[str, Attribute] = {}

    def parse(self, lines: Iterable[Line]) -> Iterator[tuple[Path, Place]]:
        """Take the entries of a file, and return the files and folders that it includes.

        :raises BadSource: with every mistake in the file.
        """
        parser = _Parser(lines)
        parser.run()
        if parser.errors:
            raise BadSource(*parser.errors)
        for entry in parser.entries:
            if entry.name:
                self._entries.append(entry)
            else:
                for name, attribute in entry.attributes.items():
                    former = self._defaults.get(name)
                    if former is not None and name in SETS | {"disabled", "enabled"}:
                        attribute.values[:0] = former.values
                    self._defaults[name] = attribute
        return iter(parser.included)

    def services(self) -> list[Service]:
        """The services of all files.

        :raises BadSource: with every value that can't be understood.
        """
        errors: list[str] = []
        services = []
        for entry in self._entries:
            try:
                services.append(service_of(entry.name, entry.place, entry.source, entry.attributes, self._defaults))
            except BadSource as error:
                errors += error.lines
        if errors:
            raise BadSource(*errors)
        return services


class _Parser:
    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = [line for line in lines if line.text.strip() and not line.text.lstrip().startswith("#")]
        self.entries: list[Entry] = []
        self.included: list[tuple[Path, Place]] = []
        self.errors: list[str] = []

    def run(self) -> None:
        entry: Entry | None = None
        is_open = False
        for line in self._lines:
            words = line.text.split()
            if entry is None:
                entry, is_open = self._begin(line, words)
                if is_open and words[-1] == "}":
                    entry = None
            elif not is_open:
                is_open = words == ["{"]
                entry.source.append(line.text)
                if not is_open:
                    self._fail(line.place, f'"{line.text.strip()}", expected "{{" after the service\'s name')
                    entry = None
            elif words == ["}"]:
                entry.source.append(line.text)
                self.entries.append(entry)
                entry = None
            elif words[0] in ("service", "defaults", "includedir", "include") and "=" not in line.text:
                self._fail(
                    entry.place, f'"{entry.name or "defaults"}" is not closed: "}}" is missing before {line.place}'
                )
                entry, is_open = self._begin(line, words)
            else:
                entry.source.append(line.text)
                self._attribute(entry, line)
        if entry is not None:
            self._fail(entry.place, f'"{entry.name or "defaults"}" is not closed, expected "}}" at its end')

    def _begin(self, line: Line, words: list[str]) -> tuple[Entry | None, bool]:
        is_open = words[-1] == "{"
        if is_open:
            words = words[:-1]
        match words:
            case ["service", name]:
                return Entry(name, line.place, [line.text], {}), is_open
            case ["defaults"]:
                return Entry("", line.place, [line.text], {}), is_open
            case [("include" | "includedir"), name]:
                self.included.append((line.place.file.parent / name, line.place))
            case _:
                expected = 'expected "service NAME", "defaults", "include FILE" or "includedir FOLDER"'
                self._fail(line.place, f'"{line.text.strip()[:60]}" begins no entry, {expected}')
        return None, False

    def _attribute(self, entry: Entry, line: Line) -> None:
        match = re.fullmatch(r"\s*([\w-]+)\s*(\+=|-=|=)(.*)", line.text)
        if match is None:
            self._fail(line.place, f'"{line.text.strip()[:60]}" is no attribute, expected NAME = VALUE')
            return
        name, operator, rest = match[1].lower(), match[2], match[3]
        known = ATTRIBUTES if entry.name else DEFAULTS
        if name not in known:
            where = "service" if entry.name else "defaults entry"
            self._fail(line.place, f'unknown attribute "{name}" of a {where}{did_you_mean(name, known)}')
        elif name not in SETS and operator != "=":
            self._fail(line.place, f'"{operator}" with "{name}", which is not a list, expected "="')
        elif name in entry.attributes and name not in SETS | {"disabled", "enabled"}:
            self._fail(line.place, f'"{name}" a second time, after {entry.attributes[name].place}')
        else:
            former = entry.attributes.setdefault(name, Attribute(line.place))
            former.change(operator if entry.name else "+=", rest.split(), line.place)

    def _fail(self, place: Place, message: str) -> None:
        self.errors.append(f"{place}: {message}")
