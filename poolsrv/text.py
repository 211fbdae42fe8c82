"""Text as it leaves the process: what can't be encoded is escaped, what would move a terminal's cursor is too, and a
number agrees with its noun.

Names that come from outside (files, processes, arguments) are bytes to the kernel. Those that are no UTF-8 are in a str
as lone surrogates (PEP 383), which no encoder takes, and no reader of JSON either.
"""

from __future__ import annotations

import re
from typing import Any, Final

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
