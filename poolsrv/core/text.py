"""Escape text before it leaves the process: what no encoder takes, and what would move a terminal's cursor.

Names from outside (files, processes, arguments) are bytes to the kernel. Python decodes bytes that are not UTF-8 to
lone surrogates (PEP 383), which no encoder accepts and which are not valid JSON either.
"""

from __future__ import annotations

import re
from typing import Any, Final

_LONE: Final = "[\ud800-\udfff]"  # compiled for the first text that needs it
_CONTROL: Final = {code: f"\\x{code:02x}" for code in (*range(0x09), *range(0x0A, 0x20), *range(0x7F, 0xA0))}
_LINES: Final = {code: escape for code, escape in _CONTROL.items() if code != 0x0A}


def encodable(text: str) -> str:
    """Escape lone surrogates: an undecodable byte as ``\\xe9``, any other as ``\\ud800``."""
    return text if text.isascii() else re.sub(_LONE, _escape, text)


def one_line(text: str) -> str:
    """Escape lone surrogates and control characters (``\\x1b``), including line ends; tabs stay."""
    return encodable(text.translate(_CONTROL))


def printable(text: str) -> str:
    r"""Escape what is not printable as Python writes it (``\n``, ``\x1b``, ``\u202e``), bytes as ``encodable`` does."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in encodable(text))


def lines(text: str) -> str:
    """Escape like ``one_line``, but keep line feeds."""
    return encodable(text.translate(_LINES))


def encodable_in(value: Any) -> Any:
    """Apply ``encodable`` to every string in a JSON value (str, numbers, lists, dicts)."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, dict):
        return {encodable_in(name): encodable_in(member) for name, member in value.items()}
    if isinstance(value, list):
        return [encodable_in(member) for member in value]
    return value


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"\\u{code:04x}"
