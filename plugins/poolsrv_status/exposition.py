"""`/metrics`: the status as metric families of prometheus-client, which writes them in the format that is asked for.

Counters and histograms come from the record's `metrics`, whose totals never go back: not at a worker's death, not at a
reload. What the record has of workers and listeners at this moment becomes gauges. The names are Prometheus's: base
units, `_total` behind counters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client.core import Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.utils import floatToGoString

from .gauges import FAMILIES, samples_of

if TYPE_CHECKING:
    from poolsrv import ServerReport

__all__ = ["encode", "families"]

# The upper bounds of the server's buckets: 1-2-5 for each power of ten. All are shown, also those that are empty:
# Prometheus can't compare a histogram with its own past if its buckets change.
BOUNDS = (*(float(f"{digit}e{power}") for power in range(-6, 9) for digit in (1, 2, 5)), 1e9)
LONGEST_TIME = 1e5  # seconds, a day: the greatest bound for times
# The names of a family's samples. No other family may have one of them.
ENDINGS = {"counter": ("", "_total"), "gauge": ("",), "histogram": ("", "_bucket", "_count", "_sum")}
NO_HELP = "Counted before the last reload"


def encode(report: ServerReport, accept: str) -> tuple[bytes, str]:
    """Write the metrics.

    :param accept: the client's Accept.
    :returns: the body, and its Content-Type.
    """
    encoder, content_type = choose_encoder(accept)
    return encoder(_Collected(families(report))), content_type


class _Collected:
    """What the encoders of prometheus-client take for a registry."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = list(metrics)

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def families(report: ServerReport) -> Iterator[Metric]:
    """Make every family that has samples. Of two whose names clash, the first is made."""
    seen: set[str] = set()
    for family in (*_own(report), *_counted(report)):
        names = {family.name + ending for ending in ENDINGS[family.type]}
        if family.samples and not names & seen:
            seen |= names
            yield family


def _own(report: ServerReport) -> Iterator[Metric]:
    samples = samples_of(report)
    for family in FAMILIES:
        metric = Metric(family.name, family.help, family.kind)
        suffix = "_total" if family.kind == "counter" else ""
        for labels, value in samples[family.name]:
            metric.add_sample(family.name + suffix, labels, value)
        yield metric


def _counted(report: ServerReport) -> Iterator[Metric]:
    assert report.status is not None
    for counted in report.status.metrics:
        name = counted.name.removesuffix("_total") if counted.kind == "counter" else counted.name
        yield _family(name, counted)


def _family(name: str, counted: Any) -> Metric:
    metric = Metric(name, counted.help or NO_HELP, counted.kind)
    for series in counted.series:
        if counted.kind == "counter":
            metric.add_sample(f"{name}_total", series.labels, series.value or 0)
        elif counted.kind == "gauge":
            metric.add_sample(name, series.labels, series.value or 0)
        elif series.histogram is not None and series.histogram.count:  # it has some forty lines
            _add_histogram(metric, series.labels, series.histogram)
    return metric


def _go(number: float) -> str:
    return str(floatToGoString(number))  # type: ignore[no-untyped-call]


def _add_histogram(metric: Metric, labels: dict[str, str], histogram: Any) -> None:
    filled = dict(histogram.buckets)
    bounds = [bound for bound in BOUNDS if bound <= LONGEST_TIME or not metric.name.endswith("_seconds")]
    for bound, count in zip(bounds, accumulate(filled.get(bound, 0) for bound in bounds), strict=True):
        metric.add_sample(f"{metric.name}_bucket", {**labels, "le": _go(bound)}, count)
    metric.add_sample(f"{metric.name}_bucket", {**labels, "le": "+Inf"}, histogram.count)
    metric.add_sample(f"{metric.name}_count", labels, histogram.count)
    metric.add_sample(f"{metric.name}_sum", labels, histogram.sum)
