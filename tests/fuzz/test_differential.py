"""The differential fuzzer in this process: poolsrv's parser and h11 read the same bytes.

``make fuzz-http`` has Apache and lighttpd read them too.
"""

from __future__ import annotations

import pytest

from .differential.known import known
from .differential.reading import (
    CLOSES,
    FAULTS,
    REFUSES,
    WAITS,
    Message,
    Reading,
    disagreement,
    read_by_h11,
    read_by_poolsrv,
)
from .differential.requests import SENTINEL, Maker
from .differential.servers import understood

ONE, OTHER, LONGER = Message("POST", "0", b"x"), Message("GET", "9", b""), Message("POST", "0", b"xG")


def test_where_h11_ends_a_message_elsewhere_poolsrv_refuses() -> None:
    maker = Maker(20)
    accepted = 0
    for number in range(400):
        data = maker.request(number)
        ours, theirs = read_by_poolsrv(data), read_by_h11(data)
        what = disagreement(ours, theirs)
        assert what not in FAULTS or known("h11", data, ours, theirs), (number, data)
        accepted += len(ours.messages) > 1
    assert accepted > 50  # or it would say nothing


def test_a_request_follows_from_its_seed_and_number() -> None:
    assert Maker(1).request(7) == Maker(1).request(7) != Maker(2).request(7)
    assert all(Maker(1).request(number).endswith(SENTINEL) for number in range(20))


@pytest.mark.parametrize(
    ("ours", "theirs", "what"),
    [
        (Reading((ONE, OTHER), CLOSES), Reading((ONE, OTHER), CLOSES), "both read 2, then it closes"),
        (Reading((ONE, OTHER), CLOSES), Reading((LONGER,), REFUSES), "another end"),
        (Reading((ONE, OTHER), CLOSES), Reading((OTHER, OTHER), CLOSES), "another end"),
        (Reading((ONE,), WAITS), Reading((ONE, OTHER), CLOSES), "poolsrv waits"),
        (Reading((ONE, OTHER), CLOSES), Reading((ONE,), WAITS), "poolsrv goes on"),
        (Reading((), REFUSES), Reading((ONE, OTHER), CLOSES), "poolsrv refuses"),
        (Reading((ONE, OTHER), CLOSES), Reading((), REFUSES), "the other refuses"),
        (Reading((ONE,), CLOSES), Reading((ONE, OTHER), CLOSES), "poolsrv closes"),
        (Reading((ONE, OTHER), CLOSES), Reading((ONE,), CLOSES), "the other closes"),
        (Reading((ONE,), REFUSES), Reading((ONE,), WAITS), "poolsrv refuses"),
        (Reading((ONE,), WAITS), Reading((ONE,), REFUSES), "after it, waits and refuses"),
    ],
)
def test_what_counts_as_a_fault(ours: Reading, theirs: Reading, what: str) -> None:
    assert disagreement(ours, theirs) == what
    assert (what in FAULTS) == (what in ("another end", "poolsrv waits", "poolsrv goes on"))


@pytest.mark.parametrize(
    ("data", "reading"),
    [
        (b"", Reading((), WAITS)),
        (SENTINEL, Reading((OTHER,), CLOSES)),
        (b"POST /m0 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx" + SENTINEL, Reading((ONE, OTHER), CLOSES)),
        (b"POST /m0 HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx", Reading((), WAITS)),
        (
            b"POST /m0 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n" + SENTINEL,
            Reading((ONE, OTHER), CLOSES),
        ),
        (b"GET /m9 HTTP/1.1\nHost: a\r\n\r\n", Reading((), REFUSES)),
    ],
)
def test_how_poolsrv_reads(data: bytes, reading: Reading) -> None:
    assert read_by_poolsrv(data) == reading


def test_how_h11_reads() -> None:
    data = b"POST /m0 HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"
    assert read_by_h11(data + SENTINEL) == Reading((ONE, OTHER), CLOSES)
    assert read_by_h11(data) == Reading((ONE,), WAITS)
    assert read_by_h11(b"GET / HTTP/9\r\n\r\n") == Reading((), REFUSES)


def test_how_a_server_s_answers_are_understood() -> None:
    one = b'HTTP/1.1 200 OK\r\nX-Saw: ["POST", "/m0", "x"]\r\nContent-Length: 0\r\n\r\n'
    last = one.replace(b'["POST", "/m0", "x"]', b'["GET", "/m9", ""]')
    assert understood(one + last, 0.0) == Reading((ONE, OTHER), CLOSES)
    assert understood(b"HTTP/1.1 100 Continue\r\n\r\n" + one, 0.0) == Reading((ONE,), CLOSES)
    assert understood(one, 100.0) == Reading((ONE,), WAITS)
    assert understood(one + b"HTTP/1.1 400 Bad Request\r\n\r\n", 0.0) == Reading((ONE,), REFUSES)
    assert understood(b"HTTP/1.1 408 Request Timeout\r\n\r\n", 0.0) == Reading((), WAITS)
