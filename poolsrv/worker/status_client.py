"""Asks the dispatcher for the server's status, in the worker apart, on a socket that was made before the fork.

Theory. However many clients ask, one question is on its way at a time. Those that come meanwhile share the next one, so
that no answer is older than its question. The dispatcher works for an answer, and does so in the loop that accepts: a
pause of ``PAUSE_SHARE`` times as long as the last answer took comes before the next question. A dispatcher that does
not answer in time hangs; until it answers, whoever asks is told so at once.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial
from typing import Final, Protocol

import msgspec

from ..core.event_loop import HANGUP, READ, EventLoop, Timer
from ..ipc.health import Health, judge, line, readiness
from ..ipc.stats import LONGEST_PAUSE, PAUSE_SHARE, Answer, Status, as_compact_json, as_json

TIMEOUT: Final = 3.0  # seconds; after a reload, the dispatcher may wait for 2 to learn what the former pool has counted
LONGEST_ANSWER: Final = 1 << 26  # bytes

QUESTION: Final = b"status\n"


class ServerReport(msgspec.Struct, frozen=True):
    """The server's status, and the verdict on it.

    :ivar status: the record; None if the dispatcher does not answer.
    :ivar health: ``"well"``, ``"degraded"`` or ``"down"``, as ``poolsrv status --check`` says.
    :ivar reason: why, in a line that begins with ``health``.
    :ivar is_ready: whether the server should get new traffic: not once it has been told to stop.
    :ivar readiness: why, in a line.
    """

    status: Status | None
    health: str
    reason: str
    is_ready: bool
    readiness: str

    def json(self) -> bytes:
        """The record as ``poolsrv status --json`` prints it, without the last line end; ``null`` if there is none."""
        return as_json(self.status) if self.status is not None else b"null"

    def compact_json(self) -> bytes:
        """The same in one line."""
        return as_compact_json(self.status) if self.status is not None else b"null"


def report_on(status: Status) -> ServerReport:
    """Judge a status."""
    health, reason = judge(status)
    is_ready, why = readiness(status)
    return ServerReport(status, health.name.lower(), reason, is_ready, why)


def report_without(why: str) -> ServerReport:
    """Make the report on a server that gives no status."""
    return ServerReport(None, *_down(why), False, f"not ready: {why}")


def _down(why: str) -> tuple[str, str]:
    health, reason = line(Health.DOWN, why)
    return health.name.lower(), reason


Done = Callable[[ServerReport], object]


class AsksForStatus(Protocol):
    """What a worker needs to ask for the status."""

    def ask(self, done: Done) -> None:
        """Ask; ``done(report)`` is called later, once."""


class StatusClient:
    """Runs in the worker apart.

    :param sock: connected to the dispatcher.
    :param guarded: called as ``guarded(what, callback)``: calls a plugin's callback inside the fault boundary.
    """

    def __init__(
        self, loop: EventLoop, sock: socket.socket, guarded: Callable[[str, Callable[[], object]], object]
    ) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._socket = sock
        self._guarded = guarded
        self._asked: list[Done] = []  # those that get the answer that is on its way
        self._next: list[Done] = []
        self._is_asking = False
        self._is_late = False
        self._is_gone = False
        self._pausing = False
        self._asked_at = 0.0
        self._timer: Timer | None = None
        self._received = bytearray()
        loop.register(sock.fileno(), READ, self._on_event)

    def ask(self, done: Done) -> None:
        """Ask; ``done(report)`` is called later, once."""
        if self._is_late or self._is_gone:
            self._loop.at_end_of_turn(lambda: self._tell([done], self._no_answer()))
            return
        self._next.append(done)
        self._ask_next()

    def close_inherited(self) -> None:
        """In a copy of the process: close its copy of the socket."""
        self._socket.close()

    def _ask_next(self) -> None:
        if self._is_asking or self._pausing or not self._next:
            return
        self._asked, self._next = self._next, []
        self._is_asking = True
        self._asked_at = time.monotonic()
        self._timer = self._loop.call_later(TIMEOUT, self._late)
        try:
            self._socket.send(QUESTION, socket.MSG_NOSIGNAL)  # there is room: no other question is on its way
        except OSError:
            self._gone()

    def _on_event(self, mask: int) -> None:
        try:
            data = self._socket.recv(1 << 18) if mask & (READ | HANGUP) else b""
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._gone()
            return
        self._received += data
        if data.endswith(b"\n"):
            answer, self._received = bytes(self._received), bytearray()
            self._answered(answer)
        elif len(self._received) > LONGEST_ANSWER:
            self._gone()

    def _answered(self, answer: bytes) -> None:
        took = time.monotonic() - self._asked_at
        if self._timer is not None:
            self._timer.cancel()
        self._is_asking = self._is_late = False
        asked, self._asked = self._asked, []
        self._pausing = True
        self._loop.call_later(min(took * PAUSE_SHARE, LONGEST_PAUSE), self._end_pause)
        if asked:
            self._tell(asked, _read(answer))

    def _end_pause(self) -> None:
        self._pausing = False
        self._ask_next()

    def _late(self) -> None:
        self._is_late = True
        self._fail()

    def _gone(self) -> None:
        if not self._is_gone:
            self._is_gone = True
            self._loop.unregister(self._socket.fileno())
            if self._timer is not None:
                self._timer.cancel()
            self._fail()

    def _fail(self) -> None:
        asked, self._asked, self._next = [*self._asked, *self._next], [], []
        self._tell(asked, self._no_answer())

    def _no_answer(self) -> ServerReport:
        return report_without(
            "the dispatcher is gone" if self._is_gone else f"the dispatcher does not answer within {TIMEOUT:.0f} s"
        )

    def _tell(self, asked: list[Done], report: ServerReport) -> None:
        for done in asked:
            self._guarded("server_report", partial(done, report))


def _read(answer: bytes) -> ServerReport:
    try:
        status = msgspec.json.decode(answer, type=Answer).status
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        return report_without(f"the dispatcher's answer can't be read: {error}")
    return report_on(status) if status is not None else report_without("the dispatcher can't tell the status")
