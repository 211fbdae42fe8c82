"""A worker of the pool, as plugins see it: its timers, threads, descriptors and programs.

The process around it is ``WorkerProcess`` (process.py).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from ..core.event_loop import READ, EventLoop, Timer
from ..core.sandbox import Sandbox
from ..ipc.runs import Run
from ..net.programs import Child, Reaper
from .blocking_threads import BlockingThreads
from .metrics import Metrics
from .run_sources import RunSources
from .status_client import AsksForStatus, ServerReport
from .worker_programs import WorkerPrograms

if TYPE_CHECKING:
    from concurrent.futures import Future


class Handle:
    """What ``Worker.every``, ``add_reader`` and ``on_reopen_logs`` return: ``cancel`` ends it."""

    __slots__ = ("_cancel",)

    def __init__(self, cancel: Callable[[], object]) -> None:
        self._cancel: Callable[[], object] | None = cancel

    def cancel(self) -> None:
        """No more calls. Harmless when called again."""
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()


class Worker:
    """A worker of the pool, as a plugin sees it in ``on_worker_start``.

    :param guarded: called as ``guarded(what, callback)``: calls a plugin's callback inside the fault boundary.
    :param programs: those that are started here.
    :param reopen_logs: callbacks for when log files are to be opened again; shared with the worker's process.
    :param runs: collects records of program runs.
    :param status: returns what asks for the server's status, in the worker apart.
    :ivar slot: its number in the pool, from 0; a worker that replaces a dead one has the same. -1 for the worker apart.
    :ivar draining: True once it is to end.
    :ivar metrics: where plugins define counters, gauges and histograms.
    """

    def __init__(
        self,
        slot: int,
        loop: EventLoop,
        *,
        reaper: Reaper,
        threads: BlockingThreads,
        programs: WorkerPrograms,
        guarded: Callable[[str, Callable[[], object]], object],
        reopen_logs: list[Callable[[], object]],
        metrics: Metrics,
        runs: RunSources,
        status: Callable[[], AsksForStatus | None],
    ) -> None:
        self.slot = slot
        self._status = status
        self.metrics = metrics
        self.draining = False
        self._loop = loop
        self._reaper = reaper
        self._threads = threads
        self._programs = programs
        self._guarded = guarded
        self._reopen_logs = reopen_logs
        self._runs = runs

    def server_report(self, done: Callable[[ServerReport], object]) -> None:
        """Ask the dispatcher for the server's status, then call ``done(report)``: once, within about 3 seconds.

        For handlers with ``apart = True``. The answer is not older than the question, and questions that come together
        share it; while there are many of them, there is a pause between two.

        :raises RuntimeError: the plugin's class does not have ``apart = True``.
        """
        status = self._status()
        if status is None:
            raise RuntimeError("server_report is for handlers whose class has `apart = True`")
        status.ask(done)

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Timer:
        """Call ``callback()`` in ``seconds``; the timer has ``cancel()``. An exception is logged."""
        return self._loop.call_later(seconds, partial(self._guarded, "call_later", callback))

    def every(self, seconds: float, callback: Callable[[], object]) -> Handle:
        """Call ``callback()`` every ``seconds``, first in ``seconds``. An exception is logged, and it goes on.

        :raises ValueError: ``seconds`` is not above 0.
        """
        if not seconds > 0:
            raise ValueError("every() takes a number of seconds above 0")
        timer: Timer

        def due() -> None:
            nonlocal timer
            timer = self._loop.call_later(seconds, due)
            self._guarded("every", callback)

        timer = self._loop.call_later(seconds, due)
        return Handle(lambda: timer.cancel())

    def call_soon_threadsafe(self, callback: Callable[[], object]) -> None:
        """Call ``callback()`` in the loop, soon; from any thread."""
        self._threads.call_soon(callback)

    def add_reader(self, fd: int, callback: Callable[[], object]) -> Handle:
        """Call ``callback()`` whenever the descriptor is readable; cancel the handle before you close it.

        :raises OSError: the descriptor can't be watched (epoll_ctl(2)).
        """
        loop = self._loop

        def on_event(mask: int) -> None:
            self._guarded("add_reader", callback)

        def cancel() -> None:
            if loop.callback_of(fd) is on_event:  # else it has been closed, and its number is another's
                loop.unregister(fd)

        loop.register(fd, READ, on_event)
        return Handle(cancel)

    def run_blocking(
        self, function: Callable[..., Any], *args: Any, done: Callable[[Future[Any]], object] | None = None
    ) -> None:
        """Call ``function(*args)`` in the worker's small thread pool, then ``done(future)`` in the loop.

        If no thread can be started (too many processes), the future has an OSError (EAGAIN).
        """
        self._threads.submit(partial(function, *args), partial(_blocking_done, done))

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        cwd: str | os.PathLike[str] | None = None,
        stdin: int | None = None,
        stdout: int | None = None,
        stderr: int | None = None,
        limits: Mapping[int, int] | None = None,
        sandbox: Sandbox | None = None,
    ) -> Child:
        """Start a program that belongs to no connection; as ``Connection.spawn`` otherwise.

        Each of ``stdin``, ``stdout`` and ``stderr`` is None (the null device), ``PIPE`` (this side is a ``Stream`` of
        the child), or the descriptor of an open file. When it has ended, ``on_child_exit`` is called for every plugin
        in this worker, with ``conn`` None. It does not keep a worker that is to end from ending: after
        ``on_worker_stop`` it gets TERM, and KILL 2 seconds later.

        :param argv: the program and its arguments.
        :param env: its whole environment; None: nothing but a PATH.
        :param cwd: its working directory; None: the server's.
        :param limits: resource limits of the program, ``{resource.RLIMIT_NOFILE: 64}``; each is the soft and the hard
            one.
        :param sandbox: what it may do; None: what its user may.
        :raises OSError: it can't be started.
        """
        return self._programs.spawn(
            argv, env=env, cwd=cwd, sources=(stdin, stdout, stderr), limits=limits, sandbox=sandbox
        )

    def reap_orphans_of(self, pid: int) -> None:
        """Reap what a child leaves behind that a plugin has started itself, and what the child's descendants do. To be
        called before the child has started anything; its own end is the plugin's to wait for."""
        self._reaper.orphans.look_behind(pid)

    def report_runs(self, source: Callable[[], Sequence[Run]]) -> bool:
        """Have ``poolsrv runs`` show the programs that a plugin runs.

        :param source: called about once a second: ``source()`` returns a ``Run`` for each program that has ended since
            the last call. Of these, the failed and slow ones count most, then the latest of the others: the plugin need
            not keep more than ``Run.MOST``.
        :returns: False if the pool keeps no records. Then it is never called.
        """
        self._runs.add(source)
        return self._runs.are_kept

    def on_reopen_logs(self, callback: Callable[[], object]) -> Handle:
        """Call ``callback()`` whenever log files are to be opened again, because they have been renamed (USR1)."""
        self._reopen_logs.append(callback)
        return Handle(partial(self._reopen_logs.remove, callback))


def _blocking_done(done: Callable[[Future[Any]], object] | None, future: Future[Any]) -> None:
    if done is not None:
        done(future)
    else:
        future.result()
