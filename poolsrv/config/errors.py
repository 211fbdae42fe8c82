"""What is wrong with a config file: every error of it is collected, and all of them are reported at once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import msgspec

from ..core.words import bare_or_quoted
from ..errors import PoolsrvError

# Where a value stands in the file: names of tables and keys, and indexes (from 0) of lists.
Key: TypeAlias = tuple[str | int, ...]


class Problem(msgspec.Struct, frozen=True):
    """One error of a config file.

    :ivar file: the file, as the user named it.
    :ivar key: the key path (``listeners.www.cgi.root``, ``listeners.www.bind[1]``), of a syntax error its line and
        column; empty where the file as a whole is meant.
    :ivar message: what is wrong, what was expected; one line.
    """

    file: Path
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.file), self.key, self.message) if part)


class ConfigErrors(PoolsrvError):
    """A config that can't be used. ``problems`` has every error, in the order of the file."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Problems:
    """Collects the errors of one file."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._found: list[tuple[Key, str]] = []

    def __len__(self) -> int:
        return len(self._found)

    @property
    def keys(self) -> list[Key]:
        """Where there are errors."""
        return [key for key, _ in self._found]

    def add(self, key: Key, message: str) -> None:
        """Add an error, unless it is there."""
        if (key, message) not in self._found:
            self._found.append((key, message))

    def error(self, document: Mapping[str, object]) -> ConfigErrors:
        """The exception that holds them all, in the order of the document that they were found in."""
        order = {key: rank for rank, key in enumerate(_keys(document))}

        def rank(found: tuple[Key, str]) -> int:
            key = found[0]
            return next((order[key[:end]] for end in range(len(key), 0, -1) if key[:end] in order), -1)

        return ConfigErrors(
            Problem(self.file, format_key(key), message) for key, message in sorted(self._found, key=rank)
        )


def format_key(key: Key) -> str:
    """``("listeners", "www", "bind", 1)`` as ``listeners.www.bind[1]``."""
    text = ""
    for part in key:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += ("." if text else "") + bare_or_quoted(part)
    return text


def _keys(value: object, key: Key = ()) -> Iterable[Key]:
    yield key
    if isinstance(value, Mapping):
        for name, member in value.items():
            yield from _keys(member, (*key, name))
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from _keys(member, (*key, index))
