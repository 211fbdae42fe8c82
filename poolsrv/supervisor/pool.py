"""A pool, as the supervisor has it: a process of its own, what it has said, and how it is told something or ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from ..core.event_loop import READ, EventLoop, Timer
from ..core.listening_sockets import ListeningSocket
from ..core.pid_file import PidFile
from ..core.stack_dump import DUMP_TIME, HANG_SIGNAL, StackDumpFile
from ..ipc import pool_protocol
from ..ipc.pool_link import BadMessage, Message, PoolLink
from ..ipc.pool_protocol import LEAVING, SEALED, STARTING

log = logging.getLogger("poolsrv.supervisor")

EXIT_FAILED: Final = 1
START_TIMEOUT: Final = 60.0  # seconds in which a pool has to serve, until it says what its config has
END_MARGIN: Final = 10.0  # seconds after graceful_timeout that a pool has to end by itself
STOP_NOW_MARGIN: Final = 4.0  # the same after it has been told to end at once
MESSAGES_PER_EVENT: Final = 64  # others are to be heard too
MOST_ERRORS: Final = 2000  # lines
MOST_UNHEARD: Final = 1000  # messages of a pool that has ended; the kernel keeps fewer
LATE: Final = 1.0  # seconds: a deadline that comes so much too late was not the pool's to keep


class PoolProcess:
    """Starts it.

    :ivar state: one of the phases of protocol.py.
    :ivar reload: it was started by HUP, beside one that serves.
    :ivar sockets: those that it will use, once it is sealed, by key.
    :ivar new: of these, the ones that it has bound itself.
    :ivar log: where its config has the log, as ``logs.set_up`` takes it.
    :ivar errors: why it can't serve.
    :ivar exit_code: the server's, if it never does.
    :ivar last_heard: when, by the loop's clock.
    :ivar superseded: another one is to follow, and its start is not waited for to the end.
    :ivar given_up: its start was ended for that.
    :ivar ending: it has been told to end at once.
    :raises OSError: it can't be started.
    """

    def __init__(
        self, loop: EventLoop, generation: int, reload: bool, on_message: Callable[[PoolProcess, Message], object]
    ) -> None:
        self.generation = generation
        self.reload = reload
        self.state = STARTING
        self.sockets: dict[str, ListeningSocket] = {}
        self.new: dict[str, ListeningSocket] = {}
        self.pidfile: PidFile | None = None
        self.start_timeout = START_TIMEOUT
        self.graceful_timeout = 0.0
        self.hang_timeout = 0.0
        self.max_draining_pools = 1
        self.log: dict[str, Any] = {}
        self.reopen_logs = False  # once it is sealed
        self.errors: list[str] = []
        self.exit_code = EXIT_FAILED
        self.started_at = self.last_heard = loop.now
        self.served_since = 0.0
        self.superseded = False
        self.given_up = False
        self.ending = False
        self._loop = loop
        self._on_message = on_message
        self._killer: Timer | None = None
        self._patience = 0.0  # seconds that its start has, where it is superseded
        self._watched = True  # for messages
        self._has_ended = False
        self._hang_file = StackDumpFile()
        try:
            self.link, theirs = PoolLink.pair()
        except OSError:
            self._hang_file.close()
            raise
        try:
            self.pid = _spawn(theirs.fileno(), self._hang_file.fileno())
        except OSError:
            self.link.close()
            self._hang_file.close()
            raise
        finally:
            theirs.close()
        self.link.setblocking(False)
        loop.register(self.link.fileno(), READ, lambda _: self.receive())

    def __str__(self) -> str:
        return f"generation {self.generation}, pid {self.pid}"

    # --- what it says

    def receive(self, most: int = MESSAGES_PER_EVENT) -> None:
        """Take what it has said, some of it. What does not fit is logged, and the pool killed."""
        try:
            for _ in range(most):
                if not self._watched or (message := self.link.receive()) is None:
                    return
                self.last_heard = self._loop.now
                if pool_protocol.check(self.state, message, self.pid):
                    self._on_message(self, message)
        except EOFError:
            self._unwatch()  # its end is told by CHLD
        except BadMessage as error:
            self._refuse(f"says what does not fit, {error}")
        except Exception as error:
            log.exception("a message of the pool (%s) can't be acted on", self)
            self._refuse(f"has said what can't be acted on, {error!r}")

    def _refuse(self, why: str) -> None:
        log.error("the pool (%s) %s: killing it", self, why, extra={"reason": why})
        self.fail([f"it {why}"])
        self._unwatch()
        self.kill()

    def fail(self, errors: list[str]) -> None:
        """Note why it can't serve."""
        self.errors += errors[: MOST_ERRORS - len(self.errors)]

    def send(self, kind: str, **fields: Any) -> None:
        """Send it a message. One that takes none is logged; if it is to end, it will be killed at a deadline."""
        try:
            self.link.send(kind, **fields)
        except OSError as error:
            log.warning("the pool (%s) does not listen: %s", self, error.strerror)

    def signal(self, number: signal.Signals) -> None:
        """Send its dispatcher a signal, if that has not ended."""
        if not self._has_ended:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End its dispatcher at once; its workers notice."""
        self.signal(signal.SIGKILL)

    def kill_later(self, seconds: float, send: Callable[[], object]) -> None:
        """Call ``send()``, and kill it, unless it has ended by then, or this is called another time.

        Where this process could not look in time, and so perhaps the pool could do nothing either, it gets as long
        once more.
        """

        def due(at: float) -> None:
            if self._loop.now - at > LATE:
                self.kill_later(seconds, send)
            else:
                send()
                self.kill()

        self.cancel_kill()
        self._killer = self._loop.call_later(seconds, partial(due, self._loop.now + seconds))

    def ask_later(
        self, seconds: float, send: Callable[[str], object], spare_if: Callable[[], bool] = lambda: False
    ) -> None:
        """Have it say where it hangs; call ``send(where)``, and kill it. Unless, as ``kill_later``.

        :param spare_if: asked before it is killed.
        """

        def due(at: float) -> None:
            if self._loop.now - at > LATE:
                self.ask_later(seconds, send, spare_if)
                return
            self.signal(HANG_SIGNAL)
            self.signal(signal.SIGCONT)  # it may have been stopped
            self._killer = self._loop.call_later(DUMP_TIME, asked)

        def asked() -> None:
            if not spare_if():
                send(self._hang_file.describe([]))
                self.kill()

        self.cancel_kill()
        seconds = max(seconds, 0.0)
        self._killer = self._loop.call_later(seconds, partial(due, self._loop.now + seconds))

    def limit_start(self) -> None:
        """It has to serve within ``start_timeout``, or sooner where another one waits for that."""
        if self.superseded and self._patience < self.start_timeout:
            limit, send = self._patience, self._give_up
        else:
            limit, send = self.start_timeout, self._took_too_long
        self.ask_later(self.started_at + limit - self._loop.now, send)

    def supersede(self, patience: float) -> None:
        """HUP has come: another start is to follow. This one is not waited for much longer, should it hang.

        :param patience: seconds from its start, which it has whatever comes, or no start would ever come to its end
            while HUP comes again and again.
        """
        if not self.superseded:
            self.superseded = True
            self._patience = patience
            self.limit_start()

    def _took_too_long(self, where: str) -> None:
        self.fail([f"the pool does not serve after {self.start_timeout:g} seconds, {where}"])

    def _give_up(self, where: str) -> None:
        after = self._loop.now - self.started_at
        log.warning("SIGHUP: the pool (%s) does not serve after %.1f s, %s: another one is tried", self, after, where)
        self.given_up = True

    def cancel_kill(self) -> None:
        """Not to be killed later after all."""
        if self._killer is not None:
            self._killer.cancel()
            self._killer = None

    # --- its end

    def leave(self, why: str) -> None:
        """Tell it to stop: no new connections, the open ones may finish."""
        if self.state == LEAVING:
            return
        if self.state in (STARTING, SEALED):
            self.signal(signal.SIGTERM)  # it may listen to nothing else yet
        self.recycle()
        self.send("stop", why=why)
        self.signal(signal.SIGCONT)  # it may have been stopped

    def recycle(self) -> None:
        """It stops: have it end in time."""
        self.state = LEAVING
        self.kill_later(self.graceful_timeout + END_MARGIN, self._does_not_end)

    def end_now(self) -> None:
        """Tell it to end at once."""
        self.ending = True
        self.send("stop_now")
        self.signal(signal.SIGCONT)
        self.kill_later(STOP_NOW_MARGIN, self._does_not_end)

    def _does_not_end(self) -> None:
        log.error("the pool (%s) does not end: killing it", self)

    def ended(self) -> None:
        """Its dispatcher has been reaped: hear what it has said last, and close the link."""
        self._has_ended = True
        self.receive(MOST_UNHEARD)
        self.cancel_kill()
        self._unwatch()
        self._hang_file.close()
        self._loop.at_end_of_turn(self.link.close)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.unregister(self.link.fileno())


def end_oldest(pools: Iterable[PoolProcess], most: int) -> None:
    """There may only be so many pools that drain: end the oldest early.

    :param pools: in the order of their start.
    """
    draining = [pool for pool in pools if pool.state == LEAVING and not pool.ending]
    for pool in draining[: max(len(draining) - most, 0)]:
        log.warning("the pool (%s) is ended early: more than %d would drain (max_draining_pools)", pool, most)
        pool.end_now()


def _spawn(link: int, hang_file: int) -> int:
    """Start a pool, which inherits these two descriptors."""
    hang_file = os.dup(hang_file)
    try:
        for fd in (link, hang_file):
            os.set_inheritable(fd, True)
        return os.posix_spawn(
            sys.executable,
            _command(link, hang_file),
            os.environ,
            # These would end a pool that does not listen to them yet.
            setsigmask=(signal.SIGUSR1, HANG_SIGNAL),
        )
    finally:
        os.close(hang_file)


def _command(*fds: int) -> list[str]:
    """How a pool is started: with the same interpreter, which looks for poolsrv where this one has found it."""
    # "-m" has the current directory searched first, as it was for this process only if it was started by "-m" too.
    safe = [] if sys.path and sys.path[0] in ("", os.getcwd()) else ["-P"]
    return [sys.executable, *safe, "-m", "poolsrv.dispatcher", *map(str, fds)]
