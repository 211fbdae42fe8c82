"""A stream against a simple model, over real sockets: whatever is done in whatever order.

The model knows what the peer has sent and what the stream was given to send. The stream has to deliver both whole, in
order and once, unless one side has cut it short; to call back in the documented order; to move between its states as
documented; and to let the loop rest when there is nothing to do.
"""

from __future__ import annotations

import socket
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from poolsrv import FrameTooLong, LineTooLong
from poolsrv.core.event_loop import EventLoop
from poolsrv.net.descriptor import CLOSED, CLOSING, LINGERING, MOVES, OPEN
from poolsrv.net.input_buffer import READ_AHEAD, RECV_SIZE
from poolsrv.net.stream import HIGH_WATER, LINGER_LOOK, LINGER_TIME, LOW_WATER
from tests.helpers.depth import machine_settings
from tests.helpers.streams import Owner, Peer, Subject, pass_time, tcp_pair, turn_until

SIZES = st.sampled_from([1, 2, 100, 5000, RECV_SIZE, RECV_SIZE + 1, 200_000])
LINES = st.lists(st.sampled_from([b"\n", b"a\n", b"|", b"bc", b"long" * 2000, b"\r\n"]), min_size=1, max_size=6)
MOST_TURNS = 60  # until the loop has to rest, if nobody does anything


def reachable(state: int) -> set[int]:
    found = {state}
    for after in MOVES[state]:
        found |= reachable(after)
    return found


class Side:
    """A stream with its peer, and what each has been given to send.

    :ivar sent: by the peer.
    :ivar given: to the stream, while it took it.
    :ivar taken: what the plugin has taken.
    :ivar relayed: what a relay has taken, in the order of the stream, as parts of ``sent``.
    """

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self.owner = Owner()
        ours, theirs = tcp_pair()
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self.peer = Peer(theirs)
        self.stream = Subject(loop, ours.detach(), self.owner)
        self.stream._start()
        self.sent = bytearray()
        self.given = bytearray()
        self.taken = bytearray()
        self.calls: list[str] = []
        self.policy = "all"
        self.paused = False
        self.finished = False  # the peer has finished sending
        self.gone = False  # the peer has reset, or its socket is closed
        self.ended = ""  # what was called: close, abort
        self.eof_called = 0
        self.leaves = False  # at the end of what the peer has sent, the plugin has left some: nobody gets that
        self.state = OPEN
        self.stream.on_readable = self._on_readable
        self.stream.on_writable = self._on_writable
        self.stream.on_close = self._on_close

    def _on_readable(self, stream: Any) -> None:
        assert "close" not in self.calls
        assert stream._state == OPEN
        assert not self.paused or stream.eof  # the end that a relay has met is told: or nothing would close it
        self.eof_called += stream.eof
        self.calls.append("readable")
        match self.policy:
            case "all":
                while data := stream.recv():
                    self.taken += data
            case "some":
                self.taken += stream.recv(3)
            case "pause":
                self.pause()
            case "echo":
                data = stream.recv(1000)
                self.taken += data
                self.send(data)
            case "close":
                self.close()
        self.leaves = bool(stream.eof and stream.peek())

    def _on_writable(self, stream: Any) -> None:
        assert "close" not in self.calls
        assert not stream.congested
        assert stream.unsent < LOW_WATER
        self.calls.append("writable")

    def _on_close(self, stream: Any, error: BaseException | None) -> None:
        assert "close" not in self.calls
        assert stream._state == CLOSED
        assert error is None or self.gone
        self.calls.append("close")

    def pause(self) -> None:
        self.paused = True
        self.stream.pause_reading()

    def send(self, data: bytes) -> None:
        takes = self.stream._state == OPEN and not self.stream._sends_eof
        try:
            self.stream.send(data)
        except ValueError:
            assert not takes
            assert self.stream._sends_eof
            return
        if takes:
            self.given += data

    def close(self) -> None:
        if self.stream._state == OPEN:
            self.ended = "close"
        self.stream.close()

    def check(self) -> None:
        """What holds at any time."""
        stream = self.stream
        assert not self.owner.faults
        assert stream._state in reachable(self.state)
        self.state = stream._state
        assert stream.unsent <= HIGH_WATER or stream.congested
        assert not stream.congested or stream.unsent >= LOW_WATER
        assert self.given.startswith(bytes(self.peer.received))
        assert len(self.peer.received) <= stream.bytes_out <= len(self.given)
        if self.state in (OPEN, CLOSING):
            assert stream.bytes_out + stream.unsent == len(self.given)
        else:
            assert stream.unsent == 0
        assert not stream.eof or self.finished or self.gone
        assert not stream.reset or self.gone
        assert self.eof_called <= 1 or self.paused or self.policy != "all"
        if "close" in self.calls:
            assert self.state == CLOSED
            assert self.calls.count("close") == 1
            assert stream._fileno() == -1


class Streams(RuleBasedStateMachine):
    """One stream, and another one that it may be relayed to."""

    @initialize(policy=st.sampled_from(["all", "all", "some", "pause", "echo", "none"]))
    def begin(self, policy: str) -> None:
        self.loop = EventLoop()
        self.side = Side(self.loop)
        self.side.policy = policy
        self.target = Side(self.loop)
        self.relayed = bytearray()  # by former relays
        self.relay_from = -1  # where in what was sent the present one began; -1: there is none
        self.is_lossy = False  # a relay was cut short

    @property
    def consumed(self) -> int:
        return len(self.side.taken) + len(self.relayed)

    # --- the peer

    @rule(size=SIZES)
    def peer_sends(self, size: int) -> None:
        self._peer_sends(bytes((len(self.side.sent) + i) % 251 for i in range(min(size, 1000))) * max(size // 1000, 1))

    @rule(parts=LINES)
    def peer_sends_lines(self, parts: list[bytes]) -> None:
        self._peer_sends(b"".join(parts))

    def _peer_sends(self, data: bytes) -> None:
        side = self.side
        if side.finished or side.gone:
            return
        try:
            side.sent += data[: side.peer.sock.send(data)]
        except BlockingIOError:
            pass
        except OSError:
            side.gone = True  # the stream has reset it

    @rule()
    def peer_finishes(self) -> None:
        if not (self.side.finished or self.side.gone):
            self.side.finished = True
            try:
                self.side.peer.sock.shutdown(socket.SHUT_WR)
            except OSError:
                self.side.gone = True

    @rule(which=st.sampled_from(["side", "side", "target"]))
    def peer_resets(self, which: str) -> None:
        side: Side = getattr(self, which)
        if side.peer.sock.fileno() >= 0:
            side.gone = True
            side.peer.reset()

    @rule(which=st.sampled_from(["side", "target"]))
    def peer_reads(self, which: str) -> None:
        getattr(self, which).peer.take()

    # --- the stream

    @rule(size=SIZES, times=st.sampled_from([1, 1, 1, 8]))
    def send(self, size: int, times: int) -> None:
        for _ in range(times):
            self.side.send(bytes(i % 249 for i in range(min(size, 997))) * max(size // 997, 1))

    @rule()
    def send_eof(self) -> None:
        self.side.stream.send_eof()

    @rule()
    def pause(self) -> None:
        self.side.pause()

    @rule()
    def resume(self) -> None:
        self.side.paused = False
        self.side.stream.resume_reading()

    @rule(policy=st.sampled_from(["all", "all", "some", "pause", "echo", "none", "close"]))
    def behave(self, policy: str) -> None:
        self.side.policy = policy

    @rule(limit=st.sampled_from([0, 1, 7, 5000, RECV_SIZE, 1 << 20]))
    def recv(self, limit: int) -> None:
        data = self.side.stream.recv(limit)
        assert len(data) <= limit
        self.side.taken += data

    @rule(limit=st.sampled_from([1, 5, 6000, RECV_SIZE]))
    def recv_line(self, limit: int) -> None:
        there, is_last = self.side.stream.peek(), self.side.stream.eof
        try:
            line = self.side.stream.recv_line(limit)
        except LineTooLong:
            assert len(there) >= limit
            assert b"\n" not in there[:limit]
            return
        assert line is None or line.count(b"\n") == line.endswith(b"\n")
        assert line is not None or (b"\n" not in there[:limit] and not (there and is_last))
        self.side.taken += line or b""

    @rule(size=st.sampled_from([0, 1, 100, 70_000]))
    def recv_exactly(self, size: int) -> None:
        there = len(self.side.stream.peek())
        data = self.side.stream.recv_exactly(size)
        assert (data is None) == (there < size)
        assert data is None or len(data) == size
        self.side.taken += data or b""

    @rule(separator=st.sampled_from([b"|", b"bc|", b"\r\n"]), limit=st.sampled_from([3, 9000, RECV_SIZE]))
    def recv_until(self, separator: bytes, limit: int) -> None:
        there = self.side.stream.peek()
        try:
            data = self.side.stream.recv_until(separator, limit)
        except FrameTooLong:
            assert separator not in there[:limit]
            return
        assert (data is None) == (separator not in there[:limit])
        assert data is None or (data.endswith(separator) and data.count(separator) == 1)
        self.side.taken += data or b""

    @precondition(lambda self: self.side.stream._state == OPEN and self.relay_from < 0 and not self.is_lossy)
    @rule(size=st.sampled_from([1, 10, 5000]))
    def unread(self, size: int) -> None:
        back = bytes(self.side.taken[-size:]) if not self.relayed else b""
        if back and not self.side.stream.eof:
            del self.side.taken[-len(back) :]
            self.side.stream.unread(back)

    @rule(which=st.sampled_from(["side", "side", "target"]))
    def close(self, which: str) -> None:
        getattr(self, which).close()

    @rule()
    def abort(self) -> None:
        if self.side.stream._state != CLOSED:
            self.side.ended = "abort"
        self.side.gone = self.side.stream._state == CLOSED and self.side.gone
        self.side.stream.abort()

    @precondition(lambda self: self.relay_from < 0 and not self.is_lossy)
    @rule(limit=st.sampled_from([None, 0, 1, 3000, 100_000]))
    def relay(self, limit: int | None) -> None:
        self.relay_from = self.consumed
        self.side.stream.relay_to(self.target.stream, limit, self._relayed)

    def _relayed(self, moved: int) -> None:
        sent = self.side.sent[self.relay_from : self.relay_from + moved]
        assert len(sent) == moved
        self.relayed += sent
        self.relay_from = -1
        whole = self.target.stream._state == OPEN and not self.target.gone
        self.is_lossy = self.is_lossy or not whole

    # --- time

    @rule(turns=st.integers(1, 4))
    def turn(self, turns: int) -> None:
        for _ in range(turns):
            self.loop.turn(0)

    @rule(seconds=st.sampled_from([0.5, LINGER_LOOK + 0.1, LINGER_TIME + 0.1]))
    def time_passes(self, seconds: float) -> None:
        pass_time(self.loop, seconds)

    # --- what holds

    @invariant()
    def each_side_is_right(self) -> None:
        self.side.check()
        self.check_target()

    @invariant()
    def what_comes_in_is_whole_and_in_order(self) -> None:
        side = self.side
        if self.is_lossy:
            return
        there = side.stream.peek()
        assert len(there) < max(READ_AHEAD, 70_000) + RECV_SIZE * 2
        if not self.relayed and self.relay_from < 0:
            assert side.sent.startswith(side.taken + there)
        assert side.stream.bytes_in <= len(side.sent)
        if side.state == OPEN and self.relay_from < 0:
            assert self.consumed + len(there) == side.stream.bytes_in

    def check_target(self) -> None:
        target = self.target
        moved = bytes(self.relayed)
        if self.relay_from >= 0:
            moved += bytes(self.side.sent[self.relay_from :])
        if not self.is_lossy:
            assert moved.startswith(bytes(target.peer.received))
        assert not target.owner.faults
        assert target.stream._state in reachable(target.state)
        target.state = target.stream._state

    def teardown(self) -> None:
        if hasattr(self, "side"):
            try:
                self.settle()
            finally:
                for side in (self.side, self.target):
                    side.policy = "none"
                    side.stream.abort()
                    side.gone = True
                    self.loop.turn(0)
                    side.peer.close()
                self.loop.close()

    def settle(self) -> None:
        """Both sides take all that there is: it has to arrive, and then the loop has to rest."""
        side = self.side
        side.policy, side.paused = "all", False
        side.stream.resume_reading()
        side.taken += side.stream.recv(1 << 30)
        turn_until(self.loop, self.has_settled, side.peer, self.target.peer)
        self.each_side_is_right()
        self.what_comes_in_is_whole_and_in_order()
        self.check_that_it_rests()
        if side.gone or side.ended == "abort" or self.is_lossy or self.is_cut_short():
            return
        assert side.peer.received == side.given
        if not side.ended:
            assert self.is_relayed() or self.consumed == len(side.sent) or side.leaves
            assert side.state == (CLOSED if side.finished else OPEN)
            assert side.peer.end == ("eof" if side.finished or side.stream._sends_eof else "")

    def has_settled(self) -> bool:
        side = self.side
        if side.gone or side.ended == "abort" or self.is_lossy or self.is_cut_short():
            return True
        if side.ended or side.stream._state in (CLOSING, LINGERING):
            return len(side.peer.received) == len(side.given)
        is_all_in = (side.stream.bytes_in == len(side.sent) and self.relay_from < 0) or self.is_relayed()
        is_all_out = len(side.peer.received) == len(side.given)
        return is_all_in and is_all_out and (not side.finished or side.stream._state == CLOSED)

    def is_cut_short(self) -> bool:
        """Whether there is a relay, to a target that takes no more: what has got there can't be told."""
        return self.relay_from >= 0 and (self.target.stream._state != OPEN or self.target.gone)

    def is_relayed(self) -> bool:
        return self.relay_from >= 0 and len(self.target.peer.received) == len(self.side.sent) - len(self.side.taken)

    def check_that_it_rests(self) -> None:
        for _ in range(MOST_TURNS):
            before = self.loop.events
            for side in (self.side, self.target):
                side.peer.take()
            self.loop.turn(0)
            if self.loop.events == before and not self.loop._put_off:
                return
        raise AssertionError("the loop spins")


TestStreams = Streams.TestCase
TestStreams.settings = machine_settings(25, 30)
