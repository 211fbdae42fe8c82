"""Does once what several clients ask for at the same time, and one thing at a time.

Of all that the worker apart does, writing `/metrics` needs most memory. If each client had it written for itself, or
for the report that it came with, several threads would do so at once.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolsrv import ServerReport, Worker

__all__ = ["SharedWork"]

Done = Callable[[Future[Any]], object]


class SharedWork:
    """Calls `work(report, kind)` in a thread, once for all who ask for a kind before it is called."""

    def __init__(self, worker: Worker, work: Callable[[ServerReport, str], object]) -> None:
        self._worker = worker
        self._work = work
        self._current: tuple[ServerReport, str, list[Done]] | None = None  # what is done now, and for whom
        self._due: dict[str, tuple[ServerReport, list[Done]]] = {}  # by kind: the latest report, and who waits

    def ask(self, report: ServerReport, kind: str, done: Done) -> None:
        """Call `done(future)` later, of this report or of one that has come after it."""
        current = self._current
        if current is not None and current[0] is report and current[1] == kind:
            current[2].append(done)
            return
        waiting = self._due[kind][1] if kind in self._due else []
        waiting.append(done)
        self._due[kind] = report, waiting
        if current is None:
            self._next()

    def _next(self) -> None:
        kind = next(iter(self._due))
        report, waiting = self._due.pop(kind)
        self._worker.run_blocking(self._work, report, kind, done=self._is_done)
        self._current = report, kind, waiting

    def _is_done(self, future: Future[Any]) -> None:
        assert self._current is not None
        waiting, self._current = self._current[2], None
        for done in waiting:
            self._worker.call_later(0.0, partial(done, future))  # a fault in one is not the others'
        if self._due:
            self._next()
