"""Chunked bodies.

The rules: the answer does not depend on how the bytes were split, or read in turns; every byte is either of the body,
of its framing, or given back; a plain reading of RFC 9112 section 7.1 finds the same body and the same end.
"""

from __future__ import annotations

import re
from typing import Any

from poolsrv_http import BodyLimits, RequestError
from poolsrv_http.decoders import ChunkedDecoder

from ..bounds import check_work
from ..source import Source, cut
from . import Target

STATUSES = (400, 413, 431)
LIMITS = (BodyLimits(), BodyLimits(max_size=20, max_extensions=12, max_trailer=24, max_fields=2))

Outcome = tuple[Any, ...]

TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
VALUE = TOKEN + rb'|"(?:[\t \x21\x23-\x5b\x5d-\x7e\x80-\xff]|\\[\t\x20-\x7e\x80-\xff])*"'
EXTENSIONS = rb"(?:[ \t]*;[ \t]*" + TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + VALUE + rb"))?)*"
SIZE = re.compile(rb"([0-9A-Fa-f]+)" + EXTENSIONS + rb"\r\n")
FIELD = re.compile(TOKEN + rb":[\t\x20-\x7e\x80-\xff]*\r\n")


def run(data: bytes) -> None:
    source = Source(data)
    limits = source.choice(LIMITS)
    seed = source.number(256)
    lines = 1 + source.number(8)
    text = source.rest()
    whole = outcome([text], limits)
    for pieces in (cut(text, seed), cut(text, 0)):
        assert outcome(pieces, limits) == whole
        assert outcome(pieces, limits, lines) == whole
    assert outcome([text], limits, lines) == whole
    expected = read_plainly(text)
    if len(whole) == 2:
        assert whole == expected
        body, surplus = whole
        assert outcome([encoded(body, seed) + surplus], BodyLimits()) == whole
    elif whole and limits is LIMITS[0] and len(text) < 10000:
        assert expected is None, "a body that RFC 9112 allows is refused"
    elif not whole:
        assert expected is None, "a body whose end is here is not taken"
    check_work(lambda pieces: outcome(pieces, LIMITS[0]), text)


def outcome(pieces: list[bytes], limits: BodyLimits, lines: int | None = None) -> Outcome:
    """Body and what is behind it; or a status; or nothing yet."""
    decoder = ChunkedDecoder(limits)
    body: list[bytes] = []
    size = 0
    for number, piece in enumerate(pieces):
        waiting = piece
        while waiting:
            try:
                body.append(decoder.feed(waiting, lines))
            except RequestError as error:
                check_refusal(error)
                return (error.status,)
            size += len(body[-1])
            assert len(decoder.surplus) < len(waiting) or decoder.done
            waiting = decoder.surplus
            if decoder.done:
                taken = b"".join(body)
                assert len(taken) == decoder.received <= limits.max_size
                return taken, b"".join([waiting, *pieces[number + 1 :]])
        assert size <= decoder.received
    return ()


def check_refusal(error: RequestError) -> None:
    assert error.status in STATUSES, error
    assert error.reason.isascii(), error
    assert error.reason.isprintable(), error


def read_plainly(text: bytes) -> tuple[bytes, bytes] | None:
    """The body and what is behind it; None if there is no whole one."""
    body = b""
    while matched := SIZE.match(text):
        size = int(matched[1], 16)
        text = text[matched.end() :]
        if len(matched[1]) > 15:
            return None
        if not size:
            while field := FIELD.match(text):
                text = text[field.end() :]
            return (body, text[2:]) if text.startswith(b"\r\n") else None
        if text[size : size + 2] != b"\r\n":
            return None
        body += text[:size]
        text = text[size + 2 :]
    return None


def encoded(body: bytes, seed: int) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in cut(body, seed)) + b"0\r\n\r\n"


TARGET = Target(
    run,
    1024,
    (b"\r\n", b"0\r\n\r\n", b";", b"=", b'"', b"\\", b"5\r\nhello\r\n", b"0x", b"FFFFFFFFFFFFFFFF", b"\n", b"A: b\r\n"),
)
