"""Media types by suffix: those of Python, which are the same on every machine, and what they lack for the web."""

from __future__ import annotations

import mimetypes
from collections.abc import Mapping

__all__ = ["MediaTypes"]

# Not in Python 3.11, or otherwise there: see RFC 9239 (JavaScript), RFC 8081 (fonts), RFC 9649 (WebP).
_FOR_THE_WEB = {
    ".7z": "application/x-7z-compressed",
    ".apk": "application/vnd.android.package-archive",
    ".atom": "application/atom+xml",
    ".avif": "image/avif",
    ".bz2": "application/x-bzip2",
    ".deb": "application/vnd.debian.binary-package",
    ".epub": "application/epub+zip",
    ".flac": "audio/flac",
    ".gz": "application/gzip",
    ".ics": "text/calendar",
    ".jar": "application/java-archive",
    ".jsonld": "application/ld+json",
    ".js": "text/javascript",
    ".log": "text/plain",
    ".m4a": "audio/mp4",
    ".map": "application/json",
    ".md": "text/markdown",
    ".mjs": "text/javascript",
    ".mkv": "video/matroska",
    ".ogg": "audio/ogg",
    ".ogv": "video/ogg",
    ".opus": "audio/ogg",
    ".otf": "font/otf",
    ".rss": "application/rss+xml",
    ".svgz": "image/svg+xml",
    ".tgz": "application/gzip",
    ".toml": "application/toml",
    ".ttf": "font/ttf",
    ".wasm": "application/wasm",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff": "font/woff",
    ".woff2": "font/woff2",
    ".xz": "application/x-xz",
    ".yaml": "application/yaml",
    ".yml": "application/yaml",
    ".zst": "application/zstd",
}


class MediaTypes:
    """The Content-Type of each file.

    :param further: suffix to media type.
    :param default: of unknown suffixes.
    :param charset: added to types that begin with "text/" and have no parameter; "" for none.
    """

    __slots__ = ("_default", "_types")

    def __init__(self, further: Mapping[str, str], default: str, charset: str) -> None:
        known = {**mimetypes.MimeTypes().types_map[True], **_FOR_THE_WEB, **further}
        behind = f"; charset={charset}" if charset else ""
        self._types = {suffix.lower().encode(): _with(kind, behind).encode("ascii") for suffix, kind in known.items()}
        self._default = _with(default, behind).encode("ascii")

    def of(self, name: bytes) -> bytes:
        """The media type of a file, by the suffix of its name, in whichever case."""
        dot = name.rfind(b".", name.rfind(b"/") + 1)
        return self._types.get(name[dot:].lower(), self._default) if dot >= 0 else self._default


def _with(kind: str, charset: str) -> str:
    return kind + charset if kind.startswith("text/") and ";" not in kind else kind
