"""The ledger: what a pool has counted, its workers' metrics included, those of dead workers and of other pools too.

Theory. Everything that only grows is kept here under the identity of its series. What this pool has counted is *own*;
the supervisor reports what other pools have counted (supervisor/counts.py): those before a reload, those that still
drain, and those that have crashed. A total is the sum of both, so it goes back neither at a worker's death nor at a
reload. A gauge is its current value: the sum over the workers that run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import Final

from ..ipc.figures import FIGURES, PER_WORKER
from ..ipc.metrics import (
    COUNTER,
    GAUGE,
    HISTOGRAM,
    MOST_SERIES,
    Definition,
    Distribution,
    Labels,
    MetricsReport,
    Series,
)
from ..ipc.worker_channel import BadReport
from .worker_slot import WorkerSlot

log = logging.getLogger("poolsrv.dispatcher")

MOST_TOTAL: Final = 2**53  # where a total stays; JSON readers take no larger integers

Amount = float | Distribution


class Ledger:
    """The figures of a pool.

    :ivar helps: what each metric counts, by name.
    """

    def __init__(self) -> None:
        self.helps = {name: figure.help for name, figure in FIGURES.items()}
        self._kinds: dict[str, str] = {name: figure.kind for name, figure in FIGURES.items()}
        self._own: dict[Series, Amount] = {}
        self._others: dict[Series, Amount] = {}
        self._refused: set[str] = set()  # names that the log has told of

    # --- what this pool counts

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        """Count something that the dispatcher itself has seen."""
        series = Series(COUNTER, name, tuple(labels.items()))
        own = self._own.get(series, 0)
        assert not isinstance(own, Distribution)
        self._own[series] = _capped(own + amount)

    def set(self, name: str, amount: float, **labels: str) -> None:
        """Take over a count that is kept elsewhere in this process."""
        self._own[Series(COUNTER, name, tuple(labels.items()))] = amount

    def raise_to(self, name: str, amount: float) -> None:
        """The same of a measurement that may be a little less than before."""
        series = Series(COUNTER, name)
        before = self._own.get(series, 0)
        assert not isinstance(before, Distribution)
        self._own[series] = max(before, amount)

    def take(self, slot: WorkerSlot, report: MetricsReport) -> None:
        """Add what a worker has reported, and ``check`` has found right."""
        for definition in report.defined:
            slot.series.append(self._known(definition))
        for index, amount in report.numbers:
            series = slot.series[index]
            if series is None:
                continue
            if series.kind == GAUGE:
                slot.gauges[index] = amount
            else:
                own = self._own[series]
                assert not isinstance(own, Distribution)
                self._own[series] = _capped(own + amount)
        for index, total, filled in report.histograms:
            series = slot.series[index]
            if series is not None:
                distribution = self._own[series]
                assert isinstance(distribution, Distribution)
                distribution.grow(total, filled)

    def _known(self, definition: Definition) -> Series | None:
        """Return the series that a worker describes; None if it does not fit what others have described."""
        kind, name, help_text, labels = definition
        if self._kinds.setdefault(name, kind) != kind:
            self._refuse(name, f"it is a {self._kinds[name]} elsewhere, and here a {kind}")
            return None
        series = Series(kind, name, tuple(map(tuple, labels)))  # type: ignore[arg-type]
        if series not in self._own:
            if len(self._own) >= MOST_SERIES:
                self._refuse(name, f"there are {MOST_SERIES} series already")
                return None
            if kind != GAUGE:
                self._own[series] = Distribution() if kind == HISTOGRAM else 0
        self.helps.setdefault(name, help_text)
        return series

    def _refuse(self, name: str, why: str) -> None:
        if name not in self._refused:
            self._refused.add(name)
            log.error("metric %s is not shown: %s", name, why, extra={"reason": why})

    # --- totals

    def learn(self, series: Series, amount: Amount) -> None:
        """Learn what other pools have counted until now, in all."""
        if isinstance(amount, Distribution) == (series.kind == HISTOGRAM):
            self._others[series] = amount

    def snapshot(self) -> dict[str, dict[Labels, Amount]]:
        """All counters and histograms, by name and labels. A name has one kind only."""
        found: dict[str, dict[Labels, Amount]] = {}
        for amounts in (self._own, self._others):
            for series, amount in amounts.items():
                if self._kinds.setdefault(series.name, series.kind) != series.kind:
                    continue  # a former pool's, which meant something else by this name
                of_metric = found.setdefault(series.name, {})
                of_metric[series.labels] = _sum(of_metric.get(series.labels), amount)
        return found

    def kind(self, name: str) -> str:
        """The kind of a metric that has a series."""
        return self._kinds[name]

    def own(self) -> dict[Series, Amount]:
        """What this pool has counted."""
        return self._own


def _sum(one: Amount | None, other: Amount) -> Amount:
    if isinstance(other, Distribution):
        both = Distribution(other.sum, other.counts)
        if isinstance(one, Distribution):
            both.add(one)
        return both
    return other if one is None or isinstance(one, Distribution) else one + other


def gauges(slots: Iterable[WorkerSlot]) -> dict[Series, float]:
    """The sums of the workers' gauges."""
    sums: dict[Series, float] = {}
    for slot in slots:
        for index, series in enumerate(slot.series):
            if series is not None and series.kind == GAUGE and series.name not in PER_WORKER:
                sums[series] = sums.get(series, 0) + slot.gauges.get(index, 0)
    return sums


def check(slot: WorkerSlot, report: MetricsReport) -> None:
    """Check a report of metrics; ipc/metrics.py has checked types and ranges before.

    :raises BadReport: it does not fit what the worker has described.
    """
    kinds = [series.kind if series is not None else None for series in slot.series]
    kinds += [definition.kind for definition in report.defined]
    if len(kinds) > MOST_SERIES:
        raise BadReport(f"it describes more than {MOST_SERIES} series of metrics")
    for index, amount in report.numbers:
        if index >= len(kinds):
            raise BadReport("it reported on a metric that it has not described")
        if kinds[index] == HISTOGRAM or not math.isfinite(amount):
            raise BadReport(f"it reported {amount} for a {kinds[index]}")
        if kinds[index] == COUNTER and amount < 0:
            raise BadReport(f"it reported that a counter has grown by {amount}")
    for index, total, _ in report.histograms:
        if index >= len(kinds):
            raise BadReport("it reported on a metric that it has not described")
        if kinds[index] not in (HISTOGRAM, None) or not math.isfinite(total):
            raise BadReport(f"it reported a distribution for a {kinds[index]}")


def _capped(total: float) -> float:
    return min(total, MOST_TOTAL)


def gauge(slot: WorkerSlot, name: str) -> float:
    """One of the engine's gauges of a worker."""
    wanted = Series(GAUGE, name)
    for index, series in enumerate(slot.series):
        if series == wanted:
            return slot.gauges.get(index, 0)
    return 0
