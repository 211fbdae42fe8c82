"""The supervisor's main loop. The supervisor is the process that the user starts. It keeps what outlives a reload, and
starts pools.

Theory. A *pool* is a dispatcher with its workers. It is started as a fresh process (dispatcher/__main__.py), which
reads the config and the code as they are on disk at that moment; neither is ever loaded into the supervisor. What
has to stay the same over all pools is here: the pid, the signals from outside, the listening sockets. On HUP a second
pool is started beside the first. It gets the existing sockets and hands back those that it newly binds. The first one
is told to drain only when the second says that all its workers serve. If the second one fails it is ended, and nothing
has changed. So one mechanism serves a new config, a new version of a plugin, and a new version of poolsrv.

A pool is in one of these states. ipc/pool_link.py has the messages, and ipc/pool_protocol.py says which are accepted in
which state:

    STARTING --> SEALED      it has said what it needs, and has been granted it; from now on it can't change that
    SEALED   --> SERVING     all its workers serve; the pool before it is told to stop
    SERVING  --> LEAVING     it has been told to stop
    any      --> gone        a pool that ends while it is SERVING has crashed, and is replaced

This file and all that it imports need only the standard library, and are imported at once: a later import might load
another version, after an upgrade.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from ..core import logs, processes, reserve, signals
from ..core.event_loop import READ, Timer
from ..core.guarded_loop import GuardedLoop
from ..core.listening_sockets import ListeningSocket
from ..core.processes import describe_exit
from ..core.procfs import seconds_since_boot
from ..core.systemd import Notifier
from ..ipc.pool_link import Message
from ..ipc.pool_protocol import LEAVING, SEALED, SERVING, STARTING
from .children import Children
from .counts import Counts
from .exclusive_right import ExclusiveRight
from .interpreter import PoolInterpreter
from .kept_across_reloads import KeptResources
from .pool import EXIT_FAILED, PoolProcess, leaving, stop_oldest
from .reloads import Reloads
from .restarts import LONGEST_DELAY, Restarts
from .watchdog import SIGNS, Watchdog, timeout_of

log = logging.getLogger("poolsrv.supervisor")

SLOW_START: Final = 5.0  # seconds of a start after which HUP ends it: a plugin's import may hang
SLOWER: Final = 2.0  # a start is slow only if it takes this many times as long as the last one
WATCHDOG_SHARE: Final = 3  # signs of life for each interval of the service manager's watchdog
STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Supervisor:
    """Runs in the supervisor's process; see the module's docstring.

    :param config: the config file, as the user has named it; or the command whose arguments are the config.
    :param level: the lowest level to log, if the command line says so.
    :param given: the sockets of the service manager, by key.
    :param arguments: these arguments, as JSON has them; None: there is a file. Only pools look into them.
    :param interpreter: that of the first pool, if it has been started already.
    """

    def __init__(
        self,
        config: str,
        level: str | None,
        given: dict[str, ListeningSocket],
        arguments: Mapping[str, Any] | None = None,
        interpreter: PoolInterpreter | None = None,
    ) -> None:
        self._config = config
        self._arguments = arguments
        self._level = level
        self._interpreter = interpreter
        self._started_at, self._began = time.time(), seconds_since_boot()
        self._signals = signals.SignalPipe(
            (*STOPS, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU)
        )
        self._notifier = Notifier()
        self._kept = KeptResources(level, given)
        self._loop = GuardedLoop(log)
        self._watchdog = Watchdog(self._loop)
        self._counts = Counts(self._loop)
        self._restarts = Restarts(self._loop, self._start_again)
        self._reloads = Reloads(self._notifier)
        self._pools: dict[int, PoolProcess] = {}  # by pid
        self._children = Children(self._loop, self._pools.keys(), {interpreter.pid} if interpreter else set())
        self._exclusive = ExclusiveRight(self._children.has_orphans)
        self._current: PoolProcess | None = None  # the pool that serves
        self._candidate: PoolProcess | None = None  # the pool that is to serve next
        self._generation = 0
        self._has_served = False
        self._last_start = 0.0  # seconds that the last start took
        self._max_draining = 1
        self._stopping = 0  # how many times the server has been told to stop
        self._notice: Timer | None = None  # runs while connections are still accepted, although it stops
        self._exit_code = 0
        self._ended = False

    def run(self) -> int:
        """Run until the server has stopped, or could not start.

        :returns: the exit code.
        """
        processes.become_subreaper()
        reserve.keep()
        self._loop.register(self._signals.fileno(), READ, self._on_signal)
        signals.unblock()
        self._start()
        self._on_signal(READ)  # those that have waited: a signal to stop may have reached, and ended, the pool too
        self._reap()  # the pool may have ended before there was a signal pipe
        while not self._ended:
            self._loop.turn()
            self._ensure_a_pool()
        self._finish()
        return self._exit_code

    def _ensure_a_pool(self) -> None:
        """Make sure that a pool serves or will be started, whatever has failed in this process."""
        if self._current is None and self._candidate is None and not (self._restarts.is_due or self._stopping):
            self._restarts.later(LONGEST_DELAY)

    # --- signals

    def _on_signal(self, mask: int) -> None:
        for number in self._signals.take():
            self._loop.guarded(self._act_on, number)

    def _act_on(self, number: signal.Signals) -> None:
        if number == signal.SIGCHLD:
            self._reap()
        elif number == signal.SIGHUP:
            self._reload()
        elif number == signal.SIGUSR1:
            self._reopen_logs()
        elif number in (signal.SIGTTIN, signal.SIGTTOU):
            self._change_workers(1 if number == signal.SIGTTIN else -1)
        else:
            self._stop(number.name)

    def _reopen_logs(self) -> None:
        logs.reopen()
        for pool in self._pools.values():
            if pool.state == STARTING:
                pool.reopen_logs = True
            else:
                pool.send("reopen_logs")

    def _change_workers(self, by: int) -> None:
        if self._current is not None:
            self._current.send("workers", by=by)

    # --- starting a pool

    def _start(self, reload: bool = False) -> None:
        """Start a pool. Its messages, or its end, tell how that goes."""
        self._generation += 1
        try:
            interpreter, self._interpreter = self._interpreter, None
            pool = PoolProcess(self._loop, self._generation, reload, self._on_message, interpreter)
        except OSError as error:
            self._could_not_start(reload, error)
            return
        self._pools[pool.pid] = self._candidate = pool
        pool.begin(
            self._kept.sockets,
            config=self._config,
            arguments=self._arguments,
            log_level=self._level,
            about=self._about(),
        )

    def _start_again(self) -> None:
        if not self._stopping and self._candidate is None:
            self._start()

    def _could_not_start(self, reload: bool, error: OSError) -> None:
        message = f"can't start a pool: {error.strerror}"
        if not self._has_served:
            self._exit_code, self._ended = EXIT_FAILED, True
            log.error("%s", message)
        else:
            self._failed_later(reload, [message])

    # --- messages of a pool

    def _on_message(self, pool: PoolProcess, message: Message) -> None:
        kind, fields = message.kind, message.fields
        if kind == "plan":
            pool.start_timeout = fields["start_timeout"]
            pool.limit_start()
        elif kind == "bound":
            self._kept.add_bound(pool, message)
        elif kind == "configured":
            self._configured(pool, fields)
        elif kind == "serves":
            self._serves(pool)
        elif kind == "failed":
            pool.fail(fields["lines"])
            pool.exit_code = fields["exit_code"]
        elif kind == "alive":
            self._counts.taken(pool, fields)
            if pool is self._current:
                self._notifier.send("WATCHDOG=1")
        elif kind == "leaves":
            self._leaves(pool)
        elif kind == "claims":
            self._exclusive.claim(pool, fields["plugins"], [one for one in self._pools.values() if one is not pool])
            self._exclusive.review()
        elif kind == "released":
            self._exclusive.released(pool, fields["number"])
            self._exclusive.review()

    def _configured(self, pool: PoolProcess, fields: dict[str, Any]) -> None:
        """Grant the pool what it needs, and let it go on; or kill it."""
        pool.graceful_timeout = fields["graceful_timeout"]
        pool.drain_notice = fields.get("drain_notice") or 0.0
        pool.hang_timeout = fields["hang_timeout"]
        pool.max_draining_pools = fields["max_draining_pools"]
        pool.runs = fields.get("runs")
        if not self._kept.grant(pool, fields):
            pool.kill()
            return
        pool.state = SEALED
        watchdog = self._notifier.watchdog or float("inf")
        pool.send("go", alive_every=min(timeout_of(pool) / SIGNS, watchdog / WATCHDOG_SHARE))
        if pool.reopen_logs:
            pool.send("reopen_logs")
        if self._current is None:
            self._counts.tell(pool, None)

    def _serves(self, pool: PoolProcess) -> None:
        """All workers of the candidate serve: it is the current pool from now on, and the former one stops."""
        former, self._current, self._candidate = self._current, pool, None
        pool.state = SERVING
        pool.served_since = self._loop.now
        pool.cancel_kill()
        self._has_served = True
        self._restarts.served()
        self._exclusive.served(pool)
        self._last_start = self._loop.now - pool.started_at - pool.waited
        self._max_draining = pool.max_draining_pools
        self._watchdog.begin(pool)
        gone = self._kept.hand_over(pool)
        if pool.reload:
            self._reloads.succeeded()
            log.info("generation %d (pid %d) serves", pool.generation, pool.pid)
        self._notifier.send("READY=1", f"STATUS=serving, generation {pool.generation}")
        if former is not None:
            former.stop("reload", gone=gone)
            self._counts.tell(pool, former)
        stop_oldest(self._pools.values(), self._max_draining)
        self._send_about()
        self._reload_if_wanted()

    def _leaves(self, pool: PoolProcess) -> None:
        """Replace the current pool, which a signal from outside has told to stop; it drains meanwhile."""
        log.warning("the pool (%s) has been told to stop by a signal: another one is started", pool)
        self._current = None
        self._watchdog.end()
        pool.expect_end()
        self._notifier.send("STATUS=the pool has been told to stop, another one is being started")
        self._start_again()
        stop_oldest(self._pools.values(), self._max_draining)

    # --- reload

    def _reload(self) -> None:
        if self._stopping:
            log.info("SIGHUP: stopping already")
        elif self._candidate is not None:
            self._reloads.postpone("a pool is being started")
            self._candidate.supersede(max(SLOW_START, SLOWER * self._last_start))
        elif self._is_crowded():
            self._reloads.postpone("older pools are being ended")
        else:
            self._reloads.begin(self._config)
            self._restarts.cancel()
            self._start(reload=True)

    def _is_crowded(self) -> bool:
        """Whether pools that were too many have not ended yet: another one would be one more."""
        return any(pool.ending for pool in self._pools.values())

    def _reload_if_wanted(self) -> None:
        ends = self._stopping or self._ended
        if self._reloads.wanted and not ends and self._candidate is None and not self._is_crowded():
            self._reload()

    # --- pools that end

    def _reap(self) -> None:
        for pid, returncode in self._children.reaped():
            pool = self._pools.get(pid)
            if pool is not None:
                self._loop.guarded(self._pool_ended, pool, returncode)
        if not self._stopping:
            self._exclusive.review()
        elif not self._pools:
            self._ended = True

    def _pool_ended(self, pool: PoolProcess, returncode: int) -> None:
        pool.ended()
        self._counts.ended(pool)
        del self._pools[pool.pid]
        if returncode != 0:
            self._children.kill_orphans_later()
        if pool is self._candidate:
            self._candidate = None
            self._candidate_ended(pool, returncode)
        elif pool is self._current:
            self._current = None
            self._watchdog.end()
            if not self._stopping:
                self._crashed(pool, returncode)
        elif pool.state == LEAVING and not self._stopping:
            how = describe_exit(returncode)
            log.info("generation %d (pid %d) has left: %s", pool.generation, pool.pid, how, extra={"reason": how})
            self._send_about()
        self._exclusive.ended(pool, self._current)
        self._reload_if_wanted()

    def _candidate_ended(self, pool: PoolProcess, returncode: int) -> None:
        self._kept.reclaim(pool)
        if self._stopping or (pool.abandoned and self._reloads.wanted):
            return  # the server ends, or a reload follows
        errors = pool.errors or [f"the pool {describe_exit(returncode)} before it served"]
        if not self._has_served:
            self._start_failed(pool, errors)
        else:
            self._failed_later(pool.reload, errors)

    def _failed_later(self, reload: bool, errors: list[str]) -> None:
        """Handle a pool that could not serve, after others could."""
        if reload:
            self._reloads.failed(errors)
            self._send_about()
            errors = []
        if self._current is None:
            self._retry_later(errors)

    def _start_failed(self, pool: PoolProcess, errors: list[str]) -> None:
        """End the server: its first pool could not serve. The user reads why, without time and level."""
        command = "poolsrv" if self._arguments is None else self._config  # an error in the config begins with it
        logs.say([f"{command}: {line}" if pool.exit_code == EXIT_FAILED else line for line in errors])
        self._exit_code, self._ended = pool.exit_code, True

    def _crashed(self, pool: PoolProcess, returncode: int) -> None:
        """Replace the current pool, which has ended although nothing had told it to."""
        uptime = self._loop.now - pool.served_since
        log.error(
            "the pool (%s) %s after %.1f s; its connections are lost, and another one is started",
            pool,
            describe_exit(returncode),
            uptime,
            extra={"reason": describe_exit(returncode)},
        )
        self._notifier.send("STATUS=the pool has crashed, another one is being started")
        delay = self._restarts.crashed(uptime)
        if self._candidate is None:  # otherwise the pool of a reload takes over
            self._restarts.later(delay)

    def _retry_later(self, errors: list[str]) -> None:
        for line in errors:
            log.error("%s", line)
        delay = self._restarts.failed()
        log.error("no pool serves, connections wait: next try in %.1f s", delay)
        self._restarts.later(delay)

    # --- stopping

    def _stop(self, why: str) -> None:
        """Stop gracefully the first time: the open connections may finish. The second time, end at once.

        With ``drain_notice``, connections are accepted for that time; a signal ends it.
        """
        if self._notice is not None:
            self._drain(why)
            return
        self._stopping += 1
        if self._stopping == 1:
            self._notifier.send("STOPPING=1", f"STATUS={why}: stopping")
            self._restarts.cancel()
            if self._current is not None and self._current.drain_notice:
                self._give_notice(self._current, why)
            else:
                self._drain(why)
        elif self._stopping == 2:
            log.info("%s: ending at once", why, extra={"reason": why})
            for pool in self._pools.values():
                pool.stop_now()
                if not pool.sockets:
                    pool.kill()  # it does not read messages yet
        if not self._pools:
            self._ended = True

    def _give_notice(self, pool: PoolProcess, why: str) -> None:
        """Have the pool that serves say that it will stop, and go on serving. The others stop."""
        seconds = pool.drain_notice
        log.info("%s: accepting for %g s more (drain_notice)", why, seconds, extra={"reason": why})
        pool.send("about", about=self._about(), notice=seconds)
        for other in self._pools.values():
            if other is not pool:
                other.stop(why, ends=True)
        self._notice = self._loop.call_later(seconds, partial(self._drain, why))

    def _drain(self, why: str) -> None:
        if self._notice is not None:
            self._notice.cancel()
            self._notice = None
        self._watchdog.end()
        self._kept.close_sockets()
        for pool in self._pools.values():
            pool.stop(why, ends=True)

    def _finish(self) -> None:
        """All pools have ended: leave nothing of theirs behind."""
        self._kept.close_sockets()
        self._children.kill_all(self._reap)
        self._kept.close()
        self._loop.close()
        if self._stopping:
            log.info("stopped")

    # --- status

    def _send_about(self) -> None:
        if self._current is not None and not self._stopping:
            self._current.send("about", about=self._about())

    def _about(self) -> dict[str, Any]:
        """Return what only the supervisor knows, for ``poolsrv status``, which asks the pool."""
        return {
            "pid": os.getpid(),
            "started_at": self._started_at,
            "began": self._began,
            "serving": self._current.generation if self._current is not None else None,
            "restarts": self._restarts.crashes,
            "counts": True,
            "shares": True,
            "last_reload": self._reloads.last,
            "leaving": leaving(self._pools.values()),
        }
