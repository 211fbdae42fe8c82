"""Conditional requests: RFC 9110 section 13, in its order of precedence."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from poolsrv_http import http_date
from poolsrv_http.files.conditions import Validators, allows_range, parse_date, precondition_status

THEN = 1_700_000_000  # Tue, 14 Nov 2023 22:13:20 GMT
FILE = Validators(1234, THEN * 10**9 + 5)
TAG = FILE.tag
OTHER = b'"other"'
DATE, BEFORE, AFTER = (http_date(THEN + seconds) for seconds in (0, -1, 1))


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 200),
        # 13.1.1: If-Match, by strong comparison
        ({"if-match": TAG}, 200),
        ({"if-match": b"*"}, 200),
        ({"if-match": OTHER + b" , " + TAG}, 200),
        ({"if-match": b'"a,b",' + TAG + b","}, 200),
        ({"if-match": OTHER}, 412),
        ({"if-match": b"W/" + TAG}, 412),
        ({"if-match": b""}, 412),
        ({"if-match": b"nonsense"}, 412),
        # 13.1.4: If-Unmodified-Since
        ({"if-unmodified-since": DATE}, 200),
        ({"if-unmodified-since": AFTER}, 200),
        ({"if-unmodified-since": BEFORE}, 412),
        ({"if-unmodified-since": b"nonsense"}, 200),
        # 13.1.2: If-None-Match, by weak comparison
        ({"if-none-match": TAG}, 304),
        ({"if-none-match": b"W/" + TAG}, 304),
        ({"if-none-match": OTHER + b"," + TAG}, 304),
        ({"if-none-match": b"*"}, 304),
        ({"if-none-match": OTHER}, 200),
        ({"if-none-match": TAG.strip(b'"')}, 200),
        ({"if-none-match": TAG + TAG}, 200),
        # 13.1.3: If-Modified-Since
        ({"if-modified-since": DATE}, 304),
        ({"if-modified-since": AFTER}, 304),
        ({"if-modified-since": BEFORE}, 200),
        ({"if-modified-since": b"nonsense"}, 200),
        # 13.2.2: which counts where there are several
        ({"if-match": TAG, "if-unmodified-since": BEFORE}, 200),
        ({"if-match": OTHER, "if-none-match": TAG}, 412),
        ({"if-match": TAG, "if-none-match": TAG}, 304),
        ({"if-none-match": OTHER, "if-modified-since": AFTER}, 200),
        ({"if-none-match": TAG, "if-modified-since": BEFORE}, 304),
        ({"if-unmodified-since": BEFORE, "if-none-match": TAG}, 412),
        ({"if-unmodified-since": DATE, "if-modified-since": DATE}, 304),
    ],
)
def test_preconditions(fields: dict[str, bytes], status: int) -> None:
    assert precondition_status({name.encode(): value for name, value in fields.items()}, FILE) == status


@pytest.mark.parametrize(
    ("condition", "allowed"),
    [
        (None, True),
        (TAG, True),
        (b"W/" + TAG, False),
        (OTHER, False),
        (DATE, True),
        (AFTER, False),
        (BEFORE, False),
        (b"nonsense", False),
    ],
)
def test_if_range(condition: bytes | None, allowed: bool) -> None:
    """RFC 9110 section 13.1.5: a strong comparison of tags, the very date."""
    assert allows_range({} if condition is None else {b"if-range": condition}, FILE) is allowed


@pytest.mark.parametrize(("passed", "is_strong"), [(0.0, False), (0.9, False), (1.0, True)])
def test_a_date_of_this_second_is_no_strong_validator(
    monkeypatch: pytest.MonkeyPatch, passed: float, is_strong: bool
) -> None:
    """RFC 9110 section 8.8.2.2: the file may be changed once more within it."""
    monkeypatch.setattr(time, "time", lambda: THEN + passed)
    assert allows_range({b"if-range": DATE}, Validators(1, THEN * 10**9)) is is_strong


def test_validators() -> None:
    """RFC 9110 section 8.8: what changes when the file does; never of the future."""
    assert len({Validators(1, 1).tag, Validators(2, 1).tag, Validators(1, 2).tag, Validators(1, 1, "gzip").tag}) == 4
    assert FILE.last_modified == b"Tue, 14 Nov 2023 22:13:20 GMT"
    assert Validators(1, -5 * 10**9).last_modified == b"Thu, 01 Jan 1970 00:00:00 GMT"
    now = time.time()
    shown = parse_date(Validators(1, 10**19).last_modified)
    assert shown is not None
    assert now - 1 <= shown <= time.time()


@pytest.mark.parametrize(
    "text",
    [b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994"],
)
def test_the_three_formats_of_dates(text: bytes) -> None:
    """RFC 9110 section 5.6.7."""
    assert parse_date(text) == 784_111_777


@pytest.mark.parametrize(
    "text",
    [
        b"", b"784111777", b"Sun, 06 Nov 1994 08:49:37", b"Sun, 06 Nov 1994 08:49:37 CET",
        b"Sun, 31 Feb 1994 08:49:37 GMT",
        b"Sun, 06 Foo 1994 08:49:37 GMT", b"Sun, 06 Nov 1994 24:00:00 GMT", b"Sun, 06 Nov 1994 08:60:37 GMT",
        b"Sun, 06 Nov 0000 08:49:37 GMT", b"Sun, 00 Nov 1994 08:49:37 GMT", b"Sun, 06 Nov 1994 08:49:37 GMT, x",
        b"\xff", b"Sun, 06 Nov 1994 08:49:\xb2\xb2 GMT", b"sun nov  6 08:49:37 1994",
    ],
)  # fmt: skip
def test_what_is_no_date(text: bytes) -> None:
    """RFC 9110 section 13.1.3: it has to be ignored."""
    assert parse_date(text) is None


def test_two_digits_of_a_year() -> None:
    """RFC 9110 section 5.6.7: more than 50 years in the future is the past."""
    year = time.gmtime().tm_year
    for distance in (-49, 0, 49):
        written = b"Monday, 01-Jan-%02d 00:00:00 GMT" % ((year + distance) % 100)
        found = parse_date(written)
        assert found is not None
        assert time.gmtime(found).tm_year == year + distance


@given(st.integers(0, 253_402_300_799))
def test_dates_that_are_sent_are_read(second: int) -> None:
    assert parse_date(http_date(second)) == second


@given(st.binary(max_size=60))
def test_any_bytes(data: bytes) -> None:
    """Nothing that a client sends is an error of the server."""
    parse_date(data)
    for name in (b"if-match", b"if-none-match", b"if-modified-since", b"if-unmodified-since"):
        assert precondition_status({name: data}, FILE) in (200, 304, 412)
    allows_range({b"if-range": data}, FILE)
