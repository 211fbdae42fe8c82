"""What is wrong with a config file: every error of it is collected, and all of them are reported at once."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from .errors import PoolsrvError

# Where a value stands in the file: names of tables and keys, and indexes (from 0) of lists.
Key: TypeAlias = tuple[str | int, ...]


DID_YOU_MEAN: Final = " (did you mean"
MOST_NAMED: Final = 6  # names of a long list that a message has


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


def bare_or_quoted(name: str) -> str:
    """A key as TOML writes it."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name, ensure_ascii=False)


def quoted(text: str) -> str:
    """A string as TOML writes it, cut short where it is long."""
    return json.dumps(text if len(text) <= 80 else text[:77] + "...", ensure_ascii=False)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The one of the known names that the misspelt one was probably meant to be."""
    import difflib  # only a config with an error needs it

    by_folded = {candidate.casefold().replace("-", "_"): candidate for candidate in known}
    matches = difflib.get_close_matches(name.casefold().replace("-", "_"), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A part of a message, before what was expected: `` (did you mean "echo"?)``, or nothing."""
    match = nearest(name, known)
    return "" if match is None else f"{DID_YOU_MEAN} {quoted(match)}?)"


def one_of(names: Iterable[str], joined_by: str = "or") -> str:
    """``a, b or c``"""
    *most, last = names
    return f"{', '.join(most)} {joined_by} {last}" if most else last


def shortlist(names: Iterable[str]) -> str:
    """The same, of many only the first: ``a, b, c or one of 27 others``."""
    several = list(names)
    if len(several) <= MOST_NAMED + 1:
        return one_of(several)
    return f"{', '.join(several[:MOST_NAMED])} or one of {len(several) - MOST_NAMED} others"


def _keys(value: object, key: Key = ()) -> Iterable[Key]:
    yield key
    if isinstance(value, Mapping):
        for name, member in value.items():
            yield from _keys(member, (*key, name))
    elif isinstance(value, list):
        for index, member in enumerate(value):
            yield from _keys(member, (*key, index))
