"""The handle of a pool's process: what the pool has said, how the supervisor talks to it, and how it is ended."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from ..core.event_loop import READ, EventLoop, Timer
from ..core.hang_signal import HANG_SIGNAL
from ..core.listening_sockets import ListeningSocket
from ..core.pid_file import PidFile
from ..core.stack_dump import DUMP_LATE, DUMP_TIME, StackDumpFile
from ..ipc import pool_protocol
from ..ipc.pool_link import VERSION, BadMessage, Message, PoolLink, send_sockets
from ..ipc.pool_protocol import LEAVING, SEALED, STARTING
from .interpreter import PoolInterpreter

log = logging.getLogger("poolsrv.supervisor")

EXIT_FAILED: Final = 1
START_TIMEOUT: Final = 60.0  # seconds that a pool has until it serves, before its config says otherwise
END_MARGIN: Final = 10.0  # seconds after graceful_timeout that a pool has to end by itself
STOP_NOW_MARGIN: Final = 4.0  # seconds after "stop_now" that a pool has to end by itself
MESSAGES_PER_EVENT: Final = 64  # so that a pool that floods does not hold up the others
MOST_ERRORS: Final = 2000  # lines
MOST_UNREAD: Final = 1000  # messages of a pool that has ended; the kernel keeps fewer
MOST_GONE: Final = 200  # keys of sockets in a message
LATE: Final = 1.0  # seconds: where a deadline's timer comes so late, the pool may have been held up too


class PoolProcess:
    """Starts a pool, and stands for it.

    :param reload: HUP has started it, beside one that serves.
    :param on_message: called with each message that is valid in the pool's phase.
    :param interpreter: that of the pool, if it has been started already.
    :ivar state: one of the phases of ipc/pool_protocol.py.
    :ivar sockets: the sockets that it will use, by key; known once it is sealed.
    :ivar new: the sockets among them that it has bound itself.
    :ivar log: the log that its config asks for, as ``logs.set_up`` takes it.
    :ivar errors: why it can't serve.
    :ivar exit_code: the server's exit code, if the pool never serves.
    :ivar runs: how many records of runs of a kind it keeps; None: it has not said so.
    :ivar last_report_at: when its last message came, by the loop's clock.
    :ivar superseded: another start is to follow, and this one is not waited for to the end.
    :ivar abandoned: its start was ended because of that.
    :ivar ending: it has been told to end at once.
    :ivar waited: seconds of its start in which it has waited for other pools.
    :raises OSError: it can't be started.
    """

    def __init__(
        self,
        loop: EventLoop,
        generation: int,
        reload: bool,
        on_message: Callable[[PoolProcess, Message], object],
        interpreter: PoolInterpreter | None = None,
    ) -> None:
        self.generation = generation
        self.reload = reload
        self.state = STARTING
        self.sockets: dict[str, ListeningSocket] = {}
        self.new: dict[str, ListeningSocket] = {}
        self.pidfile: PidFile | None = None
        self.start_timeout = START_TIMEOUT
        self.graceful_timeout = 0.0
        self.drain_notice = 0.0
        self.hang_timeout = 0.0
        self.max_draining_pools = 1
        self.runs: int | None = None
        self.log: dict[str, Any] = {}
        self.reopen_logs = False  # once it is sealed
        self.errors: list[str] = []
        self.exit_code = EXIT_FAILED
        self.started_at = self.last_report_at = loop.now
        self.served_since = 0.0
        self.superseded = False
        self.abandoned = False
        self.ending = False
        self.waited = 0.0
        self._waits_since: float | None = None
        self._loop = loop
        self._on_message = on_message
        self._killer: Timer | None = None
        self._superseded_timeout = 0.0  # seconds that its start has, if it is superseded
        self._watched = True  # for messages
        self._has_ended = False
        interpreter = interpreter or PoolInterpreter()
        self.pid = interpreter.pid
        self._hang_file = StackDumpFile(interpreter.hang_file)
        self.link = PoolLink.supervisors_end(interpreter.link)
        loop.register(self.link.fileno(), READ, lambda _: self.receive())

    def __str__(self) -> str:
        return f"generation {self.generation}, pid {self.pid}"

    # --- messages

    def receive(self, most: int = MESSAGES_PER_EVENT) -> None:
        """Receive messages, and act on each. A pool that breaks the protocol is killed, and the log says why."""
        try:
            for _ in range(most):
                if not self._watched or (message := self.link.receive()) is None:
                    return
                self.last_report_at = self._loop.now
                if pool_protocol.check(self.state, message, self.pid):
                    self._on_message(self, message)
        except EOFError:
            self._unwatch()  # CHLD tells its end
        except BadMessage as error:
            self._refuse(f"breaks the protocol, {error}")
        except Exception as error:
            log.exception("a message of the pool (%s) can't be acted on", self)
            self._refuse(f"has sent a message that can't be acted on, {error!r}")

    def _refuse(self, why: str) -> None:
        log.error("the pool (%s) %s: killing it", self, why, extra={"reason": why})
        self.fail([f"it {why}"])
        self._unwatch()
        self.kill()

    def fail(self, errors: list[str]) -> None:
        """Note why it can't serve."""
        self.errors += errors[: MOST_ERRORS - len(self.errors)]

    def send(self, kind: str, **fields: Any) -> None:
        """Send a message. If the pool does not take it, the log says so; a pool that has to end has a deadline too."""
        try:
            self.link.send(kind, **fields)
        except OSError as error:
            log.warning("the pool (%s) does not listen: %s", self, error.strerror)

    # --- signals and deadlines

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to its dispatcher, unless that has ended."""
        if not self._has_ended:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End its dispatcher at once; its workers notice."""
        self.signal(signal.SIGKILL)

    def kill_later(self, seconds: float, before: Callable[[], object]) -> None:
        """Call ``before()`` and kill the pool after a time, unless it has ended or ``cancel_kill`` was called.

        If this process could not run in time, the pool perhaps could not either, and gets the same time again.
        """

        def due() -> None:
            before()
            self.kill()

        self.cancel_kill()
        self._call_in_time(seconds, LATE, due)

    def kill_hung_later(
        self, seconds: float, before: Callable[[str], object], unless: Callable[[], bool] = lambda: False
    ) -> None:
        """Do as ``kill_later`` does, but first have the pool dump its stack, and call ``before(where)``.

        :param unless: asked last; if it returns True, the pool is not killed.
        """

        def due() -> None:
            self.signal(HANG_SIGNAL)
            self.signal(signal.SIGCONT)  # it may have been stopped
            self._call_in_time(DUMP_TIME, DUMP_LATE, dumped)

        def dumped() -> None:
            if not unless():
                before(self._hang_file.describe([]))
                self.kill()

        self.cancel_kill()
        self._call_in_time(max(seconds, 0.0), LATE, due)

    def _call_in_time(self, seconds: float, late: float, then: Callable[[], object]) -> None:
        """Call ``then()`` after a time, unless ``cancel_kill`` was called. Where the timer comes late, begin again.

        :param late: from how many seconds on that is late.
        """

        def due(at: float) -> None:
            if self._loop.now - at > late:
                self._call_in_time(seconds, late, then)
            else:
                then()

        self._killer = self._loop.call_later(seconds, partial(due, self._loop.now + seconds))

    def cancel_kill(self) -> None:
        """Do not kill it later."""
        if self._killer is not None:
            self._killer.cancel()
            self._killer = None

    # --- its start

    def begin(self, sockets: Sequence[ListeningSocket], **fields: Any) -> None:
        """Tell it to start.

        :param sockets: those that exist.
        :param fields: what else the message ``start`` has.
        """
        self.limit_start()
        try:
            send_sockets(self.link, "start", sockets, version=VERSION, generation=self.generation, **fields)
        except OSError as error:
            self.fail([f"it can't be given the sockets: {error.strerror}"])
            self.kill()

    def limit_start(self) -> None:
        """Kill it unless it serves within ``start_timeout``, or sooner if it is superseded. To wait for other pools
        does not count."""
        if self._waits_since is not None:
            return
        if self.superseded and self._superseded_timeout < self.start_timeout:
            limit, before = self._superseded_timeout, self._abandon
        else:
            limit, before = self.start_timeout, self._took_too_long
        self.kill_hung_later(self.started_at + self.waited + limit - self._loop.now, before)

    def wait_for_others(self) -> None:
        """It can't go on before other pools have done something: its start has no limit until ``go_on``."""
        self._waits_since = self._loop.now
        self.cancel_kill()

    def go_on(self) -> None:
        """What it has waited for is done."""
        if self._waits_since is not None:
            self.waited += self._loop.now - self._waits_since
            self._waits_since = None
            self.limit_start()

    def supersede(self, timeout: float) -> None:
        """Limit the start further: HUP has come, another start is to follow, and this one may hang.

        :param timeout: seconds since its start that it has in any case; or else no start would ever finish while HUP
            keeps coming.
        """
        if not self.superseded:
            self.superseded = True
            self._superseded_timeout = timeout
            self.limit_start()

    def _took_too_long(self, where: str) -> None:
        self.fail([f"the pool does not serve after {self.start_timeout:g} seconds, {where}"])

    def _abandon(self, where: str) -> None:
        after = self._loop.now - self.started_at - self.waited
        log.warning("SIGHUP: the pool (%s) does not serve after %.1f s, %s: another one is tried", self, after, where)
        self.abandoned = True

    # --- its end

    def stop(self, why: str, ends: bool = False, gone: Sequence[str] = ()) -> None:
        """Tell it to stop: it accepts no new connections, and the open ones may finish.

        :param ends: the server ends, so that no other pool will serve.
        :param gone: keys of the sockets that have been given up: its workers may have these open.
        """
        if self.state == LEAVING:
            return
        if self.state in (STARTING, SEALED):
            self.signal(signal.SIGTERM)  # it may not read messages yet
        self.expect_end()
        self.send("stop", why=why, ends=ends, gone=gone[:MOST_GONE])
        self.signal(signal.SIGCONT)  # it may have been stopped

    def expect_end(self) -> None:
        """It stops: kill it if it does not end in time."""
        self.state = LEAVING
        self.kill_later(self.graceful_timeout + END_MARGIN, self._does_not_end)

    def stop_now(self) -> None:
        """Tell it to end at once."""
        self.ending = True
        self.send("stop_now")
        self.signal(signal.SIGCONT)
        self.kill_later(STOP_NOW_MARGIN, self._does_not_end)

    def _does_not_end(self) -> None:
        log.error("the pool (%s) does not end: killing it", self)

    def ended(self) -> None:
        """Its dispatcher has been reaped: receive its last messages, and close the link."""
        self._has_ended = True
        self.receive(MOST_UNREAD)
        self.cancel_kill()
        self._unwatch()
        self._hang_file.close()
        self._loop.at_end_of_turn(self.link.close)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.unregister(self.link.fileno())


def leaving(pools: Iterable[PoolProcess]) -> list[dict[str, int]]:
    """Those that drain, as ``poolsrv status`` shows them."""
    return [{"generation": pool.generation, "pid": pool.pid} for pool in pools if pool.state == LEAVING]


def stop_oldest(pools: Iterable[PoolProcess], most: int) -> None:
    """End the oldest draining pools at once if there are too many.

    :param pools: in the order of their start.
    :param most: how many may drain.
    """
    draining = [pool for pool in pools if pool.state == LEAVING and not pool.ending]
    for pool in draining[: max(len(draining) - most, 0)]:
        log.warning("the pool (%s) is ended early: more than %d would drain (max_draining_pools)", pool, most)
        pool.stop_now()
