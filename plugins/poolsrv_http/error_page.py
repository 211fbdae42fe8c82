"""Short pages of the server itself: errors and redirects, as HTML or plain text by the client's Accept.

A page names the status and nothing else. What went wrong is for the log.
"""

from __future__ import annotations

from .framing import REASONS, FramedResponse, http_date
from .headers import ResponseHeader

__all__ = ["error_page", "error_response", "prefers_html"]


def prefers_html(accept: bytes) -> bool:
    """Whether a client gets HTML: only if its Accept field names HTML and prefers it, or has it equal, to plain text.

    Browsers name it. curl, wget and git send `*/*` or nothing, and get plain text (RFC 9110 section 12.5.1).
    """
    quality = {"text/html": 0.0, "application/xhtml+xml": 0.0, "text/plain": 0.0}
    for part in accept.decode("latin-1").lower().split(","):
        kind, _, parameters = part.partition(";")
        kind = kind.strip()
        if kind in quality:
            quality[kind] = _quality(parameters)
    html = max(quality["text/html"], quality["application/xhtml+xml"])
    return html > 0 and html >= quality["text/plain"]


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                return float(value)
            except ValueError:
                return 0.0
    return 1.0


def error_page(
    status: int, accept: bytes = b"", location: str = "", retry_after: float | None = None
) -> tuple[ResponseHeader, bytes]:
    """The header and the body of a response of the server itself.

    :param status: 204 and 301, or from 400 to 599.
    :param accept: the request's Accept field.
    :param location: where a 301 sends the client; with the query, percent-encoded.
    :param retry_after: seconds, rounded up, for the Retry-After of a 503 (RFC 9110 section 10.2.3).
    :raises ValueError: `location` is not percent-encoded.
    """
    reason = REASONS.get(status, b"Error")
    fields: list[tuple[bytes, bytes]] = []
    if location:
        if not (location.isascii() and location.isprintable()):
            raise ValueError(f"{location!r} can't be a Location, expected one that is percent-encoded")
        fields.append((b"Location", location.encode("ascii")))
    if retry_after is not None:
        fields.append((b"Retry-After", b"%d" % -(-retry_after // 1)))
    if status == 204:
        body = b""
    elif prefers_html(accept):
        title = b"%d %b" % (status, reason)
        body = b"<!DOCTYPE html>\n<html lang=en><title>%b</title>\n<h1>%b</h1>\n" % (title, title)
        fields.append((b"Content-Type", b"text/html; charset=utf-8"))
    else:
        body = b"%d %b\n" % (status, reason)
        fields.append((b"Content-Type", b"text/plain; charset=utf-8"))
    return ResponseHeader(status=status, fields=tuple(fields), content_length=len(body)), body


def error_response(
    status: int,
    *,
    accept: bytes = b"",
    method: str = "GET",
    version: tuple[int, int] = (1, 1),
    keep_alive: bool = False,
    retry_after: float | None = None,
    location: str = "",
    date: bytes | None = None,
) -> bytes:
    """The same as bytes, head and body; for a request of which not even the head could be read.

    :param method: of the request, as far as known: HEAD gets no body.
    :param keep_alive: whether the connection goes on; never after a `RequestError`.
    :param date: for the Date field; None for now.
    """
    header, body = error_page(status, accept, location, retry_after)
    response = FramedResponse(
        header, method=method, version=version, keep_alive=keep_alive, date=http_date() if date is None else date
    )
    return response.head + response.encode(body)
