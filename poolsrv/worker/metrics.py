"""Metrics of a worker: the engine's and the plugins' counters, gauges and histograms.

An increment is an addition to an attribute, and nothing else: the reporter looks once a second at what has changed
(``Registry.collect``). ipc/metrics.py says how metrics add up.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, Self, TypeVar

import msgspec

from ..ipc.metrics import (
    BUCKETS,
    COUNTER,
    GAUGE,
    HISTOGRAM,
    LONGEST_HELP,
    MOST_GROWTH,
    MOST_SERIES,
    Definition,
    Kind,
    MetricsReport,
    Packer,
    sort_in,
)
from .metric_names import checked_labels, checked_name, label_value

log = logging.getLogger("poolsrv.plugins")

MOST_METRICS_OF_PLUGIN: Final = 100
MOST_SERIES_OF_PLUGIN: Final = 1000


class PluginOf(msgspec.Struct, frozen=True):
    """A plugin on a listener, by their names."""

    listener: str
    plugin: str


ENGINE: Final = PluginOf("", "")  # the owner of its own metrics


class _Metric:
    """What the three kinds have in common."""

    __slots__ = ("_family",)
    _family: Family

    def labels(self, *values: object, **named: object) -> Self:
        """The series with these values of the labels, by position or by name. Keep it if you need it often.

        :raises ValueError: the labels are not those of the metric.
        """
        return self._family.series(values, named)  # type: ignore[return-value]


class Counter(_Metric):
    """A number that only grows.

    :ivar value: what this worker has counted.
    """

    __slots__ = ("_told", "value")

    def __init__(self, family: Family) -> None:
        self.value: float = 0
        self._told: float = 0
        self._family = family

    def inc(self, amount: float = 1) -> None:
        """Add one, or ``amount``.

        :raises ValueError: ``amount`` is below 0.
        """
        if not amount >= 0:
            raise ValueError(f"{self._family.name}: a counter only grows, it can't be changed by {amount!r}")
        self.value += amount

    def collect(self, index: int, packer: Packer) -> None:
        """For the registry: report what is new."""
        if self.value != self._told:
            grown = _bounded(self.value - self._told)
            self._told = self.value = self._told + grown
            packer.number(index, grown)


class Gauge(_Metric):
    """A number that goes up and down. The dispatcher adds up those of all workers that run.

    :ivar value: what it is in this worker.
    """

    __slots__ = ("_told", "value")

    def __init__(self, family: Family) -> None:
        self.value: float = 0
        self._told: float = 0
        self._family = family

    def set(self, value: float) -> None:
        """Set it."""
        self.value = value

    def inc(self, amount: float = 1) -> None:
        """Add one, or ``amount``."""
        self.value += amount

    def dec(self, amount: float = 1) -> None:
        """Subtract one, or ``amount``."""
        self.value -= amount

    def collect(self, index: int, packer: Packer) -> None:
        """For the registry: report what is new."""
        if self.value != self._told:
            self._told = self.value = _bounded(self.value)
            packer.number(index, self.value)


class Histogram(_Metric):
    """How values are distributed: times in seconds, sizes in bytes. The buckets are always the same.

    :ivar new: values that ``settle`` is still to add, many at once; the engine appends its own.
    """

    __slots__ = ("_counts", "_sum", "_told", "_told_sum", "new")

    def __init__(self, family: Family) -> None:
        self.new: list[float] = []
        self._sum = 0.0
        self._counts = [0] * BUCKETS
        self._told = [0] * BUCKETS
        self._told_sum = 0.0
        self._family = family

    @property
    def count(self) -> int:
        """How many values this worker has observed."""
        return sum(self._counts) + len(self.new)

    @property
    def sum(self) -> float:
        """Of the values that this worker has observed."""
        self.settle()
        return self._sum

    @property
    def counts(self) -> list[int]:
        """How many values came into each bucket."""
        self.settle()
        return self._counts

    def observe(self, value: float) -> None:
        """Add a value.

        :raises ValueError: it is below 0.
        """
        if not value >= 0:
            raise ValueError(f"{self._family.name}: a histogram takes values from 0 up, not {value!r}")
        self.new.append(value)

    def settle(self) -> None:
        """Add the new values."""
        if self.new:
            sort_in(self.new, self._counts)
            self._sum += sum(self.new)
            self.new.clear()

    def collect(self, index: int, packer: Packer) -> None:
        """For the registry: report what is new."""
        self.settle()
        if self._counts == self._told:
            return
        told, self._told = self._told, list(self._counts)
        filled = [(bucket, times - told[bucket]) for bucket, times in enumerate(self._counts) if times != told[bucket]]
        grown = max(_bounded(self._sum - self._told_sum), 0)
        self._told_sum = self._sum = self._told_sum + grown
        packer.histogram(index, float(grown), filled)


class _LabelledCounter(Counter):
    """Stands for all series of a counter that has labels."""

    __slots__ = ()

    def inc(self, amount: float = 1) -> None:
        self._family.needs_labels()


class _LabelledGauge(Gauge):
    """The same of a gauge."""

    __slots__ = ()

    def set(self, value: float) -> None:
        self._family.needs_labels()

    def inc(self, amount: float = 1) -> None:
        self._family.needs_labels()

    dec = inc


class _LabelledHistogram(Histogram):
    """The same of a histogram."""

    __slots__ = ()

    def observe(self, value: float) -> None:
        self._family.needs_labels()


Metric = Counter | Gauge | Histogram
M = TypeVar("M", Counter, Gauge, Histogram)
_CLASSES: Final[dict[str, tuple[type[Any], type[Any]]]] = {
    COUNTER: (Counter, _LabelledCounter),
    GAUGE: (Gauge, _LabelledGauge),
    HISTOGRAM: (Histogram, _LabelledHistogram),
}


class Family:
    """A metric of one plugin on one listener, with its series."""

    def __init__(
        self, registry: Registry, owner: PluginOf, kind: Kind, name: str, help_text: str, labels: tuple[str, ...]
    ) -> None:
        self.owner = owner
        self.kind = kind
        self.name = name
        self.help = help_text
        self.label_names = labels
        self._registry = registry
        self._children: dict[tuple[object, ...], Metric] = {}
        self._overflow: Metric | None = None
        self.metric: Metric
        if labels:
            self.metric = _CLASSES[kind][1](self)
        else:
            self.metric = self.series((), {})

    def series(self, values: tuple[object, ...], named: dict[str, object]) -> Metric:
        """Return the series with these values of the labels; it is made when it is first asked for."""
        if named:
            values = self._in_order(values, named)
        try:
            return self._children[values]
        except KeyError:
            pass
        except TypeError:
            raise ValueError(f"{self.name}: a label's value is text, not {values!r}") from None
        if len(values) != len(self.label_names):
            self._wrong(values)
        child: Metric = _CLASSES[self.kind][0](self)
        if not self._registry.add(self, tuple(map(label_value, values)), child):
            # Too many: the plugin goes on, and what it counts here is not shown.
            self._overflow = self._overflow or child
            return self._overflow
        self._children[values] = child
        return child

    def _in_order(self, values: tuple[object, ...], named: dict[str, object]) -> tuple[object, ...]:
        if values or named.keys() != set(self.label_names):
            self._wrong((*values, *named))
        return tuple(named[name] for name in self.label_names)

    def _wrong(self, given: Sequence[object]) -> None:
        expected = f"the labels {', '.join(self.label_names)}" if self.label_names else "no labels"
        raise ValueError(f"{self.name}: it has {expected}, not {', '.join(map(str, given)) or 'none'}")

    def needs_labels(self) -> None:
        """A plugin has used a metric with labels as if it had none."""
        names = ", ".join(self.label_names)
        raise ValueError(f"{self.name}: it has labels: use {self.name}.labels({names})")


class Registry:
    """All metrics of a worker."""

    def __init__(self) -> None:
        self._families: dict[tuple[PluginOf, str], Family] = {}
        self._kinds: dict[str, Family] = {}  # by name, from the first plugin that defined it
        self._series: list[tuple[Metric, Definition]] = []
        self._described = 0  # how many series have been reported
        self._of_plugin: dict[str, int] = {}  # series, by plugin
        self._told_full: set[str] = set()

    def define(self, owner: PluginOf, kind: Kind, name: str, help_text: str, labels: Sequence[str] = ()) -> Metric:
        """Return a metric, which is made when it is first asked for.

        :raises ValueError: the name, the help or a label is wrong or taken, or the plugin has too many metrics.
        """
        if owner != ENGINE:
            name = checked_name(kind, name)
            labels = checked_labels(name, labels)
            if not isinstance(help_text, str) or not help_text.strip() or len(help_text) > LONGEST_HELP:
                raise ValueError(f"{name}: its help must be a text of 1 to {LONGEST_HELP} characters")
        labels = tuple(labels)
        family = self._families.get((owner, name))
        known = self._kinds.get(name)
        if known is not None and (known.kind, known.label_names) != (kind, labels):
            raise ValueError(
                f"{name}: there is a {known.kind} of that name already"
                + (f", of plugin {known.owner.plugin!r}" if known.owner.plugin != owner.plugin else "")
                + (f", with the labels {', '.join(known.label_names)}" if known.label_names else ", without labels")
            )
        if family is None:
            of_plugin = {key[1] for key in self._families if key[0].plugin == owner.plugin}
            if owner != ENGINE and name not in of_plugin and len(of_plugin) >= MOST_METRICS_OF_PLUGIN:
                raise ValueError(f"{name}: a plugin may have {MOST_METRICS_OF_PLUGIN} metrics")
            family = self._families[owner, name] = Family(self, owner, kind, name, help_text, labels)
            self._kinds.setdefault(name, family)
        return family.metric

    def add(self, family: Family, values: Sequence[str], metric: Metric) -> bool:
        """Add a series to a metric.

        :returns: False if there are too many; the log says so once for each plugin.
        """
        plugin = family.owner.plugin
        count = self._of_plugin.get(plugin, 0)
        if (plugin and count >= MOST_SERIES_OF_PLUGIN) or len(self._series) >= MOST_SERIES:
            if plugin not in self._told_full:
                self._told_full.add(plugin)
                log.error(
                    "plugin %r has %d series of metrics, and gets no more (of %s): are its labels unbounded?",
                    plugin,
                    count,
                    family.name,
                )
            return False
        self._of_plugin[plugin] = count + 1
        listener, plugin = family.owner.listener, family.owner.plugin
        owned = [("listener", listener), ("plugin", plugin)] if plugin else []
        labels = [*owned, *zip(family.label_names, values, strict=True)]
        self._series.append((metric, Definition(family.kind, family.name, family.help, labels)))
        return True

    def describe(self) -> list[Definition]:
        """Return the descriptions of all series. They count as reported."""
        self._described = len(self._series)
        return [definition for _, definition in self._series]

    def collect(self) -> list[MetricsReport]:
        """Return what has changed since the last call, in reports of a bounded size."""
        packer = Packer()
        for _, definition in self._series[self._described :]:
            packer.define(definition)
        self._described = len(self._series)
        for index, (metric, _) in enumerate(self._series):
            metric.collect(index, packer)
        return packer.reports

    def value(self, name: str, **labels: object) -> float:
        """Of a counter or a gauge, the value in this worker; of a histogram, the number of values. For tests.

        :param labels: the metric's own; ``listener`` and ``plugin`` select among owners.
        :raises KeyError: there is no such series.
        """
        wanted = {key: str(value) for key, value in labels.items()}
        found = [
            metric
            for metric, definition in self._series
            if definition.name == name and wanted.items() <= dict(definition.labels).items()
        ]
        if not found:
            raise KeyError(f"{name}{wanted or ''}")
        return sum(metric.count if isinstance(metric, Histogram) else metric.value for metric in found)


class Metrics:
    """``worker.metrics``: where plugins define their metrics, in ``on_worker_start``.

    To ask for a metric again returns the same one. Each listener of a plugin has its own.

    :param owner: tells whose code is running.
    """

    def __init__(self, registry: Registry, owner: Callable[[], PluginOf]) -> None:
        self._registry = registry
        self._owner = owner

    def counter(self, name: str, help: str, labels: Sequence[str] = ()) -> Counter:
        """A counter.

        :param name: small letters, digits and underscores.
        :param help: what it counts.
        :param labels: the names of its labels; the values come with ``labels()``.
        :raises ValueError: any of these is wrong, or the name is taken by a metric of another kind.
        """
        return self._define(Counter, COUNTER, name, help, labels)

    def gauge(self, name: str, help: str, labels: Sequence[str] = ()) -> Gauge:
        """A gauge; as ``counter`` otherwise."""
        return self._define(Gauge, GAUGE, name, help, labels)

    def histogram(self, name: str, help: str, labels: Sequence[str] = ()) -> Histogram:
        """A histogram, of seconds or bytes; as ``counter`` otherwise."""
        return self._define(Histogram, HISTOGRAM, name, help, labels)

    def _define(self, cls: type[M], kind: Literal["counter", "gauge", "histogram"], *arguments: Any) -> M:
        metric = self._registry.define(self._owner(), kind, *arguments)
        assert isinstance(metric, cls)
        return metric


def _bounded(amount: float) -> float:
    """What can be reported of an amount: a report must be possible whatever a plugin has added."""
    try:
        amount = amount if type(amount) in (int, float) else float(amount)
        return max(-MOST_GROWTH, min(amount, MOST_GROWTH)) if math.isfinite(amount) else 0
    except (TypeError, ValueError, OverflowError):
        return 0
