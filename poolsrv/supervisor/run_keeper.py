"""Keeps records of program runs while pools come and go, so that ``poolsrv runs`` shows those before a reload too.

A pool reports new records once a second, beside its counts (counts.py). The pool that answers questions is told all
records of other pools: those that have ended, crashed or still drain. It is told in pieces, each once the one before
has been read: records must not take up the room that other messages need.
"""

from __future__ import annotations

from typing import Any, Final

from ..core.event_loop import EventLoop
from ..ipc.kept_runs import MOST_CHARACTERS, MOST_IN_MESSAGE, MOST_OF_A_KIND, KeptRuns, message_of
from ..ipc.pieces import in_pieces
from .pool import PoolProcess

NEXT_AFTER: Final = 0.02  # seconds to the next piece


class RunKeeper:
    """The latest records of all pools: as many as the pool shows that answers questions."""

    def __init__(self, loop: EventLoop) -> None:
        self._loop = loop
        self._kept: KeptRuns[str] = KeptRuns(MOST_OF_A_KIND, MOST_CHARACTERS, len)
        self._receiver: PoolProcess | None = None
        self._untold: list[str] = []  # IDs
        self._next_due = False

    def tell(self, pool: PoolProcess) -> None:
        """Tell this pool, from now on, of the runs of others."""
        if pool is not self._receiver:
            self._receiver = pool
            self._kept.limit(MOST_OF_A_KIND if pool.runs is None else pool.runs)  # nobody could see more
            self._untold = self._kept.ids()
        self._send()

    def taken(self, pool: PoolProcess, fields: dict[str, Any]) -> None:
        """A pool has told of runs."""
        runs = fields.get("runs")
        if not runs:
            return
        for run_id, matters, text in runs:
            is_new = self._kept.add(run_id, matters, text)
            if is_new and pool is not self._receiver and self._receiver is not None:
                self._untold.append(run_id)
        self._send()

    def ended(self, pool: PoolProcess) -> None:
        """A pool has ended."""
        if pool is self._receiver:
            self._receiver = None
            self._untold = []

    def _send(self) -> None:
        receiver = self._receiver
        if receiver is None or not self._untold or self._next_due:
            return
        found = [(run_id, self._kept.get(run_id)) for run_id in self._untold]
        runs = [(run_id, *kept) for run_id, kept in found if kept is not None]  # others have been dropped meanwhile
        piece = next(in_pieces(runs, MOST_IN_MESSAGE), [])
        try:
            if not receiver.link.unread():
                receiver.link.send("counted", counted=[], runs=message_of(piece))
                runs = runs[len(piece) :]
        except OSError:
            pass  # later
        self._untold = [run_id for run_id, _, _ in runs]
        if self._untold:
            self._next_due = True
            self._loop.call_later(NEXT_AFTER, self._send_next)

    def _send_next(self) -> None:
        self._next_due = False
        self._send()
