"""Text as it leaves the process: what can't be encoded is escaped, what would move a terminal's cursor is too, and a
number agrees with its noun.

Names that come from outside (files, processes, arguments) are bytes to the kernel. Those that are no UTF-8 are in a str
as lone surrogates (PEP 383), which no encoder takes, and no reader of JSON either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any, Final

DID_YOU_MEAN: Final = " (did you mean"
MOST_NAMED: Final = 6  # names of a long list that a message has


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


_LONE: Final = re.compile("[\ud800-\udfff]")
_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(0x09), *range(0x0A, 0x20), *range(0x7F, 0xA0))}
_LINES: Final = {code: escape for code, escape in _CONTROL.items() if code != 0x0A}


def encodable(text: str) -> str:
    """The text with lone surrogates escaped: a byte that was no text as ``\\xe9``, any other as ``\\ud800``."""
    return text if text.isascii() else _LONE.sub(_escape, text)


def one_line(text: str) -> str:
    """The same, with control characters escaped too (``\\x1b``), line ends among them; tabs stay."""
    return encodable(text.translate(_CONTROL))


def lines(text: str) -> str:
    """The same of several lines: their ends stay."""
    return encodable(text.translate(_LINES))


def encodable_in(value: Any) -> Any:
    """A value as JSON has it (str, numbers, lists, dicts), with ``encodable`` for each text in it."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {encodable_in(name): encodable_in(member) for name, member in value.items()}
    if isinstance(value, list):
        return [encodable_in(member) for member in value]
    return value


def counted(number: int, noun: str, plural: str = "") -> str:
    """``1 worker``, ``2 workers``.

    :param plural: where it is not the noun with an s.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
