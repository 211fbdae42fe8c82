"""Byte ranges: RFC 9110 section 14."""

from __future__ import annotations

import email
import email.policy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from poolsrv_http.files.ranges import MAX_RANGES, Multipart, Range, parse_ranges


def ranges(field: str, size: int = 100) -> list[tuple[int, int]] | None:
    found = parse_ranges(field.encode("latin-1"), size)
    return None if found is None else [(one.first, one.last) for one in found]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("bytes=0-0", [(0, 0)]),
        ("bytes=0-", [(0, 99)]),
        ("bytes=10-19", [(10, 19)]),
        ("bytes=90-1000", [(90, 99)]),
        ("bytes=99-", [(99, 99)]),
        ("bytes=-1", [(99, 99)]),
        ("bytes=-100", [(0, 99)]),
        ("bytes=-1000", [(0, 99)]),
        ("BYTES=0-1", [(0, 1)]),
        ("bytes = 0-1 ,\t5-6 , ,", [(0, 1), (5, 6)]),
        ("bytes=000000000000000000000000001-2", [(1, 2)]),
        ("bytes=0-99999999999999999999999999999999", [(0, 99)]),
        ("bytes=-99999999999999999999999999999999", [(0, 99)]),
        # 15.3.7.2: overlapping ones, and those that touch, become one, in the place of the first
        ("bytes=0-9,5-14", [(0, 14)]),
        ("bytes=50-59,0-9,5-14", [(50, 59), (0, 14)]),
        ("bytes=0-9,50-59,10-19", [(0, 19), (50, 59)]),
        ("bytes=-50,0-60", [(0, 99)]),
        ("bytes=0-,0-,0-", [(0, 99)]),
        ("bytes=20-29,0-9", [(20, 29), (0, 9)]),
        # 14.1.2: those that can't be satisfied are left out
        ("bytes=0-1,100-", [(0, 1)]),
        ("bytes=-0,0-1", [(0, 1)]),
        ("bytes=100-", []),
        ("bytes=100-200,300-400", []),
        ("bytes=99999999999999999999999999999999-", []),
        ("bytes=-0", []),
    ],
)
def test_ranges(field: str, expected: list[tuple[int, int]]) -> None:
    assert ranges(field) == expected


@pytest.mark.parametrize(
    "field",
    [
        "", "bytes", "bytes=", "bytes=,", "bytes=-", "bytes=a-b", "bytes=1-0", "bytes=5-2,0-1", "bytes=0-1,x", "0-1",
        "items=0-1", "bytes=0--1", "bytes=1", "bytes=+1-2", "bytes=0x1-2", "bytes=1 - 2", "bytes:0-1", "bytes=0-1;5-6",
        "bytes=\xb2-\xb3", "bytes=9" * 3,
    ],
)  # fmt: skip
def test_what_is_no_range_is_ignored(field: str) -> None:
    """RFC 9110 section 14.2: MUST for an unknown unit, MAY for the rest."""
    assert ranges(field) is None


def test_too_many_are_ignored() -> None:
    """RFC 9110 section 17.15: many small ranges are an attack."""
    field = ",".join(f"{number * 3}-{number * 3}" for number in range(MAX_RANGES))
    assert len(ranges("bytes=" + field, 1000) or ()) == MAX_RANGES
    assert ranges(f"bytes={field},900-901", 1000) is None


spec = st.one_of(
    st.tuples(st.integers(0, 130), st.integers(0, 130)).map(lambda pair: f"{min(pair)}-{max(pair)}"),
    st.integers(0, 130).map(lambda first: f"{first}-"),
    st.integers(0, 130).map(lambda length: f"-{length}"),
)


@given(st.lists(spec, min_size=1, max_size=8))
def test_what_is_sent_is_what_was_asked_for(specs: list[str]) -> None:
    """Each byte that was asked for, and each once."""
    size, wanted = 100, set()
    for text in specs:
        first, _, last = text.partition("-")
        if first:
            wanted |= set(range(int(first), min(int(last) if last else size, size - 1) + 1))
        else:
            wanted |= set(range(max(size - int(last), 0), size))
    found = ranges("bytes=" + ", ".join(specs), size)
    assert found is not None
    sent = [place for first, last in found for place in range(first, last + 1)]
    assert len(sent) == len(set(sent))
    assert set(sent) == wanted


def test_several_parts() -> None:
    """RFC 9110 section 14.6, and RFC 2046 section 5.1.1, as a reader of mail sees it."""
    data = bytes(range(100))
    body = Multipart([Range(0, 9), Range(50, 50)], 100, b"text/plain")
    pieces = [before + data[one.first : one.last + 1] for before, one in body.parts]
    content = b"".join([*pieces, body.end])
    message = email.message_from_bytes(
        b"Content-Type: %b\r\n\r\n%b" % (body.content_type, content), policy=email.policy.HTTP
    )
    parts = list(message.iter_parts())
    assert [part["Content-Range"] for part in parts] == ["bytes 0-9/100", "bytes 50-50/100"]
    assert [part.get_content_type() for part in parts] == ["text/plain", "text/plain"]
    assert [part.get_payload(decode=True) for part in parts] == [data[:10], data[50:51]]


def test_each_response_has_a_boundary_of_its_own() -> None:
    """No file can hold it by intent."""
    one, other = (Multipart([Range(0, 1), Range(3, 4)], 9, b"text/plain").content_type for _ in range(2))
    assert one != other
