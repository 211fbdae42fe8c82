"""The supervisor: the process that the user starts. It keeps what outlives a reload, and starts pools.

Theory. A *pool* is a dispatcher with its workers. It is started as a fresh process (``python -m poolsrv.dispatcher``),
which reads the config and the code as they are on disk at that moment; nothing of them is ever in this process. What
has to stay the same over all pools is here: the pid, the signals from outside, the listening sockets. On HUP a second
pool is started beside the first. It gets the sockets that stand, hands back those that it binds anew, and only when it
says that every worker of it serves is the first one told to drain. If it fails it is ended, and nothing has changed.
So one mechanism serves a new config, a new version of a plugin, and a new version of poolsrv.

A pool is in one of these states; handshake.py has what the two say to each other, protocol.py what of it counts when:

    STARTING --> SEALED      it has told what it needs, and has got it; from now on it can't change that
    SEALED   --> SERVING     every worker of it serves; the one before is told to stop
    SERVING  --> LEAVING     it has been told to
    any      --> gone        a pool that ends while it is SERVING has crashed, and is replaced

This file, and those that it imports, need nothing but the standard library, and import it at once: what is imported
later may be of another version.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import time
from typing import Any, Final, NoReturn

from ..core import logs, processes, procfs, signals
from ..core.dumpable import set_dumpable
from ..core.event_loop import READ
from ..core.guarded_loop import GuardedLoop
from ..core.listening_sockets import ListeningSocket, given_sockets
from ..core.processes import describe_exit
from ..core.procfs import seconds_since_boot
from ..core.systemd import Notifier
from ..core.words import counted
from ..ipc.pool_link import VERSION, Message, send_sockets
from ..ipc.pool_protocol import LEAVING, SEALED, SERVING, STARTING
from .belongings import Belongings
from .pool import EXIT_FAILED, PoolProcess, end_oldest
from .restarts import LONGEST_DELAY, Restarts
from .watchdog import SIGNS, Watch, patience_with

log = logging.getLogger("poolsrv.supervisor")

SLOW_START: Final = 5.0  # seconds of a start after which a HUP ends it: the plugin's import may hang
SLOWER: Final = 2.0  # times what the last start took, that a start may take before it is slow
ORPHANS_PATIENCE: Final = 4.0  # seconds that the workers of a dispatcher that was killed have to end by themselves
WATCHDOG_SHARE: Final = 3  # signs of life for each interval of the service manager's watchdog
STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Supervisor:
    """See the module's docstring.

    :param config: the config file, as the user has named it.
    :param level: the least that is logged, where the command line says so.
    :param given: the sockets of the service manager, by key.
    """

    def __init__(self, config: str, level: str | None, given: dict[str, ListeningSocket]) -> None:
        self._config = config
        self._level = level
        self._started_at, self._began = time.time(), seconds_since_boot()
        self._reload_began = 0.0
        # Who has been started by this process before it became poolsrv (a shell's "exec") is none of its business.
        self._not_ours = procfs.children_of_this_process()
        self._signals = signals.SignalPipe(
            (*STOPS, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU)
        )
        self._notifier = Notifier()
        self._belongings = Belongings(level, given)
        self._loop = GuardedLoop(log)
        self._watch = Watch(self._loop)
        self._restarts = Restarts(self._loop, self._start_again)
        self._pools: dict[int, PoolProcess] = {}  # by pid
        self._current: PoolProcess | None = None  # that serves
        self._candidate: PoolProcess | None = None  # that is to serve
        self._generation = 0
        self._reload_again = False
        self._last_reload: dict[str, Any] | None = None
        self._has_served = False
        self._last_start = 0.0  # seconds that it took
        self._max_draining = 1
        self._stopping = 0  # how many times it has been asked to
        self._exit_code = 0
        self._ended = False

    def run(self) -> int:
        """Until the server has been stopped, or could not be started; the exit code."""
        loop = self._loop
        processes.become_subreaper()
        loop.register(self._signals.fileno(), READ, self._on_signal)
        signals.unblock()
        self._start()
        while not self._ended:
            loop.turn()
            self._see_that_one_serves()
        self._finish()
        return self._exit_code

    # --- signals

    def _on_signal(self, mask: int) -> None:
        for number in self._signals.take():
            self._loop.guarded(self._act_on, number)

    def _see_that_one_serves(self) -> None:
        """Whatever has failed here: there is a pool, or there will be."""
        if self._current is None and self._candidate is None and not (self._restarts.is_due or self._stopping):
            self._restarts.later(LONGEST_DELAY)

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
        """Start a pool; what becomes of it is told by its messages, or by its end."""
        self._generation += 1
        try:
            pool = PoolProcess(self._loop, self._generation, reload, self._on_message)
        except OSError as error:
            self._could_not_start(reload, error)
            return
        self._pools[pool.pid] = self._candidate = pool
        pool.limit_start()
        try:
            send_sockets(
                pool.link,
                "start",
                self._belongings.sockets,
                version=VERSION,
                generation=pool.generation,
                config=self._config,
                log_level=self._level,
                about=self._about(),
            )
        except OSError as error:
            pool.fail([f"it can't be given the sockets: {error.strerror}"])
            pool.kill()

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

    # --- what a pool says

    def _on_message(self, pool: PoolProcess, message: Message) -> None:
        kind, fields = message.kind, message.fields
        if kind == "plan":
            pool.start_timeout = fields["start_timeout"]
            pool.limit_start()
        elif kind == "bound":
            self._belongings.bound(pool, message)
        elif kind == "configured":
            self._configured(pool, fields)
        elif kind == "serves":
            self._serves(pool)
        elif kind == "failed":
            pool.fail(fields["lines"])
            pool.exit_code = fields["exit_code"]
        elif kind == "alive" and pool is self._current:
            self._notifier.send("WATCHDOG=1")
        elif kind == "leaves":
            self._leaves(pool)

    def _configured(self, pool: PoolProcess, fields: dict[str, Any]) -> None:
        """It knows what it needs: see that it may have it."""
        pool.graceful_timeout = fields["graceful_timeout"]
        pool.hang_timeout = fields["hang_timeout"]
        pool.max_draining_pools = fields["max_draining_pools"]
        if not self._belongings.grant(pool, fields):
            pool.kill()
            return
        pool.state = SEALED
        signs = [patience_with(pool) / SIGNS]
        if self._notifier.watchdog:
            signs.append(self._notifier.watchdog / WATCHDOG_SHARE)
        pool.send("go", alive_every=min(signs))
        if pool.reopen_logs:
            pool.send("reopen_logs")

    def _serves(self, pool: PoolProcess) -> None:
        """Every worker of it serves: from now on it is the one."""
        former, self._current, self._candidate = self._current, pool, None
        pool.state = SERVING
        pool.served_since = self._loop.now
        pool.cancel_kill()
        self._has_served = True
        self._restarts.served()
        self._last_start = self._loop.now - pool.started_at
        self._max_draining = pool.max_draining_pools
        self._watch.begin(pool)
        self._belongings.take_over(pool)
        if pool.reload:
            self._last_reload = {"at": time.time(), "ok": True, "errors": [], "began": self._reload_began}
            log.info("generation %d (pid %d) serves", pool.generation, pool.pid)
        self._notifier.send("READY=1", f"STATUS=serving, generation {pool.generation}")
        if former is not None:
            former.leave("reload")
        end_oldest(self._pools.values(), self._max_draining)
        self._tell_about()
        self._reload_if_asked_again()

    def _leaves(self, pool: PoolProcess) -> None:
        """Somebody has told the pool that serves to stop: another one is to serve, while it drains."""
        log.warning("the pool (%s) has been told to stop by a signal: another one is started", pool)
        self._current = None
        self._watch.end()
        pool.recycle()
        self._notifier.send("STATUS=the pool has been told to stop, another one is being started")
        self._start_again()
        end_oldest(self._pools.values(), self._max_draining)

    # --- reload

    def _reload(self) -> None:
        if self._stopping:
            log.info("SIGHUP: stopping already")
        elif self._candidate is not None or self._is_crowded():
            if not self._reload_again:
                what = "a pool is being started" if self._candidate is not None else "older pools are being ended"
                log.info("SIGHUP: %s; another reload follows", what)
            self._reload_again = True
            if self._candidate is not None:
                self._candidate.supersede(max(SLOW_START, SLOWER * self._last_start))
        else:
            self._reload_again = False
            log.info("SIGHUP: reloading %s", self._config)
            self._notifier.reloading()
            self._restarts.cancel()
            self._reload_began = seconds_since_boot()
            self._start(reload=True)

    def _is_crowded(self) -> bool:
        """Pools that were too many have not ended yet: with one more, there would be still more."""
        return any(pool.ending for pool in self._pools.values())

    def _reload_if_asked_again(self) -> None:
        """HUP has come while it could not be acted on."""
        if self._reload_again and not self._stopping and self._candidate is None and not self._is_crowded():
            self._reload()

    def _reload_failed(self, errors: list[str]) -> None:
        for line in errors:
            log.error("reload: %s", line, extra={"reason": line})
        log.error("the reload has failed, with %s; nothing has changed", counted(len(errors), "error"))
        self._last_reload = {"at": time.time(), "ok": False, "errors": errors, "began": self._reload_began}
        first = errors[0] if errors else "see the log"
        self._notifier.send("READY=1", f"STATUS=reload failed ({counted(len(errors), 'error')}): {first}")
        self._tell_about()

    # --- pools that end

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            self._not_ours.discard(pid)
            pool = self._pools.get(pid)
            if pool is not None:
                self._loop.guarded(self._pool_ended, pool, os.waitstatus_to_exitcode(status))
        if self._stopping and not self._pools:
            self._ended = True

    def _pool_ended(self, pool: PoolProcess, returncode: int) -> None:
        pool.ended()
        del self._pools[pool.pid]
        if returncode != 0:
            self._loop.call_later(ORPHANS_PATIENCE, self._kill_orphans)
        if pool is self._candidate:
            self._candidate = None
            self._candidate_ended(pool, returncode)
        elif pool is self._current:
            self._current = None
            self._watch.end()
            if not self._stopping:
                self._crashed(pool, returncode)
        elif pool.state == LEAVING and not self._stopping:
            how = describe_exit(returncode)
            log.info("generation %d (pid %d) has left: %s", pool.generation, pool.pid, how, extra={"reason": how})
            self._tell_about()
        self._reload_if_asked_again()

    def _candidate_ended(self, pool: PoolProcess, returncode: int) -> None:
        self._belongings.reclaim(pool)
        if self._stopping or (pool.given_up and self._reload_again):
            return  # a reload follows
        errors = pool.errors or [f"the pool {describe_exit(returncode)} before it served"]
        if not self._has_served:
            self._start_failed(pool, errors)
        else:
            self._failed_later(pool.reload, errors)

    def _failed_later(self, reload: bool, errors: list[str]) -> None:
        """A pool could not serve, after others could."""
        if reload:
            self._reload_failed(errors)
            errors = []
        if self._current is None:
            self._retry_later(errors)

    def _start_failed(self, pool: PoolProcess, errors: list[str]) -> None:
        """The first pool never served: neither did the server. Said without time and level, to who has started it."""
        prefix = "poolsrv: " if pool.exit_code == EXIT_FAILED else ""  # an error in the config names the file
        logs.say([prefix + line for line in errors])
        self._exit_code, self._ended = pool.exit_code, True

    def _crashed(self, pool: PoolProcess, returncode: int) -> None:
        """The pool that served has ended, and nobody had told it to."""
        lived = self._loop.now - pool.served_since
        log.error(
            "the pool (%s) %s after %.1f s; its connections are lost, and another one is started",
            pool,
            describe_exit(returncode),
            lived,
            extra={"reason": describe_exit(returncode)},
        )
        self._notifier.send("STATUS=the pool has crashed, another one is being started")
        delay = self._restarts.crashed(lived)
        if self._candidate is None:  # a reload's takes over
            self._restarts.later(delay)

    def _retry_later(self, errors: list[str]) -> None:
        for line in errors:
            log.error("%s", line)
        delay = self._restarts.failed()
        log.error("no pool serves, connections wait: next try in %.1f s", delay)
        self._restarts.later(delay)

    def _kill_orphans(self) -> None:
        """Workers and programs that a dead dispatcher has left are this process's children now (subreaper)."""
        if processes.kill_children(self._not_ours | self._pools.keys()):
            # What those leave in turn is only adopted once they have ended.
            self._loop.call_later(0.1, self._kill_orphans)

    # --- stopping

    def _stop(self, why: str) -> None:
        """The first time: no new connections, the open ones may finish. The second time: end at once."""
        self._stopping += 1
        if self._stopping == 1:
            self._notifier.send("STOPPING=1", f"STATUS={why}: stopping")
            self._restarts.cancel()
            self._watch.end()
            self._belongings.give_up_sockets()
            for pool in self._pools.values():
                pool.leave(why)
        elif self._stopping == 2:
            log.info("%s: ending at once", why, extra={"reason": why})
            for pool in self._pools.values():
                pool.end_now()
                if not pool.sockets:
                    pool.kill()  # it listens to nothing yet
        if not self._pools:
            self._ended = True

    def _finish(self) -> None:
        """All pools have ended: nothing of theirs is to be left."""
        self._belongings.give_up_sockets()
        processes.kill_until_none(self._loop, ORPHANS_PATIENCE, self._reap, spare=self._not_ours)
        self._belongings.give_up()
        self._loop.close()
        if self._stopping:
            log.info("stopped")

    # --- who asks

    def _tell_about(self) -> None:
        if self._current is not None and not self._stopping:
            self._current.send("about", about=self._about())

    def _about(self) -> dict[str, Any]:
        """What only the supervisor knows, for who asks the pool."""
        return {
            "pid": os.getpid(),
            "started_at": self._started_at,
            "began": self._began,
            "serving": self._current.generation if self._current is not None else None,
            "restarts": self._restarts.crashes,
            "last_reload": self._last_reload,
            "leaving": [
                {"generation": pool.generation, "pid": pool.pid}
                for pool in self._pools.values()
                if pool.state == LEAVING
            ],
        }


def run(config: str, level: str | None) -> NoReturn:
    """Serve until stopped, and end the process.

    Exit codes: 0 after a stop; where the server could not be started 1, or 2 for an error in the config.

    :param config: the config file.
    :param level: the least that is logged; None: what the config says.
    """
    set_dumpable(False)
    logs.set_role("supervisor")
    try:
        given = given_sockets()  # before all descriptors look like those of this process
    except ValueError as error:
        logs.say([f"poolsrv: {error}"])
        os._exit(EXIT_FAILED)
    processes.close_on_exec_from(3)
    gc.enable()
    code = Supervisor(config, level, given).run()
    logging.shutdown()
    # At once: signals that come while the interpreter winds up are not to change how the server has ended.
    os._exit(code)
