"""Request heads.

The rules: the answer does not depend on how the bytes were split. What is accepted means the same when it is written
down again, and ends at its first empty line. What is refused has a status and a reason that may go into a log.
"""

from __future__ import annotations

from typing import Any

from poolsrv_http import RequestError, RequestHead, RequestLimits, RequestParser

from ..bounds import check_work
from ..source import Source, cut
from . import Target

STATUSES = (400, 414, 417, 431, 501, 505)
WIDE = RequestLimits(max_head=1 << 20, max_target=1 << 20, max_fields=1 << 16)
LIMITS = (RequestLimits(), RequestLimits(max_head=128, max_target=32, max_fields=4), WIDE)

Outcome = tuple[Any, ...]


def run(data: bytes) -> None:
    source = Source(data)
    limits = source.choice(LIMITS)
    seed = source.number(256)
    text = source.rest()
    whole = outcome([text], limits)
    for pieces in ([text[:1], text[1:]], [text[:-1], text[-1:]], cut(text, seed), cut(text, 0)):
        assert outcome(pieces, limits) == whole, pieces
    if len(whole) == 2:
        check_accepted(whole[0], text[: len(text) - len(whole[1])])
    check_work(lambda pieces: outcome(pieces, WIDE), text)


def outcome(pieces: list[bytes], limits: RequestLimits) -> Outcome:
    """The first head and what is behind it; or a status; or nothing yet."""
    parser = RequestParser(limits)
    for number, piece in enumerate(pieces):
        try:
            head = parser.feed(piece)
        except RequestError as error:
            check_refusal(error)
            return (error.status,)
        if head is not None:
            return head, b"".join([parser.surplus, *pieces[number + 1 :]])
    return ()


def check_refusal(error: RequestError) -> None:
    assert error.status in STATUSES, error
    for text in (error.reason, error.request_line):
        assert text.isascii(), error
        assert text.isprintable(), error


def check_accepted(head: RequestHead, consumed: bytes) -> None:
    begun = consumed.lstrip(b"\r\n")
    assert begun.index(b"\r\n\r\n") == len(begun) - 4
    assert begun.count(b"\n") == begun.count(b"\r") == begun.count(b"\r\n")
    assert begun.startswith(head.line.encode("ascii") + b"\r\n")
    assert head.line.split(" ")[0] == head.method
    assert not (head.chunked and head.content_length is not None)
    assert head.chunked == (b"transfer-encoding" in head.headers)
    assert (head.content_length is not None) == (b"content-length" in head.headers)
    assert head.version == (1, 0) or head.host == b"" or b"host" in head.headers
    assert head.target == head.path + ("?" + head.query if head.query or head.target.endswith("?") else "")
    assert head.path.startswith("/") or (head.path, head.method) == ("*", "OPTIONS")
    for name, value in head.headers.items():
        assert name == name.lower()
        assert value == value.strip(b" \t")
        assert not any((byte < 32 and byte != 9) or byte == 127 for byte in name + value)
    assert parsed(written(head.line, head.headers)) == head
    check_origin_form(head)


def check_origin_form(head: RequestHead) -> None:
    """As a proxy would pass it on: the path alone, and the host in its field."""
    fields = {**head.headers, b"host": head.host}
    if not head.host and b"host" not in head.headers:
        del fields[b"host"]
    line = f"{head.method} {head.target} HTTP/{head.version[0]}.{head.version[1]}"
    again = parsed(written(line, fields))
    for name in RequestHead.__struct_fields__:
        if name not in ("line", "headers"):
            assert getattr(again, name) == getattr(head, name), name


def written(line: str, fields: dict[bytes, bytes]) -> bytes:
    return b"".join([line.encode("ascii"), b"\r\n", *(b"%b: %b\r\n" % field for field in fields.items()), b"\r\n"])


def parsed(text: bytes) -> RequestHead:
    found = outcome([text], WIDE)
    assert found, text
    assert isinstance(found[0], RequestHead), (found, text)
    assert found[1] == b""
    return found[0]


TARGET = Target(
    run,
    1024,
    (
        b"Content-Length: ", b"Transfer-Encoding: ", b"chunked", b"Host: ", b"Expect: ", b"100-continue",
        b"Connection: ", b"close", b"keep-alive", b"Upgrade: ", b"HTTP/1.1", b"HTTP/1.0", b"\r\n", b"\r\n\r\n",
        b"\n\n", b"GET ", b"POST ", b"OPTIONS * ", b"CONNECT ", b"PRI ", b"http://", b"[::1]", b"\t", b"identity",
    ),
)  # fmt: skip
