"""Frames out of a stream: by their length, by their separator, by lines; in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poolsrv import FrameTooLong, LineTooLong
from poolsrv.core.event_loop import EventLoop
from poolsrv.net.input_buffer import READ_AHEAD, SMALL
from tests.helpers.streams import Pair


@pytest.fixture
def pair() -> Iterator[Pair]:
    loop = EventLoop()
    pair = Pair(loop)
    pair.stream.on_readable = lambda stream: pair.calls.append("on_readable")
    yield pair
    pair.end()
    loop.close()


def give(pair: Pair, data: bytes) -> None:
    """Have the stream read these bytes."""
    before = pair.stream.bytes_in
    pair.feed(data)
    pair.until(lambda: pair.stream.bytes_in == before + len(data))


def test_so_many_bytes_or_none(pair: Pair) -> None:
    assert pair.stream.recv_exactly(3) is None
    give(pair, b"ab")
    assert (pair.stream.recv_exactly(3), pair.stream.recv_exactly(0)) == (None, b"")
    give(pair, b"cdefg")
    assert [pair.stream.recv_exactly(3), pair.stream.recv_exactly(4)] == [b"abc", b"defg"]
    with pytest.raises(ValueError, match="-1 bytes"):
        pair.stream.recv_exactly(-1)


def test_up_to_a_separator_or_none(pair: Pair) -> None:
    give(pair, b"one\r\n\r\ntwo\r\n\r")
    assert [pair.stream.recv_until(b"\r\n\r\n") for _ in range(2)] == [b"one\r\n\r\n", None]
    give(pair, b"\nthree")
    assert [pair.stream.recv_until(b"\r\n\r\n") for _ in range(2)] == [b"two\r\n\r\n", None]
    for separator, limit in ((b"", 10), (b"abc", 2), (b"a", 0)):
        with pytest.raises(ValueError, match="separator"):
            pair.stream.recv_until(separator, limit)


def test_a_frame_over_the_limit_stays_in_the_buffer(pair: Pair) -> None:
    give(pair, b"abcde")
    assert pair.stream.recv_until(b"|", 6) is None
    with pytest.raises(FrameTooLong, match="no separator within 5 bytes") as caught:
        pair.stream.recv_until(b"|", 5)
    assert caught.value.limit == 5
    give(pair, b"|")
    with pytest.raises(FrameTooLong):
        pair.stream.recv_until(b"|", 5)  # with the separator it has 6
    assert pair.stream.recv_until(b"|", 6) == b"abcde|"


def test_a_frame_that_is_cut_off_is_none_and_stays(pair: Pair) -> None:
    seen: list[object] = []

    def on_readable(stream: Any) -> None:
        if stream.eof:
            seen.extend([stream.recv_exactly(5), stream.recv_until(b"|"), stream.recv()])

    pair.stream.on_readable = on_readable
    pair.peer.send(b"abc")
    pair.peer.finish()
    pair.until(lambda: pair.state != "OPEN")
    assert seen == [None, None, b"abc"]


@pytest.mark.parametrize("take", ["exactly", "until", "line"])
def test_a_frame_larger_than_the_buffer_arrives(pair: Pair, take: str) -> None:
    frame = bytes(3 * READ_AHEAD) + b"\n"
    calls: dict[str, Callable[[Any], bytes | None]] = {
        "exactly": lambda stream: stream.recv_exactly(len(frame)),
        "until": lambda stream: stream.recv_until(b"\n", len(frame)),
        "line": lambda stream: stream.recv_line(len(frame)),
    }
    taken: list[bytes | None] = []
    pair.stream.on_readable = lambda stream: taken.append(calls[take](stream))
    pair.feed(frame)
    pair.until(lambda: taken and taken[-1])
    assert [one for one in taken if one] == [frame]
    # Afterwards the buffer is as large as ever.
    pair.stream.on_readable = lambda stream: None
    try:
        for _ in range(100):
            pair.peer.sock.send(bytes(1 << 20))
            pair.turns()
    except BlockingIOError:
        pass
    assert READ_AHEAD <= len(pair.stream.peek()) < READ_AHEAD + 65536


def test_a_frame_waits_while_reading_is_paused_or_the_stream_is_congested(pair: Pair) -> None:
    give(pair, b"abc")
    pair.stream.pause_reading()
    assert (pair.stream.recv_exactly(READ_AHEAD + 1), pair.stream.recv_exactly(2)) == (None, b"ab")
    pair.peer.send(b"def|")
    pair.turns(5)
    assert (pair.stream.peek(), pair.stream.recv_until(b"|")) == (b"c", None)
    pair.stream.resume_reading()
    pair.until(lambda: pair.stream.bytes_in == 7)
    sent = pair.congest()
    assert pair.stream.recv_until(b"|") == b"cdef|"
    pair.peer.send(b"more|")
    pair.turns(5)
    assert pair.stream.recv_until(b"|") is None
    pair.until(lambda: len(pair.peer.received) == sent)
    pair.until(lambda: pair.stream.bytes_in == 12)
    assert pair.stream.recv_until(b"|") == b"more|"


class Counted(bytearray):
    """A buffer that counts the bytes that are searched."""

    searched = 0

    def find(self, *arguments: Any) -> int:
        _, start, end = arguments
        Counted.searched += min(end, len(self)) - start
        return super().find(*arguments)


@pytest.mark.parametrize("take", ["until", "line"])
def test_what_trickles_in_is_searched_once(pair: Pair, take: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And copied once: the buffer grows in place."""
    size = 100_000
    give(pair, b"x" * (SMALL + 1))
    pair.stream._in = Counted(b"\0" + b"x" * (SMALL + 1))
    pair.stream._pos = 1
    buffer = pair.stream._in
    monkeypatch.setattr(Counted, "searched", 0)
    while pair.stream.bytes_in < size:
        pair.stream._append(b"x" * 10)  # as an event does
        pair.stream.bytes_in += 10
        found = pair.stream.recv_until(b"\r\n", size * 2) if take == "until" else pair.stream.recv_line(size * 2)
        assert found is None
    assert Counted.searched < 2 * size
    assert pair.stream._in is buffer
    give(pair, b"\r\n")
    length = pair.stream.bytes_in
    assert pair.stream.recv_until(b"\r\n", size * 2) == b"x" * (length - 2) + b"\r\n"


def test_a_search_starts_again_when_bytes_were_taken_or_given_back(pair: Pair) -> None:
    give(pair, b"a" * 10_000)
    assert pair.stream.recv_until(b"||", 20_000) is None
    taken = pair.stream.recv(5_000)
    pair.stream.unread(b"||" + taken[2:])
    assert pair.stream.recv_until(b"||", 20_000) == b"||"
    assert pair.stream.recv_until(b"||", 20_000) is None
    pair.stream.recv(9_000)
    give(pair, b"|" + b"|")
    assert pair.stream.recv_until(b"||", 20_000) == b"a" * 998 + b"||"


def test_lines_after_frames_have_their_own_limit(pair: Pair) -> None:
    give(pair, b"12345" + b"y" * 10)
    assert pair.stream.recv_exactly(5) == b"12345"
    with pytest.raises(LineTooLong):
        pair.stream.recv_line(10)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("more"), st.binary(max_size=9000)),
        st.tuples(st.just("exactly"), st.integers(0, 9000)),
        st.tuples(st.just("until"), st.sampled_from([b"\0", b"\0\1", b"\n"])),
        st.tuples(st.just("recv"), st.integers(0, 9000)),
        st.tuples(st.just("unread"), st.binary(max_size=9000)),
        st.tuples(st.just("peek"), st.none()),
    ),
    max_size=30,
)


@given(steps=STEPS)
@settings(max_examples=60, deadline=None)
def test_frames_are_what_a_plain_buffer_has(steps: list[tuple[str, Any]]) -> None:
    loop = EventLoop()
    pair = Pair(loop)
    pair.stream.on_readable = lambda stream: None
    model = b""
    for step, argument in steps:
        if step == "more":
            give(pair, argument)
            model += argument
        elif step == "unread":
            pair.stream.unread(argument)
            model = argument + model
        elif step == "peek":
            assert pair.stream.peek() == model
        elif step == "exactly":
            expected = model[:argument] if len(model) >= argument else None
            assert pair.stream.recv_exactly(argument) == expected
            model = model[len(expected or b"") :]
        elif step == "until":
            end = model.find(argument)
            expected = model[: end + len(argument)] if end >= 0 else None
            assert pair.stream.recv_until(argument, 1 << 20) == expected
            model = model[len(expected or b"") :]
        else:
            got = pair.stream.recv(argument)
            assert type(got) is bytes
            assert got == model[:argument]
            model = model[len(got) :]
    pair.end()
    loop.close()
