"""Collects records of program runs from plugins, once a second, for the report to the dispatcher (ipc/runs.py)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final, cast

import msgspec

from ..ipc.runs import LONGEST_REPORT, MOST_PER_REPORT, Run, packed

log = logging.getLogger("poolsrv.worker")

RunSource = Callable[[], Sequence[Run]]

_NAME: Final = "report_runs"  # for the log
_MOST_WAITING: Final = 64  # records that matter, and wait for the next report


class RunSources:
    """What plugins have registered by ``Worker.report_runs``.

    :param are_kept: whether the pool keeps records.
    """

    def __init__(self, are_kept: bool = True) -> None:
        self.are_kept = are_kept
        self._sources: list[RunSource] = []
        self._waiting: list[Run] = []

    def add(self, source: RunSource) -> None:
        """Ask this one too."""
        if self.are_kept:
            self._sources.append(source)

    def collect(self) -> list[Run]:
        """Ask for what is new; as many records as a report may have, those that matter first, already encoded."""
        runs, self._waiting = self._waiting, []
        for source in self._sources:
            try:
                found = list(source())
                if other := next((type(run).__name__ for run in found if not isinstance(run, Run)), None):
                    raise TypeError(f"expected records of the class Run, got one of {other}")
                runs.extend(found)
            except BaseException:  # a plugin's sys.exit() is its own fault too
                log.exception("a plugin's callback failed (%s)", _NAME)
        if not runs:
            return []
        runs.sort(key=lambda run: not run.matters)  # stable: the oldest first
        chosen: list[msgspec.Raw] = []
        size = 0
        for number, run in enumerate(runs):
            try:
                record = packed(run)
            except (TypeError, ValueError, AttributeError, OverflowError):
                log.exception("a plugin's callback failed (%s)", _NAME)
                continue
            size += len(bytes(record))
            if size > LONGEST_REPORT or len(chosen) == MOST_PER_REPORT:
                self._waiting = [left for left in runs[number:] if left.matters][-_MOST_WAITING:]
                break
            chosen.append(record)
        return cast(list[Run], chosen)
