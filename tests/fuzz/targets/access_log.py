"""Lines of the access log, and text that goes into logs.

The rules: an entry is one line of visible ASCII, whatever is in it, and its fields can be read back from that line,
byte for byte. Escaped text has no control characters, and can be encoded.
"""

from __future__ import annotations

import json
import re

from poolsrv_http.access_log import Entry, combined, json_line, mask_address

from poolsrv.core.text import encodable, lines, one_line

from ..source import Source
from . import Target

QUOTED = r'"((?:[^"\\]|\\.)*)"'
LINE = re.compile(
    rf"(\S+) - (\S+) \[(\d\d/[A-Z][a-z]{{2}}/\d+:\d\d:\d\d:\d\d \+0000)\] {QUOTED} (\d+|-) (\d+|-) {QUOTED} {QUOTED}"
    r"((?: [a-z]+=[0-9.]+)*)\n"
)
ESCAPE = re.compile(rb"\\(?:x([0-9a-f]{2})|([\"\\]))")


def run(data: bytes) -> None:
    source = Source(data)
    check_text(source.text())
    entry = Entry(
        address=source.text(60).replace(" ", ""),
        time=float(source.number(1 << 32)),
        line=source.text(),
        status=source.number(600),
        body_bytes=source.number(1 << 40),
        referer=source.text(),
        agent=source.text(),
        user=source.text(),
        program=source.text(),
        queued=source.choice((None, 0.5)),
        first_byte=source.choice((None, 0.25)),
        total=source.number(1 << 16) / 7,
        returncode=source.choice((None, 0, 3, -9)),
        cpu=source.choice((None, 1e-7)),
        peak_memory=source.choice((None, 4096)),
    )
    check_combined(entry)
    check_json(entry)
    mask_address(entry.address)


def check_combined(entry: Entry) -> None:
    line = combined(entry)
    assert line.isascii()
    assert line[:-1].isprintable()
    matched = LINE.fullmatch(line)
    assert matched, line
    address, user, _, request, status, size, referer, agent, _ = matched.groups()
    for shown, value in (
        (address, entry.address),
        (user, entry.user),
        (request, entry.line),
        (referer, entry.referer),
        (agent, entry.agent),
    ):
        assert unescaped(shown) == as_bytes(value) or (shown, value) == ("-", ""), (shown, value)
    assert (status, size) == (str(entry.status or "-"), str(entry.body_bytes or "-"))


def check_json(entry: Entry) -> None:
    line = json_line(entry)
    assert line.isascii()
    assert line[:-1].isprintable()
    record = json.loads(line)
    for name in ("address", "user", "referer", "agent", "program"):
        value = getattr(entry, name)
        assert record.get(name, "").encode() or not value
        if not re.search("[\ud800-\udfff]", value):
            assert record.get(name, "") == value


def as_bytes(text: str) -> bytes:
    """As it goes over the network: what was no text comes back as the bytes that it was."""
    return b"".join(
        one.encode("utf-8", "surrogateescape" if "\udc80" <= one <= "\udcff" else "surrogatepass") for one in text
    )


def unescaped(text: str) -> bytes:
    return ESCAPE.sub(lambda found: found[2] or bytes.fromhex(found[1].decode()), text.encode("ascii"))


def check_text(text: str) -> None:
    encodable(text).encode()
    for escaped, kept in ((one_line(text), "\t"), (lines(text), "\t\n")):
        escaped.encode()
        left = [one for one in escaped if ord(one) < 32 or 127 <= ord(one) < 160]
        assert all(one in kept for one in left), left


TARGET = Target(
    run,
    1024,
    (
        b'"',
        b"\\",
        b"\\x0a",
        b"\n",
        b"\r",
        b"\x1b[2J",
        b"\xe2\x80\xa8",
        b"\xc2\x85",
        b"\xed\xa0\x80",
        b"\xff",
        b"-",
        b" ",
    ),
)
