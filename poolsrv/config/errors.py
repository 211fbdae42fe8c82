"""The errors of a config file, collected so that all of them are reported at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

import msgspec

from ..core.text import printable
from ..core.words import bare_or_quoted
from ..errors import PoolsrvError

# The place of a value in the file: names of tables and keys, and indexes (from 0) in lists.
Key: TypeAlias = tuple[str | int, ...]


class Problem(msgspec.Struct, frozen=True):
    """One error of a config file.

    :ivar file: the file, as the user named it; or the command whose arguments are the config.
    :ivar key: the key path (``listeners.www.cgi.root``, ``listeners.www.bind[1]``), the argument (``--bind``), or the
        line and column of a syntax error; empty if the error is about the whole file.
    :ivar message: one line: what is wrong, what was expected.
    """

    file: Path
    key: str
    message: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.file), self.key, self.message) if part)


class ConfigErrors(PoolsrvError):
    """A config that can't be used.

    :ivar problems: every error, in the order of the file.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))


class Problems:
    """Collect the errors of one file, or of a command's arguments.

    :param name: writes a place for messages; None: as the key of a file.
    """

    def __init__(self, file: Path, name: Callable[[Key], str] | None = None) -> None:
        self.file = file
        self._name = name or format_key
        self._found: list[tuple[Key, str]] = []

    def __len__(self) -> int:
        return len(self._found)

    @property
    def keys(self) -> list[Key]:
        """The places that have errors."""
        return [key for key, _ in self._found]

    @property
    def messages(self) -> list[str]:
        """The errors, without their places."""
        return [message for _, message in self._found]

    def add(self, key: Key, message: str) -> None:
        """Add an error, unless it has been added already. What can't be printed of its message is escaped."""
        message = printable(message)
        if (key, message) not in self._found:
            self._found.append((key, message))

    def error(self, document: Mapping[str, object]) -> ConfigErrors:
        """Make the exception that has all errors, in the order of the document."""
        order = {key: rank for rank, key in enumerate(_keys(document))}

        def rank(found: tuple[Key, str]) -> int:
            key = found[0]
            return next((order[key[:end]] for end in range(len(key), 0, -1) if key[:end] in order), -1)

        return ConfigErrors(
            Problem(self.file, printable(self._name(key)), message) for key, message in sorted(self._found, key=rank)
        )


def format_key(key: Key) -> str:
    """Write a place: ``listeners.www.bind[1]`` for ``("listeners", "www", "bind", 1)``."""
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
