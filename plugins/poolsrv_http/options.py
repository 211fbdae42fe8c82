"""The options of an HTTP server, for a plugin to take over, and the mistakes in them.

A plugin's own `Options` inherits from `HttpOptions`; types and ranges are checked by the config reader. `http_problems`
finds what no type can say.

All times are seconds, all sizes bytes; 0 switches a limit off where that is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["HttpOptions", "http_problems"]

Seconds = Annotated[float, Meta(ge=0)]
Count = Annotated[int, Meta(ge=0)]


class HttpOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of an HTTP server.

    :ivar user_field: the field in which a proxy names the user that it has authenticated ("X-Remote-User", say). This
        and the next four are believed of the listener's `trusted_proxies` alone; "": no peer is.
    :ivar auth_type_field: the field in which it says how it has authenticated that user.
    :ivar client_field: the field in which proxies name their clients ("X-Forwarded-For", or "Forwarded").
    :ivar scheme_field: the field in which they say whether these came by https ("X-Forwarded-Proto", "Forwarded").
    :ivar host_field: the field with the host that these asked for ("X-Forwarded-Host", "Forwarded").
    :ivar header_timeout: from a request's first byte to its header's end (408). 0: for ever.
    :ivar body_timeout: how long a request's body may stand still (408). 0: for ever.
    :ivar keepalive_timeout: how long a connection may wait for its next request. 0: close after each.
    :ivar max_target_size: of a request's target, path and query together (414).
    :ivar max_header_size: of a request with its request line, and of a chunked body's trailer section (431).
    :ivar max_header_fields: of the same (431).
    :ivar max_chunk_extensions: of all chunks of a body together (400).
    :ivar max_body_size: of a request, decoded (413).
    :ivar min_body_rate: bytes per second of a request's body while its reader waits for it, on the average of
        `body_timeout`. 0: as little as the client likes.
    :ivar spool_memory: a body that is collected is kept in memory up to this size, above it in a temporary file.
    :ivar max_spooled: of all bodies together that are collected, over all workers (503).
    :ivar access_log: file to append a line per request to (`/dev/stdout` is one); left out: no access log.
    :ivar access_log_format: "combined" (Combined Log Format, with the timings behind it) or "json".
    :ivar mask_addresses: write the clients' addresses into the access log without their last 8 bits (IPv6: 80).
    """

    user_field: str = ""
    auth_type_field: str = ""
    client_field: str = ""
    scheme_field: str = ""
    host_field: str = ""
    header_timeout: Seconds = 20.0
    body_timeout: Seconds = 60.0
    keepalive_timeout: Seconds = 15.0
    max_target_size: Annotated[int, Meta(ge=256, le=1 << 20)] = 8192
    max_header_size: Annotated[int, Meta(ge=1024, le=1 << 20)] = 32768
    max_header_fields: Annotated[int, Meta(ge=16, le=65536)] = 500
    max_chunk_extensions: Annotated[int, Meta(ge=0, le=1 << 20)] = 16384
    max_body_size: Count = 1 << 30
    min_body_rate: Count = 128
    spool_memory: Count = 1 << 18
    max_spooled: Count = 1 << 30
    access_log: Path | None = None
    access_log_format: Literal["combined", "json"] = "combined"
    mask_addresses: bool = False


def http_problems(options: HttpOptions) -> Iterator[tuple[str, str]]:
    """Every mistake in options whose types are right, as a `ConfigError` takes them: key, and what is wrong.

    It looks at the file system, so call it when the plugin is made.
    """
    if options.access_log is not None:
        if options.access_log.is_dir():
            yield "access_log", f"{options.access_log} is a directory, expected a file"
        elif not options.access_log.parent.is_dir():
            yield "access_log", f"{options.access_log.parent} is not a directory"
    yield from _proxy_fields(options)


# What a proxy says has a field of its own, not one that clients or HTTP itself use.
_OTHERS_FIELDS = frozenset(
    [
        "accept",
        "authorization",
        "connection",
        "cookie",
        "date",
        "expect",
        "host",
        "keep-alive",
        "origin",
        "proxy",
        "proxy-authorization",
        "range",
        "referer",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
    ]
)


def _proxy_fields(options: HttpOptions) -> Iterator[tuple[str, str]]:
    seen: dict[str, str] = {}
    for key in ("user_field", "auth_type_field", "client_field", "scheme_field", "host_field"):
        name: str = getattr(options, key)
        lower = name.lower()
        if not name:
            continue
        if not (name.isascii() and name.replace("-", "").isalnum()):
            yield key, f'"{name}" is no field that a program could see, expected letters, digits and hyphens'
        elif lower in _OTHERS_FIELDS or lower.startswith(("content-", "if-", "sec-")):
            yield key, f'"{name}" is a field of clients, expected one that only proxies set, such as "X-Remote-User"'
        elif lower == "forwarded" and key in ("user_field", "auth_type_field"):
            yield key, f'"{name}" names no users, expected a field with nothing else in it, such as "X-Remote-User"'
        elif lower != "forwarded" and lower in seen:
            yield key, f'"{name}" is the {seen[lower]}, too, expected a field for each'
        seen[lower] = key
    if options.auth_type_field and not options.user_field:
        yield "auth_type_field", "has no meaning without user_field"
