"""The supervisor: the process that the user starts. It keeps what outlives a reload, and starts pools.

Theory. A *pool* is a dispatcher with its workers. It is started as a fresh process (``python -m poolsrv.supervised``),
which reads the config and the code as they are on disk at that moment; nothing of them is ever in this process. What
has to stay the same over all pools is here: the pid, the signals from outside, the listening sockets. On HUP a second
pool is started beside the first. It gets the sockets that stand, hands back those that it binds anew, and only when it
says that every worker of it serves is the first one told to drain. If it fails it is ended, and nothing has changed.
So one mechanism serves a new config, a new version of a plugin, and a new version of poolsrv.

A pool is in one of these states; handshake.py has what the two say to each other:

    STARTING --> SERVING     every worker of it serves; the one before is told to stop
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
from functools import partial
from typing import Any, Final, NoReturn

from . import children, logs, signals
from .children import describe_exit
from .dumpable import set_dumpable
from .eventloop import READ, Timer
from .guardedloop import GuardedLoop
from .handshake import VERSION, Held, Message, received_sockets, send_sockets
from .heldsockets import give_up, given_sockets
from .pidfile import PidFile, PidFileTaken
from .poolprocess import EXIT_FAILED, LEAVING, SERVING, STARTING, PoolProcess
from .procfs import seconds_since_boot
from .sdnotify import Notifier
from .text import one_line

log = logging.getLogger("poolsrv.supervisor")

FIRST_DELAY: Final = 0.1  # seconds before a pool that has crashed young is started again; doubled each time
LONGEST_DELAY: Final = 30.0
SERVED_WELL: Final = 10.0  # seconds of service after which a crash is the first of its series
RELOAD_TIME_LIMIT: Final = 300.0  # seconds until a reload's pool has to serve: a plugin's import may hang
END_MARGIN: Final = 10.0  # seconds after graceful_timeout that a pool has to end by itself
STOP_NOW_MARGIN: Final = 4.0  # the same after a second signal to stop
ORPHANS_PATIENCE: Final = 4.0  # seconds that the workers of a dispatcher that was killed have to end by themselves
WATCHDOG_SHARE: Final = 3  # signs of life for each interval of the service manager's watchdog
STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)


class Supervisor:
    """See the module's docstring.

    :param config: the config file, as the user has named it.
    :param level: the least that is logged, where the command line says so.
    :param given: the sockets of the service manager, by key.
    """

    def __init__(self, config: str, level: str | None, given: dict[str, Held]) -> None:
        self._config = config
        self._level = level
        self._started_at, self._began = time.time(), seconds_since_boot()
        self._reload_began = 0.0
        # Who has been started by this process before it became poolsrv (a shell's "exec") is none of its business.
        self._not_ours = children.children_of_this_process()
        self._signals = signals.SignalPipe(
            (*STOPS, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1, signal.SIGTTIN, signal.SIGTTOU)
        )
        self._notifier = Notifier()
        self._given = given
        self._held = dict(self._given)  # and what the pool that serves uses
        self._loop = GuardedLoop(log)
        self._pools: dict[int, PoolProcess] = {}  # by pid
        self._current: PoolProcess | None = None  # that serves
        self._candidate: PoolProcess | None = None  # that is to serve
        self._generation = 0
        self._pidfile: PidFile | None = None
        self._reload_again = False
        self._last_reload: dict[str, Any] | None = None
        self._restarts = 0  # of pools that have crashed
        self._crashes = 0  # of these, in a row
        self._retry: Timer | None = None
        self._stopping = 0  # how many times it has been asked to
        self._exit_code = 0
        self._ended = False

    def run(self) -> int:
        """Until the server has been stopped, or could not be started; the exit code."""
        loop = self._loop
        children.become_subreaper()
        loop.register(self._signals.fileno(), READ, self._on_signal)
        signals.unblock()
        self._start()
        while not self._ended:
            loop.turn()
        self._finish()
        return self._exit_code

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
            if pool.configured:
                pool.tell("reopen_logs")
            else:
                pool.reopen_logs = True

    def _change_workers(self, by: int) -> None:
        if self._current is not None:
            self._current.tell("workers", by=by)

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
        if reload:
            pool.kill_later(RELOAD_TIME_LIMIT, partial(self._took_too_long, pool))
        try:
            send_sockets(
                pool.link,
                "start",
                list(self._held.values()),
                version=VERSION,
                generation=pool.generation,
                config=self._config,
                log_level=self._level,
                alive_every=self._notifier.watchdog / WATCHDOG_SHARE,
                about=self._about(),
            )
        except OSError as error:
            pool.errors.append(f"it can't be given the sockets: {error.strerror}")
            pool.kill()

    def _could_not_start(self, reload: bool, error: OSError) -> None:
        message = f"can't start a pool: {error.strerror}"
        if self._generation == 1:
            self._exit_code, self._ended = EXIT_FAILED, True
            log.error("%s", message)
        else:
            self._failed_later(reload, [message])

    def _took_too_long(self, pool: PoolProcess) -> None:
        pool.errors.append(f"its workers do not serve after {RELOAD_TIME_LIMIT:.0f} seconds")

    # --- what a pool says

    def _on_message(self, pool: PoolProcess, message: Message) -> None:
        kind, fields = message.kind, message.fields
        if kind == "bound":
            pool.new.update((held.key, held) for held in received_sockets(message))
        elif kind == "configured":
            self._configured(pool, fields)
        elif kind == "serves":
            self._serves(pool)
        elif kind == "failed":
            pool.errors += fields["lines"]
            pool.exit_code = fields["exit_code"]
        elif kind == "alive" and pool is self._current:
            self._notifier.send("WATCHDOG=1")

    def _configured(self, pool: PoolProcess, fields: dict[str, Any]) -> None:
        """It knows what it needs: see that it may have it."""
        if self._stopping:
            return
        pool.graceful_timeout = fields["graceful_timeout"]
        pool.sockets = {key: pool.new.get(key) or self._held[key] for key in fields["keys"]}
        pool.log = fields["log"]
        path = fields["pidfile"]
        held_by_us = self._pidfile is not None and self._pidfile.path == path
        try:
            if path is not None and not held_by_us:
                pool.pidfile = PidFile(path)
        except (PidFileTaken, OSError) as error:
            reason = f"{path}: {error.strerror}" if isinstance(error, OSError) else str(error)
            pool.errors.append(f"pool.pidfile: {reason}")
            pool.kill()
            return
        if held_by_us:
            pool.pidfile = self._pidfile
        pool.configured = True
        pool.tell("go")
        if pool.reopen_logs:
            pool.tell("reopen_logs")

    def _serves(self, pool: PoolProcess) -> None:
        """Every worker of it serves: from now on it is the one."""
        if pool is not self._candidate or self._stopping:
            return
        former, self._current, self._candidate = self._current, pool, None
        pool.state = SERVING
        pool.served_since = self._loop.now
        pool.spare()
        self._keep_sockets_of(pool)
        self._log_as(pool)
        if self._pidfile is not None and self._pidfile is not pool.pidfile:
            self._pidfile.remove()
        self._pidfile = pool.pidfile
        if pool.reload:
            self._last_reload = {"at": time.time(), "ok": True, "errors": [], "began": self._reload_began}
            log.info("generation %d (pid %d) serves", pool.generation, pool.pid)
        self._notifier.send("READY=1", f"STATUS=serving, generation {pool.generation}")
        if former is not None:
            self._leave(former, "reload")
        self._tell_about()
        self._reload_if_asked_again()

    def _log_as(self, pool: PoolProcess) -> None:
        try:
            logs.set_up(self._level or pool.log["level"], pool.log["format"], pool.log["file"], pool.log["owner"])
        except OSError as error:
            log.error("can't open the log %s: %s", pool.log["file"], error.strerror)

    def _keep_sockets_of(self, pool: PoolProcess) -> None:
        """Of the listening sockets those that it uses; and what the service manager has opened, always."""
        for key, held in self._held.items():
            if key not in self._given and pool.sockets.get(key) is not held:
                give_up(held, unlink=key not in pool.sockets)
        self._held = {**self._given, **pool.sockets}
        pool.new.clear()

    # --- reload

    def _reload(self) -> None:
        if self._stopping:
            log.info("SIGHUP: stopping already")
        elif self._candidate is not None:
            self._reload_again = True
            log.info("SIGHUP: a pool is being started; another reload follows")
        else:
            log.info("SIGHUP: reloading %s", self._config)
            self._notifier.reloading()
            if self._retry is not None:
                self._retry.cancel()
                self._retry = None
            self._reload_began = seconds_since_boot()
            self._start(reload=True)

    def _reload_if_asked_again(self) -> None:
        """HUP has come while a pool was being started."""
        if self._reload_again:
            self._reload_again = False
            self._reload()

    def _reload_failed(self, errors: list[str]) -> None:
        for line in errors:
            log.error("reload: %s", line, extra={"reason": line})
        log.error("the reload has failed, with %d errors; nothing has changed", len(errors))
        self._last_reload = {"at": time.time(), "ok": False, "errors": errors, "began": self._reload_began}
        first = errors[0] if errors else "see the log"
        self._notifier.send("READY=1", f"STATUS=reload failed ({len(errors)} errors): {first}")
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
            if not self._stopping:
                self._crashed(pool, returncode)
        elif pool.state == LEAVING and not self._stopping:
            how = describe_exit(returncode)
            log.info("generation %d (pid %d) has left: %s", pool.generation, pool.pid, how, extra={"reason": how})
            self._tell_about()

    def _candidate_ended(self, pool: PoolProcess, returncode: int) -> None:
        for held in pool.new.values():
            give_up(held)
        if pool.pidfile is not None and pool.pidfile is not self._pidfile:
            pool.pidfile.remove()
        if self._stopping:
            return
        errors = pool.errors or [f"the pool {describe_exit(returncode)} before it served"]
        if pool.generation == 1:
            self._start_failed(pool, errors)
            return
        self._failed_later(pool.reload, errors)
        self._reload_if_asked_again()

    def _failed_later(self, reload: bool, errors: list[str]) -> None:
        """A pool that is not the first could not serve."""
        if reload:
            self._reload_failed(errors)
            errors = []
        if self._current is None:
            self._retry_later(errors)

    def _start_failed(self, pool: PoolProcess, errors: list[str]) -> None:
        """The first pool never served: neither did the server. Said without time and level, to who has started it."""
        prefix = "poolsrv: " if pool.exit_code == EXIT_FAILED else ""  # an error in the config names the file
        _say([prefix + line for line in errors])
        self._exit_code, self._ended = pool.exit_code, True

    def _crashed(self, pool: PoolProcess, returncode: int) -> None:
        """The pool that served has ended, and nobody had told it to."""
        lived = self._loop.now - pool.served_since
        log.error(
            "the pool (generation %d, pid %d) %s after %.1f s; its connections are lost, and another one is started",
            pool.generation,
            pool.pid,
            describe_exit(returncode),
            lived,
            extra={"reason": describe_exit(returncode)},
        )
        self._restarts += 1
        self._notifier.send("STATUS=the pool has crashed, another one is being started")
        if lived >= SERVED_WELL:
            self._crashes = 0
        if self._candidate is not None:
            return  # a reload's: it takes over
        if self._crashes == 0:
            self._crashes = 1
            self._start()
        else:
            self._retry_later([])

    def _retry_later(self, errors: list[str]) -> None:
        for line in errors:
            log.error("%s", line)
        delay = min(FIRST_DELAY * 2**self._crashes, LONGEST_DELAY)
        self._crashes += 1
        log.error("no pool serves, connections wait: next try in %.1f s", delay)
        self._retry = self._loop.call_later(delay, self._try_again)

    def _try_again(self) -> None:
        self._retry = None
        if not self._stopping and self._candidate is None:
            self._start()

    def _kill_orphans(self) -> None:
        """Workers and programs that a dead dispatcher has left are this process's children now (subreaper)."""
        if children.kill_children(self._not_ours | self._pools.keys()):
            # What those leave in turn is only adopted once they have ended.
            self._loop.call_later(0.1, self._kill_orphans)

    # --- stopping

    def _stop(self, why: str) -> None:
        """The first time: no new connections, the open ones may finish. The second time: end at once."""
        self._stopping += 1
        if self._stopping == 1:
            self._notifier.send("STOPPING=1", f"STATUS={why}: stopping")
            if self._retry is not None:
                self._retry.cancel()
            for held in self._held.values():
                give_up(held)
            self._held.clear()
            for pool in self._pools.values():
                self._leave(pool, why)
        elif self._stopping == 2:
            log.info("%s: ending at once", why, extra={"reason": why})
            for pool in self._pools.values():
                pool.tell("stop_now")
                if not pool.configured:
                    pool.kill()
                pool.kill_later(STOP_NOW_MARGIN, partial(self._does_not_end, pool))
        if not self._pools:
            self._ended = True

    def _leave(self, pool: PoolProcess, why: str) -> None:
        if pool.state == LEAVING:
            return
        if pool.state == STARTING:
            pool.signal(signal.SIGTERM)  # it listens to nothing else yet
        pool.state = LEAVING
        pool.tell("stop", why=why)
        pool.signal(signal.SIGCONT)  # it may have been stopped
        pool.kill_later(pool.graceful_timeout + END_MARGIN, partial(self._does_not_end, pool))

    def _does_not_end(self, pool: PoolProcess) -> None:
        log.error("the pool (generation %d, pid %d) does not end: killing it", pool.generation, pool.pid)

    def _finish(self) -> None:
        """All pools have ended: nothing of theirs is to be left."""
        for held in self._held.values():
            give_up(held)
        deadline = self._loop.now + ORPHANS_PATIENCE
        while children.kill_children(self._not_ours) and self._loop.now < deadline:
            self._loop.turn(0.02)
            self._reap()
        if self._pidfile is not None:
            self._pidfile.remove()
        self._loop.close()
        if self._stopping:
            log.info("stopped")

    # --- who asks

    def _tell_about(self) -> None:
        if self._current is not None and not self._stopping:
            self._current.tell("about", about=self._about())

    def _about(self) -> dict[str, Any]:
        """What only the supervisor knows, for who asks the pool."""
        return {
            "pid": os.getpid(),
            "started_at": self._started_at,
            "began": self._began,
            "serving": self._current.generation if self._current is not None else None,
            "restarts": self._restarts,
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
        _say([f"poolsrv: {error}"])
        os._exit(EXIT_FAILED)
    children.close_on_exec_from(3)
    gc.enable()
    code = Supervisor(config, level, given).run()
    logging.shutdown()
    # At once: signals that come while the interpreter winds up are not to change how the server has ended.
    os._exit(code)


def _say(lines: list[str]) -> None:
    """To who has started the server; as they are, without time and level."""
    try:
        with open(2, "w", closefd=False, errors="backslashreplace") as stream:
            stream.writelines(f"{one_line(line)}\n" for line in lines)
    except OSError:
        pass  # nobody wants to know
