"""Lines of the access log: their form, and that no client can forge one."""

from __future__ import annotations

import errno
import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from poolsrv_http import log_file
from poolsrv_http.access_log import Entry, combined, json_line, mask_address

ENTRY = Entry(
    address="192.0.2.7",
    time=971211336.25,
    line="GET /apache_pb.gif HTTP/1.0",
    status=200,
    body_bytes=2326,
    referer="http://www.example.com/start.html",
    agent="Mozilla/4.08 [en] (Win98; I ;Nav)",
    program="/apache_pb.gif",
    queued=0.0,
    first_byte=0.0125,
    total=0.5,
    returncode=0,
    cpu=0.25,
    peak_memory=1 << 20,
)
# Combined Log Format, strictly.
PATTERN = re.compile(
    r'(\S+) - (\S+) \[(\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000)\] "((?:[^"\\]|\\.)*)" (\d{3}|-) (\d+|-)'
    r' "((?:[^"\\]|\\.)*)" "((?:[^"\\]|\\.)*)"((?: \w+=[-0-9.]+)*)\n'
)


def test_combined() -> None:
    """RFC 9110 section 17.11 (what logs tell); the form is Apache's "combined", with fields of our own behind it."""
    assert combined(ENTRY) == (
        '192.0.2.7 - - [10/Oct/2000:20:55:36 +0000] "GET /apache_pb.gif HTTP/1.0" 200 2326'
        ' "http://www.example.com/start.html" "Mozilla/4.08 [en] (Win98; I ;Nav)"'
        " queued=0.000000 first=0.012500 total=0.500000 exit=0 cpu=0.250000 peak=1048576\n"
    )


def test_combined_of_little() -> None:
    """RFC 9112 section 3: a request that was none still has its line."""
    line = combined(Entry(address="", time=0.0, line="", status=400, body_bytes=0))
    assert line == '- - - [01/Jan/1970:00:00:00 +0000] "-" 400 - "-" "-" total=0.000000\n'


def test_signal() -> None:
    """RFC 3875 section 6: a program that was killed has no exit status."""
    line = combined(Entry(address="::1", time=0.0, line="x", status=502, body_bytes=0, returncode=-9))
    assert line.endswith(" signal=9\n")


def test_json() -> None:
    """RFC 8259: one object a line, only what is known."""
    assert json.loads(json_line(ENTRY)) == {
        "time": "2000-10-10T20:55:36.250Z",
        "address": "192.0.2.7",
        "request": "GET /apache_pb.gif HTTP/1.0",
        "status": 200,
        "bytes": 2326,
        "referer": "http://www.example.com/start.html",
        "agent": "Mozilla/4.08 [en] (Win98; I ;Nav)",
        "program": "/apache_pb.gif",
        "queued": 0.0,
        "first": 0.0125,
        "total": 0.5,
        "exit": 0,
        "cpu": 0.25,
        "peak": 1048576,
    }


TEXT = st.text(
    alphabet=st.one_of(st.sampled_from('"\\\n\r\t\0\x1b \x7f\x85\u2028\udcff'), st.characters()), max_size=20
)


@given(line=TEXT, referer=TEXT, agent=TEXT, user=TEXT)
def test_no_line_can_be_forged(line: str, referer: str, agent: str, user: str) -> None:
    """RFC 9110 section 17.11: whatever a client sends, it stays one line of visible ASCII, and in its own quotes."""
    entry = Entry(
        address="192.0.2.7", time=0.0, line=line, status=200, body_bytes=1, referer=referer, agent=agent, user=user
    )
    text = combined(entry)
    assert text.isascii()
    assert text[:-1].isprintable()
    matched = PATTERN.fullmatch(text)
    assert matched is not None
    assert matched[5] == "200"
    encoded = json_line(entry)
    assert encoded.isascii()
    assert encoded[:-1].isprintable()
    assert json.loads(encoded)["status"] == 200
    json.dumps(json.loads(encoded), ensure_ascii=False).encode()  # no lone surrogates


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("192.0.2.77", "192.0.2.0"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("::1", "::"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
        ("unix:", "unix:"),
    ],
)
def test_mask(address: str, masked: str) -> None:
    """RFC 6302 section 3 and RFC 9110 section 17.11: less than a whole address is logged where that is wanted."""
    assert mask_address(address) == masked


def test_standard_output_of_another_user_is_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A terminal or pipe that this user can't open again: the descriptor is there all the same."""

    def refuse(path: str, mode: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(log_file, "open_for_appending", refuse)
    fd = log_file._open(Path("/dev/stdout"))
    try:
        assert os.path.samestat(os.fstat(fd), os.fstat(1))
    finally:
        os.close(fd)
    with pytest.raises(PermissionError):
        log_file._open(Path("/var/log/access.log"))
