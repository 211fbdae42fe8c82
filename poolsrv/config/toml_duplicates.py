"""Name the key that a TOML file sets a second time. Imported when a file has such an error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from ..core.words import bare_or_quoted

_MOST_LINES: Final = 200  # of one value, and of candidates for the first place: each costs a run of the parser


def explain(lines: Sequence[str], line: int, column: int) -> tuple[int, int, str] | None:
    """Find the key of tomli's "Cannot overwrite a value".

    :param lines: of the file.
    :param line: where tomli noticed it, from 1: behind the value, or in a table's header.
    :param column: from 1.
    :returns: line and column of the second statement, and what is wrong; None if that is unclear.
    """
    for start in range(line, max(line - _MOST_LINES, 0), -1):  # a value may have several lines
        statement = lines[start - 1 : line]
        cut = [*statement[:-1], statement[-1][: column - 1]]
        key = _key_of(statement) or _key_of(cut)
        if key is not None:
            break
    else:
        return None
    is_header = lines[start - 1].lstrip().startswith("[")
    key = key if is_header else (*_header(lines, start), *key)
    found = _conflict(_parse(lines[: start - 1]), key)
    if not found:
        return None
    name = ".".join(map(bare_or_quoted, found))
    first = _first_line(lines, start, found)
    where = f" (first in line {first})" if first else ""
    own = len(lines[start - 1]) - len(lines[start - 1].lstrip()) + 1
    if found == key and not is_header:
        return start, own, f"the key `{name}` is there twice{where}, expected it once"
    return start, own, f"`{name}` is there twice, as a value{where} and as a table, expected one of the two"


def _parse(lines: Sequence[str]) -> dict[str, Any] | None:
    import tomli

    try:
        return tomli.loads("\n".join(lines))
    except (tomli.TOMLDecodeError, ValueError, RecursionError):
        return None


def _key_of(statement: Sequence[str]) -> tuple[str, ...] | None:
    """The key that a statement sets, by its parts; None if it is not one statement."""
    value, text = _parse(statement), statement[0]
    if value is None or len(value) != 1:
        return None
    if text.lstrip().startswith("["):
        return tuple(_path(value))
    # The value may be a table itself, so the key is taken from the text in front of each "=".
    at = -1
    while (at := text.find("=", at + 1)) >= 0:
        if (alone := _parse([f"{text[:at]} = 0"])) is not None:
            return tuple(_path(alone))
    return None


def _path(value: Any) -> Iterator[str]:
    while isinstance(value, dict | list) and len(value) == 1:
        if isinstance(value, list):
            (value,) = value
        else:
            ((name, value),) = value.items()
            yield name


def _header(lines: Sequence[str], before: int) -> tuple[str, ...]:
    """The table that a line is in."""
    for text in reversed(lines[: before - 1]):
        if text.lstrip().startswith("[") and (key := _key_of([text])) is not None:
            return key
    return ()


def _conflict(document: Any, key: tuple[str, ...]) -> tuple[str, ...] | None:
    """The part of a key that has a value already."""
    for index, name in enumerate(key):
        if isinstance(document, list) and document:
            document = document[-1]
        if not isinstance(document, dict):
            return key[:index]
        if name not in document:
            return None
        document = document[name]
    return key


def _first_line(lines: Sequence[str], before: int, key: tuple[str, ...]) -> int | None:
    # From the end, for what is above the last [[table]] of a list does not count.
    candidates = [number for number in range(before - 1, 0, -1) if key[-1] in lines[number - 1]]
    for number in candidates[:_MOST_LINES]:
        earlier = _parse(lines[: number - 1])  # None: the line is in the middle of a value
        if earlier is not None and _conflict(earlier, key) is None:
            return number
    return None
