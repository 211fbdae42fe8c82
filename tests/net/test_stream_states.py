"""The state machine of a stream, in this process: every state and move, raw and over TLS alike."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from poolsrv import LineTooLong
from poolsrv.core.event_loop import READ, WRITE, EventLoop
from poolsrv.net import stream as stream_module
from poolsrv.net.connector import OutgoingStream
from poolsrv.net.descriptor import CLOSED, CONNECTING, MOVES, OPEN, STATE_NAMES, IllegalMove
from poolsrv.net.input_buffer import READ_AHEAD, RECV_SIZE
from poolsrv.net.stream import HIGH_WATER, LINGER_LEAST, LINGER_LOOK, LINGER_TIME
from poolsrv.net.tls import ClientTls
from poolsrv.net.tls_transport import Handshake, TlsTransport
from tests.helpers.sources import docstring
from tests.helpers.streams import (
    Connecting,
    Contexts,
    Owner,
    Pair,
    Peer,
    StandingLoop,
    Subject,
    fill,
    pass_time,
    tcp_pair,
    turn_until,
    wait_readable,
)


@pytest.fixture
def loop() -> Iterator[EventLoop]:
    loop = StandingLoop()
    yield loop
    loop.close()


@pytest.fixture(params=["raw", "tls"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(loop: EventLoop, kind: str, contexts: Contexts) -> Iterator[Pair]:
    one = Pair(loop, contexts if kind == "tls" else None)
    yield one
    assert not one.owner.faults
    one.end()


@pytest.fixture
def connecting(loop: EventLoop, kind: str, contexts: Contexts, authority: Path) -> Iterator[Connecting]:
    tls = ClientTls(server_name="localhost", ca_file=authority / "ca.pem")
    one = Connecting(loop, contexts, tls) if kind == "tls" else Connecting(loop)
    yield one
    assert not one.owner.faults
    one.end()


# --- the moves


@pytest.mark.parametrize(("before", "after"), list(product(range(5), repeat=2)))
def test_only_the_moves_of_the_table_are_possible(loop: EventLoop, before: int, after: int) -> None:
    stream = Subject(loop, -1)
    stream._state = before
    if after in MOVES[before]:
        stream._move(after)
        assert stream._state == after
    else:
        with pytest.raises(IllegalMove, match=f"from {STATE_NAMES[before]} to {STATE_NAMES[after]}$"):
            stream._move(after)
        assert stream._state == before


def test_the_table_of_the_docstring_is_the_code_s() -> None:
    text = docstring(stream_module)
    for before, afters in MOVES.items():
        for after in afters:
            names = (STATE_NAMES[before], STATE_NAMES[after])
            assert f"{names[0]:<10} --> {names[1]}" in text or names[1] == "CLOSED"
    assert MOVES[CLOSED] == frozenset()
    assert all(CLOSED in afters for before, afters in MOVES.items() if before != CLOSED)


# --- what each call does in each state

CALLS: dict[str, Callable[[Any], object]] = {
    "send": lambda stream: stream.send(b"more"),
    "send_eof": lambda stream: stream.send_eof(),
    "recv": lambda stream: stream.recv(),
    "recv_line": lambda stream: stream.recv_line(),
    "recv_exactly": lambda stream: stream.recv_exactly(1 << 20),
    "recv_until": lambda stream: stream.recv_until(b"|", 1 << 20),
    "unread": lambda stream: stream.unread(b"back"),
    "pause": lambda stream: stream.pause_reading(),
    "resume": lambda stream: stream.resume_reading(),
    "close": lambda stream: stream.close("again"),
    "abort": lambda stream: stream.abort("again"),
}
# Where a call leads; any other leaves the state as it is.
LEADS = {
    ("CONNECTING", "close"): "CLOSED",
    ("CONNECTING", "abort"): "CLOSED",
    ("OPEN", "close"): "CLOSING",
    ("OPEN", "abort"): "CLOSED",
    ("CLOSING", "abort"): "CLOSED",
    ("LINGERING", "abort"): "CLOSED",
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("state", ["OPEN", "CLOSING", "LINGERING", "CLOSED"])
def test_where_a_call_leads(pair: Pair, state: str, call: str) -> None:
    pair.go_to(state)
    reason = pair.stream._reason
    CALLS[call](pair.stream)
    assert pair.state == LEADS.get((state, call), state)
    moved = (state, call) in LEADS
    assert pair.stream._reason == ("again" if moved else reason)
    pair.turns()
    assert pair.calls.count("on_close") == (pair.state == "CLOSED")


@pytest.mark.parametrize("call", CALLS)
def test_where_a_call_leads_while_connecting(connecting: Connecting, call: str) -> None:
    CALLS[call](connecting.stream)
    assert connecting.state == LEADS.get(("CONNECTING", call), "CONNECTING")
    connecting.turns()
    assert connecting.calls.count("on_close") == (connecting.state == "CLOSED")


@pytest.mark.parametrize("state", ["CLOSING", "LINGERING", "CLOSED"])
def test_what_is_not_open_takes_and_gives_nothing(pair: Pair, state: str) -> None:
    pair.go_to(state)
    unsent = pair.stream.unsent
    pair.stream.send(b"more")
    assert pair.stream.unsent == unsent
    pair.stream.unread(b"back")
    assert (pair.stream.recv(), pair.stream.peek(), pair.stream.recv_line()) == (b"", b"", None)
    assert (pair.stream.recv_exactly(1), pair.stream.recv_exactly(0), pair.stream.recv_until(b"b")) == (None, b"", None)


def test_the_owner_is_told_once_and_never_from_inside_a_call(pair: Pair) -> None:
    pair.stream.abort("first")
    pair.stream.abort("second")
    assert (pair.stream._reason, pair.calls, pair.owner.ended) == ("first", [], [])
    pair.turns()
    assert (pair.calls, pair.owner.ended) == (["on_close"], [pair.stream])
    assert pair.stream._fileno() == -1


# --- CONNECTING


def test_what_is_sent_while_connecting_arrives(connecting: Connecting) -> None:
    connecting.stream.send(b"one ")
    connecting.stream.send(b"two")
    assert connecting.stream.unsent == 7
    connecting.establish()
    assert connecting.state == "OPEN"
    connecting.until(lambda: connecting.peer.received == b"one two")
    connecting.peer.send(b"three")
    connecting.until(lambda: connecting.took == b"three")


def test_an_end_that_was_sent_while_connecting_follows_what_was_kept(connecting: Connecting) -> None:
    connecting.stream.send(b"all")
    connecting.stream.send_eof()
    with pytest.raises(ValueError, match="send_eof"):
        connecting.stream.send(b"more")
    connecting.establish()
    connecting.until(lambda: connecting.peer.end == "eof")
    assert (connecting.state, connecting.peer.received) == ("OPEN", b"all")


def test_an_end_alone_that_was_sent_while_connecting(connecting: Connecting) -> None:
    connecting.stream.send_eof()
    connecting.establish()
    connecting.until(lambda: connecting.peer.end == "eof")
    assert (connecting.state, connecting.peer.received) == ("OPEN", b"")


def test_close_while_connecting_writes_what_is_kept_first(connecting: Connecting) -> None:
    connecting.stream.send(b"last words")
    connecting.stream.close("bye")
    assert connecting.state == "CLOSING"
    connecting.stream.pause_reading()  # changes no interest of the stage
    connecting.stream.resume_reading()
    connecting.stream.send(b"dropped")
    connecting.establish()
    connecting.until(lambda: connecting.peer.end == "eof" and connecting.state == "CLOSED")
    assert (connecting.peer.received, connecting.calls) == (b"last words", ["on_close"])
    assert connecting.error is None


def test_a_relay_waits_for_its_target_to_be_open(connecting: Connecting) -> None:
    source = Pair(connecting.loop)
    source.stream.relay_to(connecting.stream)
    source.peer.send(b"through")
    connecting.turns()
    connecting.establish()
    connecting.until(lambda: connecting.peer.received == b"through")
    source.end()


def test_a_peer_that_refuses_is_an_error(loop: EventLoop) -> None:
    told: list[BaseException | None] = []
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # so nobody listens at this port, and no other process can get it
        host, port = silent.getsockname()
        stream = OutgoingStream(loop, Owner(), f"{host}:{port}", Path(), 10.0)
        stream.on_close = lambda stream, error: told.append(error)
        turn_until(loop, lambda: told)
    assert isinstance(told[0], ConnectionRefusedError)


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1", "unix:/nowhere/at/all", "unix:/" + "x" * 200])
def test_what_fails_at_once_is_told_later(loop: EventLoop, address: str) -> None:
    stream = OutgoingStream(loop, Owner(), address, Path("/"), 10.0)
    told: list[BaseException | None] = []
    stream.on_close = lambda stream, error: told.append(error)
    assert (stream._state, told) == (CONNECTING, [])
    loop.turn(0.0)
    assert (stream._state, stream._reason) == (CLOSED, "connect failed")
    assert isinstance(told[0], (ValueError, OSError))


def test_a_peer_that_does_not_answer_in_time(loop: EventLoop, contexts: Contexts, authority: Path) -> None:
    one = Connecting(loop, contexts, ClientTls(ca_file=authority / "ca.pem"), timeout=30.0)
    one.accept()
    one.turns()
    pass_time(loop, 29.0)
    assert one.state == "CONNECTING"
    pass_time(loop, 31.0)
    assert (one.state, str(one.error)) == ("CLOSED", "[Errno 110] the TLS handshake was not done in time")
    one.end()


def test_a_reset_while_connecting(connecting: Connecting) -> None:
    connecting.stream.send(b"kept")
    connecting.accept()
    connecting.peer.reset()
    connecting.until(lambda: connecting.state == "CLOSED", reads=False)
    connecting.turns()
    assert connecting.calls[-1] == "on_close"
    assert isinstance(connecting.error, OSError)


def test_a_stage_is_watched_and_timed_until_it_is_over(loop: EventLoop) -> None:
    ours, theirs = tcp_pair()
    stream = Subject(loop, ours.detach())
    stream._state = CONNECTING
    seen: list[str] = []
    stream._await_opening(READ, lambda mask: seen.append("event"), 30.0, lambda: seen.append("late"))
    stream.on_readable = lambda stream: seen.append("readable")
    theirs.sendall(b"x")
    turn_until(loop, lambda: seen)
    assert set(seen) == {"event"}
    stream._stage_over()
    seen.clear()
    loop.turn(0.0)
    pass_time(loop, 31.0)
    assert seen == []
    stream._opened()
    stream._start()
    turn_until(loop, lambda: seen)
    assert (seen[0], stream._state) == ("readable", OPEN)
    stream.abort()
    loop.turn(0.0)
    theirs.close()


# --- OPEN: reading


def test_bytes_arrive(pair: Pair) -> None:
    pair.peer.send(b"hello")
    pair.until(lambda: pair.took == b"hello")
    assert (pair.stream.bytes_in, pair.stream.eof, pair.state) == (5, False, "OPEN")


def test_many_bytes_arrive_in_order(pair: Pair) -> None:
    data = bytes(range(256)) * 4096
    pair.feed(data)
    pair.until(lambda: len(pair.took) == len(data))
    assert pair.took == data


def test_what_is_left_stays_and_lines_come_from_it(pair: Pair) -> None:
    pair.stream.on_readable = lambda stream: pair.calls.append("on_readable")
    pair.peer.send(b"one\ntwo\nthr")
    pair.until(lambda: pair.stream.bytes_in == 11)
    assert pair.stream.peek() == b"one\ntwo\nthr"
    assert [pair.stream.recv_line(), pair.stream.recv_line(), pair.stream.recv_line()] == [b"one\n", b"two\n", None]
    pair.stream.unread(b"two\n")
    assert pair.stream.recv(6) == b"two\nth"
    pair.stream.unread(bytearray(b"th"))
    with pytest.raises(LineTooLong):
        pair.stream.recv_line(3)
    assert pair.stream.peek() == b"thr"


def test_the_last_line_needs_no_end(pair: Pair) -> None:
    lines: list[bytes | None] = []
    pair.stream.on_readable = lambda stream: lines.append(stream.recv_line())
    pair.peer.send(b"rest")
    pair.peer.finish()
    pair.until(lambda: pair.state != "OPEN")
    assert lines == [None, b"rest"]


def test_a_paused_stream_is_not_called_until_it_resumes(pair: Pair) -> None:
    pair.stream.pause_reading()
    pair.peer.send(b"hello")
    pair.turns(10)
    assert (pair.calls, pair.stream.bytes_in) == ([], 0)
    pair.stream.resume_reading()
    pair.until(lambda: pair.took == b"hello")


def test_resuming_calls_again_for_what_is_in_the_buffer(pair: Pair) -> None:
    pair.stream.on_readable = lambda stream: pair.calls.append("on_readable")
    pair.peer.send(b"hello")
    pair.until(lambda: pair.calls == ["on_readable"])
    pair.turns()
    assert pair.calls == ["on_readable"]
    pair.stream.resume_reading()
    pair.stream.resume_reading()
    assert pair.calls == ["on_readable"]
    pair.turns(1)
    assert pair.calls == ["on_readable"] * 2


def test_no_more_is_read_than_fits_into_the_buffer(pair: Pair) -> None:
    pair.stream.on_readable = lambda stream: None
    data = bytes(6 * RECV_SIZE)
    pair.feed(data)
    pair.until(lambda: len(pair.stream.peek()) >= READ_AHEAD)
    pair.turns(10)
    assert len(pair.stream.peek()) < READ_AHEAD + RECV_SIZE
    got = 0
    while got < len(data):
        got += len(pair.stream.recv())
        pair.turns(1)
    assert got == pair.stream.bytes_in == len(data)


def test_a_callback_that_is_set_late_gets_what_has_come(pair: Pair) -> None:
    pair.stream.on_readable = None
    pair.peer.send(b"early")
    pair.turns(10)
    assert pair.stream.bytes_in == 0
    pair.stream.on_readable = pair.on_readable
    pair.until(lambda: pair.took == b"early")


def test_the_peers_end_is_told_once_and_closes(pair: Pair) -> None:
    pair.peer.send(b"all")
    pair.peer.finish()
    pair.until(lambda: pair.state == "CLOSED")
    pair.turns()
    assert (pair.took, pair.stream.eof, pair.stream.reset) == (b"all", True, False)
    assert pair.calls[-2:] == ["on_readable", "on_close"]
    assert (pair.error, pair.stream._reason) == (None, "eof")
    pair.until(lambda: pair.peer.end == "eof")


def test_after_the_peers_end_what_is_kept_is_written_first(pair: Pair) -> None:
    size = pair.keep()
    pair.peer.finish()
    pair.stream.on_readable = pair.on_readable
    pair.until(lambda: pair.state == "CLOSED")
    assert pair.stream._reason == "eof"
    pair.until(lambda: pair.peer.end)
    assert (len(pair.peer.received), pair.peer.end) == (size, "eof")


def test_a_reset_ends_it_and_is_the_error(pair: Pair) -> None:
    pair.peer.reset()
    pair.until(lambda: pair.state == "CLOSED", reads=False)
    pair.turns()
    assert (pair.stream.eof, pair.stream.reset, pair.stream._reason) == (True, True, "reset")
    assert pair.calls == ["on_close"]
    assert isinstance(pair.error, ConnectionResetError)


def test_a_reset_is_noticed_while_paused_too(pair: Pair) -> None:
    pair.stream.pause_reading()
    pair.turns()
    pair.peer.reset()
    pair.until(lambda: pair.calls == ["on_close"], reads=False)
    assert pair.stream.reset


def test_an_end_without_an_alert_is_a_reset_over_tls(loop: EventLoop, contexts: Contexts) -> None:
    pair = Pair(loop, contexts)
    pair.peer.close()
    pair.until(lambda: pair.calls == ["on_close"], reads=False)
    assert "close_notify" in str(pair.error)


@pytest.mark.parametrize("paused", [False, True])
def test_a_fault_in_a_callback_is_the_owners(pair: Pair, paused: bool) -> None:
    def fails(stream: object) -> None:
        raise SystemExit(3)

    pair.stream.on_readable = fails
    if paused:
        pair.stream.unread(b"x")
        pair.stream.pause_reading()
        pair.stream.resume_reading()
    else:
        pair.peer.send(b"x")
    pair.until(lambda: pair.owner.faults)
    ((what, error),) = pair.owner.faults
    assert (what, type(error), pair.state) == ("on_readable", SystemExit, "OPEN")
    pair.owner.faults.clear()


# --- OPEN: writing


def test_what_is_sent_arrives_at_once(pair: Pair) -> None:
    for data in (b"one ", bytearray(b"two "), memoryview(b"three"), b""):
        pair.stream.send(data)
    assert (pair.stream.unsent, pair.stream.bytes_out) == (0, 13)
    pair.until(lambda: pair.peer.received == b"one two three")


def test_what_the_kernel_does_not_take_is_kept_and_written_later(pair: Pair) -> None:
    size = pair.congest()
    assert pair.stream.unsent > HIGH_WATER
    pair.until(lambda: len(pair.peer.received) == size)
    assert (pair.stream.unsent, pair.stream.congested, pair.stream.bytes_out) == (0, False, size)
    assert pair.calls == ["on_writable"]


def test_nothing_is_read_while_congested(pair: Pair) -> None:
    size = pair.congest()
    pair.peer.send(b"hello")
    pair.turns(10)
    assert pair.stream.bytes_in == 0
    pair.until(lambda: pair.took == b"hello")
    pair.until(lambda: len(pair.peer.received) == size)


def test_send_eof_follows_what_is_kept_and_receiving_goes_on(pair: Pair) -> None:
    size = pair.keep()
    pair.stream.send_eof()
    pair.stream.send_eof()
    pair.until(lambda: pair.peer.end)
    assert (pair.peer.end, len(pair.peer.received), pair.state) == ("eof", size, "OPEN")
    with pytest.raises(ValueError, match="send_eof"):
        pair.stream.send(b"more")
    pair.peer.send(b"answer")
    pair.until(lambda: pair.took == b"answer")
    pair.peer.finish()
    pair.until(lambda: pair.state == "CLOSED")
    pair.turns()
    assert (pair.error, pair.stream._reason) == (None, "eof")


def test_sending_to_a_peer_that_is_gone_is_a_reset_and_raises_nothing(pair: Pair) -> None:
    pair.stream.pause_reading()
    pair.turns()
    pair.peer.reset()
    pair.stream.send(b"x")
    pair.stream.send(b"y")
    pair.stream.send(b"z")
    assert (pair.state, pair.stream.reset) == ("CLOSED", True)


# --- CLOSING and LINGERING


def test_close_writes_what_is_kept_and_throws_away_what_comes(pair: Pair) -> None:
    size = pair.keep()
    pair.stream.close("bye")
    assert pair.state == "CLOSING"
    pair.peer.send(b"unwanted")
    pair.until(lambda: pair.peer.end)
    assert (len(pair.peer.received), pair.peer.end, pair.state) == (size, "eof", "LINGERING")
    pair.peer.finish()
    pair.until(lambda: pair.calls[-1:] == ["on_close"])
    assert (pair.took, pair.error, pair.stream._reason) == (b"", None, "bye")


@pytest.mark.parametrize("state", ["CLOSING", "LINGERING"])
def test_a_reset_while_closing(pair: Pair, state: str) -> None:
    pair.go_to(state)
    pair.peer.reset()
    pair.until(lambda: pair.calls[-1:] == ["on_close"], reads=False)
    assert pair.state == "CLOSED"


def test_the_peers_end_while_closing_is_waited_for_no_longer(pair: Pair) -> None:
    size = pair.keep()
    pair.stream.close("bye")
    pair.peer.finish()
    pair.until(lambda: pair.peer.end == "eof")
    pair.turns()
    assert (pair.state, len(pair.peer.received)) == ("CLOSED", size)


def test_a_close_in_a_callback_takes_effect_after_it(pair: Pair) -> None:
    def last(stream: Any) -> None:
        stream.close("done")
        stream.send(b"dropped")
        pair.calls.append(pair.state)

    pair.stream.on_readable = last
    pair.stream.send(b"answer")
    pair.peer.send(b"x")
    pair.until(lambda: pair.peer.end == "eof")
    assert (pair.calls, pair.peer.received) == (["CLOSING"], b"answer")


def test_what_comes_in_the_turn_of_a_close_is_thrown_away(pair: Pair) -> None:
    """Another connection's plugin may close it, and its event be the next in this turn."""
    pair.peer.send(b"late")
    wait_readable(pair.stream._fileno())
    pair.stream.close("bye")
    pair.turns()
    assert (pair.calls, pair.took, pair.state) == ([], b"", "LINGERING")


@pytest.mark.parametrize(("sends", "state"), [(False, "CLOSED"), (True, "LINGERING")])
def test_what_is_no_connection_lingers_only_for_a_peer_that_has_sent_more(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, sends: bool, state: str
) -> None:
    monkeypatch.setattr(Subject, "_always_lingers", lambda stream: False)
    pair.stream.pause_reading()
    if sends:
        pair.peer.send(b"x")
        wait_readable(pair.stream._fileno())
    pair.stream.close()
    pair.turns()
    assert pair.state == state


def test_a_program_can_t_make_the_close_wait(pair: Pair) -> None:
    """SO_LINGER on the connection that it has been given, and a peer that does not read: close(2) would wait."""
    with socket.socket(fileno=os.dup(pair.stream._fd)) as program:
        pair.stream._share()
        program.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
        pair.stream.abort()
        pair.turns()
        assert struct.unpack("ii", program.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, 8))[0] == 0


def test_lingering_ends_when_the_peer_says_nothing(pair: Pair) -> None:
    pair.go_to("LINGERING")
    pass_time(pair.loop, LINGER_LOOK + 0.1)
    assert (pair.state, pair.calls) == ("CLOSED", ["on_close"])


def test_lingering_goes_on_while_enough_comes_and_ends_all_the_same(pair: Pair) -> None:
    pair.go_to("LINGERING")
    begun, looks = pair.loop.now, 0
    pair.stream._linger_until = begun + LINGER_TIME + 3600  # the loop's own time goes on too
    passed = 0.0
    while pair.state == "LINGERING":
        pair.peer.send(bytes(LINGER_LEAST))
        pair.until(lambda: pair.stream._lingered >= LINGER_LEAST)
        passed += LINGER_LOOK
        pair.stream._linger_until = pair.loop.now + LINGER_TIME - passed + LINGER_LOOK
        pass_time(pair.loop, LINGER_LOOK + 0.1)
        looks += 1
    assert looks == LINGER_TIME / LINGER_LOOK
    assert pair.calls == ["on_close"]


def test_lingering_ends_when_too_little_comes(pair: Pair) -> None:
    pair.go_to("LINGERING")
    pair.peer.send(b"little")
    pair.until(lambda: pair.stream._lingered)
    pass_time(pair.loop, LINGER_LOOK + 0.1)
    assert pair.state == "CLOSED"


def test_abort_is_a_reset_to_the_peer(pair: Pair) -> None:
    pair.keep()
    pair.stream.abort("gone")
    assert (pair.state, pair.stream.unsent, pair.stream.congested) == ("CLOSED", 0, False)
    pair.turns()
    pair.until(lambda: pair.peer.end)
    assert pair.peer.end == "reset"


# --- TLS


def test_a_handshake_goes_on_once_the_kernel_takes_more(loop: EventLoop, contexts: Contexts) -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    in_the_way = fill(ours.fileno())
    stream = Subject(loop, ours.detach())
    stream._state = CONNECTING
    transport = TlsTransport(partial(contexts[0].wrap_bio, server_side=True), stream._fileno())
    outcome: list[object] = []
    handshake = Handshake(stream, transport, lambda: outcome.append("done"), outcome.append)
    stream._await_opening(READ, handshake.on_event)
    peer = Peer(theirs, contexts[1])
    peer.begin()
    turn_until(loop, lambda: transport.wanted == READ | WRITE)
    theirs.setblocking(True)
    while in_the_way:
        in_the_way -= len(theirs.recv(min(in_the_way, 65536)))
    theirs.setblocking(False)
    turn_until(loop, lambda: outcome, peer)
    assert outcome == ["done"]
    assert transport.tls is not None
    stream.abort()
    loop.turn(0.0)
    peer.close()


def test_after_its_end_no_event_comes_although_another_process_still_has_the_file(pair: Pair, loop: EventLoop) -> None:
    """The dispatcher closes its copy of a connection when it gets to run, which may be after the worker has closed."""
    copy = os.dup(pair.stream._fileno())
    try:
        pair.stream.abort("over")
        turn_until(loop, lambda: pair.stream._is_closed() and pair.stream._fileno() == -1)
        pair.peer.sock.close()
        before = loop.events
        loop.turn(0.01)
        assert loop.events == before
    finally:
        os.close(copy)
