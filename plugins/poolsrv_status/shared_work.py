"""Does once what several clients ask for at the same time.

Of all that the worker apart does, writing `/metrics` needs most memory. If each client had it written for itself,
several threads would do so at once.
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
    """Calls `work(report, kind)` in a thread, once for all who ask before it is done."""

    def __init__(self, worker: Worker, work: Callable[[ServerReport, str], object]) -> None:
        self._worker = worker
        self._work = work
        self._asking: dict[tuple[int, str], list[Done]] = {}  # by the report's identity, and the kind

    def ask(self, report: ServerReport, kind: str, done: Done) -> None:
        """Call `done(future)` later."""
        key = id(report), kind
        asking = self._asking.get(key)
        if asking is not None:
            asking.append(done)
            return
        self._asking[key] = [done]
        # The report is an argument of the callback too: as long as it is there, no other has its identity.
        self._worker.run_blocking(self._work, report, kind, done=partial(self._is_done, key, report))

    def _is_done(self, key: tuple[int, str], report: ServerReport, future: Future[Any]) -> None:
        for done in self._asking.pop(key):
            self._worker.call_later(0.0, partial(done, future))  # a fault in one is not the others'
