"""The options of static files, and the mistakes in them.

All times are seconds; 0 switches a limit off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from ..options import HttpOptions

__all__ = [
    "FileOptions",
    "IndexFiles",
    "UrlDirectories",
    "file_problems",
    "index_files_problems",
    "url_directories_problems",
]

# `files = "htdocs"` stands for `files = { "/" = "htdocs" }`.
UrlDirectories = Annotated[
    dict[str, Path], Meta(extra={"short_for": "/", "words": "a directory, or a table of URL path to directory"})
]
IndexFiles = tuple[str, ...]

_match_value = re.compile(r"[\t -~]*").fullmatch
_match_type = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+/[!#$%&'*+.^_`|~0-9A-Za-z-]+([ \t]*;[\t -~]*)?").fullmatch
_match_charset = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]*").fullmatch


class FileOptions(HttpOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of static files.

    :ivar listings: show a directory without an index file as a list of what is in it. Without it, it is a 403.
    :ivar media_types: suffix to media type, in addition to the known ones: `{ ".gpx" = "application/gpx+xml" }`.
    :ivar default_media_type: of files with an unknown suffix.
    :ivar charset: of files whose media type begins with "text/", and that names none itself; "": say nothing of it.
    :ivar cache_control: the Cache-Control field of files; or a table of patterns of URL paths to it, the first that
        fits counts: `{ "/assets/*" = "max-age=31536000, immutable", "*" = "no-cache" }`. "": none.
    :ivar precompressed: where beside a file there is one with ".br" or ".gz" behind its name, no older, send that to
        clients that take it.
    :ivar send_timeout: how long a client may take nothing of a file that is being sent; then the connection is reset.
    """

    listings: bool = False
    media_types: dict[str, str] = msgspec.field(default_factory=dict)
    default_media_type: str = "application/octet-stream"
    charset: str = "utf-8"
    cache_control: str | dict[str, str] = ""
    precompressed: bool = True
    send_timeout: Annotated[float, Meta(ge=0)] = 60.0


def file_problems(options: FileOptions) -> Iterator[tuple[str, str]]:
    """Every mistake in the options of files whose types are right, as a `ConfigError` takes them."""
    for suffix, kind in options.media_types.items():
        if len(suffix) < 2 or suffix[0] != "." or "/" in suffix or "." in suffix[1:]:
            yield "media_types", f'{_shown(suffix)} is not a suffix, expected one such as ".gpx"'
        if not _match_type(kind):
            yield "media_types", f'{_shown(kind)} is not a media type, expected one such as "text/markdown"'
    if not _match_type(options.default_media_type):
        kind = options.default_media_type
        yield (
            "default_media_type",
            f'{_shown(kind)} is not a media type, expected one such as "text/plain"',
        )
    if not _match_charset(options.charset):
        yield "charset", f'{_shown(options.charset)} is not the name of a charset, expected one such as "utf-8"'
    rules = options.cache_control if isinstance(options.cache_control, Mapping) else {"*": options.cache_control}
    for pattern, value in rules.items():
        if pattern[:1] not in ("/", "*"):
            yield "cache_control", f"{_shown(pattern)} never matches: a URL path begins with a slash"
        if not _match_value(value):
            yield "cache_control", f"{_shown(value)} can't be a header field, expected visible ASCII on one line"


def url_directories_problems(key: str, directories: Mapping[str, Path]) -> Iterator[tuple[str, str]]:
    """The mistakes in `UrlDirectories`, as a `ConfigError` takes them.

    :param key: the option.
    """
    for url, directory in directories.items():
        if not url.startswith("/") or any(bad in url for bad in ("//", "/.", "%", "?", "#")):
            yield key, f'{_shown(url)} is not a URL path, expected one such as "/static"'
        if not directory.is_dir():
            yield key, f"{directory} is not a directory"
    plain = [url.rstrip("/") for url in directories]
    for url in sorted({url for url in plain if plain.count(url) > 1}):
        yield key, f"{_shown(url or '/')} is there twice, with a slash at its end and without one"


def index_files_problems(key: str, names: IndexFiles) -> Iterator[tuple[str, str]]:
    """The mistakes in `IndexFiles`, as a `ConfigError` takes them.

    :param key: the option.
    """
    for name in names:
        if not name or "/" in name or "\0" in name or name[0] == ".":
            yield (
                key,
                f"{_shown(name)} is no index file, expected a name without a slash or a dot in front",
            )


def _shown(text: str) -> str:
    """In quotes, on one line."""
    return json.dumps(text, ensure_ascii=False)
