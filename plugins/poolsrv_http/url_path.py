"""The path of a URL, decoded and normalised, before anything is looked up by it.

The order of the steps is what makes it safe. Servers that took them in another order have shown what they should not
have:

1. Decode percent escapes, once. Control characters and an encoded slash are refused: NUL and a slash can't be part of a
   file's name, a line end ends up in a header or a log, and a decoded slash would give the path another shape than the
   one that a proxy in front has judged.
2. Normalise: drop empty segments and ".", let ".." drop its predecessor too, and refuse ".." above the top.
"""

from __future__ import annotations

import re
from urllib.parse import quote_from_bytes, unquote_to_bytes

__all__ = ["BadPath", "decode_path", "encode_path", "is_below"]

# A percent sign that begins no escape.
_find_broken_escape = re.compile(r"%(?![0-9A-Fa-f]{2})").search
_find_control = re.compile(rb"[\x00-\x1f\x7f]").search
_ENCODED_SLASH = re.compile(r"%2[Ff]")
# Not escaped in a Location, besides letters and digits (RFC 3986 section 3.3, pchar).
_SAFE_IN_PATH = "/:@!$&'()*+,;=-._~"


class BadPath(Exception):
    """The path of a URL that no server should look up: a 400. `str()` is the reason, for the log."""


def decode_path(path: str) -> bytes:
    """Decode and normalise a URL path (RFC 3986 section 5.2.4).

    A slash at the end stays, also where it comes from a dot segment.

    :param path: percent-encoded, with a slash in front, without the query.
    :raises BadPath: it can't be looked up.
    """
    if path[:1] != "/":
        raise BadPath("the path has no slash in front")
    if "%" in path:
        if _find_broken_escape(path):
            raise BadPath("a percent sign without two hexadecimal digits in the path")
        if _ENCODED_SLASH.search(path):
            raise BadPath("an encoded slash in the path")
        decoded = unquote_to_bytes(path)
        if control := _find_control(decoded):
            raise BadPath(f"a control character {control[0]!r} in the path")
    else:
        decoded = path.encode("ascii", "surrogateescape")
    if b"/." not in decoded and b"//" not in decoded:
        return decoded
    kept: list[bytes] = []
    segments = decoded.split(b"/")
    for segment in segments:
        if segment == b"..":
            if not kept:
                raise BadPath("the path leads above the top")
            kept.pop()
        elif segment not in (b"", b"."):
            kept.append(segment)
    slash = b"/" if kept and segments[-1] in (b"", b".", b"..") else b""
    return b"/" + b"/".join(kept) + slash


def encode_path(path: bytes) -> str:
    """Percent-encode a path for a Location field."""
    return quote_from_bytes(path, _SAFE_IN_PATH)


def is_below(path: bytes, prefix: bytes) -> bool:
    """Whether a decoded path is `prefix`, or below it, by whole segments.

    :param prefix: without a slash at its end; `b""` is the top.
    """
    return not prefix or path == prefix or path.startswith(prefix + b"/")
