"""Relays between two streams, in this process: raw and over TLS, on either side, and every way to end."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from poolsrv.core.event_loop import EventLoop
from tests.helpers.streams import Contexts, Pair, turn_until

DATA = bytes(range(256)) * 8192  # 2 MiB: more than is in transit, and than the kernel keeps


Both = tuple[Pair, Pair]


@pytest.fixture(params=["raw-raw", "raw-tls", "tls-raw", "tls-tls"])
def both(request: pytest.FixtureRequest, contexts: Contexts) -> Iterator[Both]:
    """The source and the target of a relay."""
    loop = EventLoop()
    source, target = (Pair(loop, contexts if kind == "tls" else None) for kind in request.param.split("-"))
    yield source, target
    assert not source.owner.faults
    assert not target.owner.faults
    source.end()
    target.end()
    loop.close()


def pour(both: Both, sealed: bytes) -> None:
    """Have the source's peer send all of it, and the target's take what has come over."""
    source, target = both
    while sealed:
        try:
            sealed = sealed[source.peer.sock.send(sealed) :]
        except BlockingIOError:
            source.loop.turn(0.005)
            target.peer.take()


def test_all_bytes_and_the_end_go_over(both: Both) -> None:
    source, target = both
    source.stream.relay_to(target.stream)
    pour(both, source.peer.seal(DATA))
    source.peer.finish()
    turn_until(source.loop, lambda: target.peer.end, target.peer)
    assert (target.peer.end, target.peer.received == DATA) == ("eof", True)
    assert (source.stream.bytes_in, target.stream.bytes_out) == (len(DATA), len(DATA))
    source.turns()
    assert (source.state, target.state) == ("CLOSED", "OPEN")


def test_what_is_in_the_buffer_goes_first_and_a_limit_ends_it(both: Both) -> None:
    source, target = both
    source.stream.on_readable = lambda stream: source.calls.append("on_readable")
    source.peer.send(b"0123456789")
    source.until(lambda: source.stream.peek() == b"0123456789")
    assert source.stream.recv(2) == b"01"
    moved: list[int] = []
    source.stream.relay_to(target.stream, limit=12, done=moved.append)
    source.peer.send(b"abcdefgh")
    turn_until(source.loop, lambda: moved, target.peer)
    assert moved == [12]
    turn_until(source.loop, lambda: target.peer.received == b"23456789abcd", target.peer)
    source.until(lambda: source.stream.peek() == b"efgh")
    assert (source.state, target.state) == ("OPEN", "OPEN")


def test_a_limit_within_the_buffer_leaves_the_rest_there(both: Both) -> None:
    source, target = both
    source.stream.on_readable = lambda stream: None
    source.peer.send(b"0123456789")
    source.until(lambda: len(source.stream.peek()) == 10)
    moved: list[int] = []
    source.stream.relay_to(target.stream, limit=4, done=moved.append)
    turn_until(source.loop, lambda: moved, target.peer)
    assert (moved, source.stream.peek()) == ([4], b"456789")


def test_a_slow_target_slows_the_source_down(both: Both) -> None:
    source, target = both
    source.stream.relay_to(target.stream)
    rest, stuck = source.peer.seal(bytes(32 << 20)), 0
    while stuck < 50:
        try:
            rest = rest[source.peer.sock.send(rest) :]
            stuck = 0
        except BlockingIOError:
            source.loop.turn(0.002)
            stuck += 1
    assert rest
    assert source.stream.relay_waits
    turn_until(source.loop, lambda: not source.stream.relay_waits, target.peer)


def test_each_side_has_one_relay(both: Both) -> None:
    source, target = both
    source.stream.relay_to(target.stream)
    with pytest.raises(ValueError, match="is being relayed"):
        source.stream.relay_to(source.stream)
    with pytest.raises(ValueError, match="to the target"):
        target.stream.relay_to(target.stream)
    with pytest.raises(ValueError, match="negative"):
        target.stream.relay_to(source.stream, limit=-1)
    target.stream.relay_to(source.stream)


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("how", ["abort", "close", "reset"])
def test_however_a_side_ends_it_is_over_once(both: Both, side: str, how: str) -> None:
    source, target = both
    moved: list[int] = []
    source.stream.relay_to(target.stream, done=moved.append)
    source.peer.send(b"some")
    turn_until(source.loop, lambda: target.peer.received == b"some", target.peer)
    one = source if side == "source" else target
    if how == "reset":
        one.peer.reset()
    else:
        getattr(one.stream, how)()
    turn_until(source.loop, lambda: moved)
    source.turns()
    other = target if side == "source" else source
    assert (moved, other.state) == ([4], "OPEN")
    assert not other.stream._is_held()


def test_close_of_the_target_waits_for_what_is_under_way(both: Both) -> None:
    source, target = both
    source.stream.relay_to(target.stream)
    source.peer.send(b"under way")
    source.until(lambda: source.stream.bytes_in == 9)
    target.stream.close("bye")
    turn_until(source.loop, lambda: target.peer.end, target.peer)
    assert (target.peer.received, target.peer.end) == (b"under way", "eof")


def test_a_program_that_gets_the_target_makes_it_copy() -> None:
    loop = EventLoop()
    source, target = Pair(loop), Pair(loop)
    source.stream.relay_to(target.stream)
    source.turns()
    assert target.stream._relay_out is not None
    target.stream._relay_out.copy_from_now_on()
    target.stream._share()
    source.peer.send(b"copied")
    turn_until(loop, lambda: target.peer.received == b"copied", target.peer)
    assert not target.stream._can_splice()
    source.end()
    target.end()
    loop.close()


def test_what_is_sent_to_the_target_meanwhile_is_all_there(both: Both) -> None:
    """Also where the target has taken no more of what is in transit: nothing is lost, and nothing goes twice."""
    source, target = both
    moved: list[int] = []
    source.stream.relay_to(target.stream, done=moved.append)
    rest = source.peer.seal(DATA * 4)
    while rest:
        try:
            rest = rest[source.peer.sock.send(rest) :]
        except BlockingIOError:
            taken = target.stream.bytes_out
            source.turns(10)
            if target.stream.bytes_out == taken:
                break  # nothing moves any more
    target.stream.send(b"<meanwhile>")
    pour(both, rest)
    source.peer.finish()
    turn_until(source.loop, lambda: moved, target.peer)
    turn_until(source.loop, lambda: len(target.peer.received) >= 4 * len(DATA) + 11, target.peer)
    assert target.peer.received.replace(b"<meanwhile>", b"") == DATA * 4
