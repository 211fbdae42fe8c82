"""Metrics: what they are, how workers report them, and how they add up.

Theory. A *series* is a number (a counter or a gauge) or a distribution (a histogram) with a name and labels. Workers
count. Once a second, a worker that does something reports by how much its counters and histograms have grown, and what
its gauges are now. The dispatcher adds that up. So nothing has to be done when a worker dies: what it has reported
stays, and only what has happened since its last report is lost. Its gauges go with it.

A worker describes a series once; after that, both sides know it by its number. All histograms have the same buckets,
so that any two of them can be added.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from typing import Annotated, Final, Literal, NamedTuple

import msgspec

COUNTER: Final = "counter"
GAUGE: Final = "gauge"
HISTOGRAM: Final = "histogram"
Kind = Literal["counter", "gauge", "histogram"]

# The upper bounds of a histogram's buckets, 1-2-5 for each power of ten: from a microsecond to 30 years, or a gigabyte.
BOUNDS: Final = (*(float(f"{digit}e{power}") for power in range(-6, 9) for digit in (1, 2, 5)), 1e9)
BUCKETS: Final = len(BOUNDS) + 1  # the last one is for what exceeds all bounds

LONGEST_NAME: Final = 100  # characters, of metrics and labels
LONGEST_HELP: Final = 300
LONGEST_VALUE: Final = 100  # of a label
MOST_LABELS: Final = 10  # "listener" and "plugin" included
MOST_GROWTH: Final = 2**53  # of a number, in one report
MOST_SERIES: Final = 10_000  # that a worker describes, and that a dispatcher knows
_REPORT_SIZE: Final = 20_000  # bytes of metrics in one report, at most; worker_channel.py can take more

_Name = Annotated[str, msgspec.Meta(pattern="^[a-z][a-z0-9_]*\\Z", max_length=LONGEST_NAME)]
_Index = Annotated[int, msgspec.Meta(ge=0, lt=MOST_SERIES)]
_Number = (
    Annotated[int, msgspec.Meta(ge=-MOST_GROWTH, le=MOST_GROWTH)]
    | Annotated[float, msgspec.Meta(ge=-MOST_GROWTH, le=MOST_GROWTH)]
)
_Sum = Annotated[float, msgspec.Meta(ge=0, le=MOST_GROWTH)]
_Times = Annotated[int, msgspec.Meta(ge=1, le=MOST_GROWTH)]

Labels = tuple[tuple[str, str], ...]


class Series(msgspec.Struct, frozen=True, order=True):
    """The identity of a series: its kind, its metric's name, and its labels in their order."""

    kind: str
    name: str
    labels: Labels = ()


class Definition(NamedTuple):
    """A worker's description of a series."""

    kind: Kind
    name: _Name
    help: Annotated[str, msgspec.Meta(max_length=LONGEST_HELP)]
    labels: Annotated[
        list[tuple[_Name, Annotated[str, msgspec.Meta(max_length=LONGEST_VALUE)]]],
        msgspec.Meta(max_length=MOST_LABELS),
    ]


class MetricsReport(NamedTuple):
    """Of a worker's metrics, what is new.

    :ivar defined: new series; they are numbered in this order, from 0 with the worker's first.
    :ivar numbers: of counters, by how much they have grown; of gauges, what they are now.
    :ivar histograms: by how much they have grown: the sum of the values, and how many came into each bucket.
    """

    defined: Annotated[list[Definition], msgspec.Meta(max_length=MOST_SERIES)]
    numbers: Annotated[list[tuple[_Index, _Number]], msgspec.Meta(max_length=MOST_SERIES)]
    histograms: Annotated[
        list[
            tuple[
                _Index,
                _Sum,
                Annotated[
                    list[tuple[Annotated[int, msgspec.Meta(ge=0, lt=BUCKETS)], _Times]],
                    msgspec.Meta(max_length=BUCKETS),
                ],
            ]
        ],
        msgspec.Meta(max_length=MOST_SERIES),
    ]


def sort_in(values: list[float], counts: list[int]) -> None:
    """Count values in their buckets. Done for many values at once, that takes a fraction of the time.

    :param values: at least one; they are sorted, and what is below 0 becomes 0.
    :param counts: how many values each bucket has.
    """
    values.sort()
    if values[0] < 0:
        below = bisect_left(values, 0)
        values[:below] = [0.0] * below
    done, bucket = 0, bisect_left(BOUNDS, values[0])
    while done < len(values):
        end = bisect_right(values, BOUNDS[bucket], done) if bucket < len(BOUNDS) else len(values)
        counts[bucket] += end - done
        done, bucket = end, bucket + 1


class Distribution:
    """The content of a histogram.

    :ivar sum: of all values.
    :ivar counts: how many values each bucket has; ``BOUNDS`` are the buckets' upper bounds, inclusive.
    """

    __slots__ = ("counts", "sum")

    def __init__(self, total: float = 0.0, counts: Sequence[int] = ()) -> None:
        self.sum = total
        self.counts = list(counts) or [0] * BUCKETS

    @property
    def count(self) -> int:
        """The number of values."""
        return sum(self.counts)

    def observe(self, value: float) -> None:
        """Add a value, from 0 up."""
        self.counts[bisect_left(BOUNDS, value)] += 1
        self.sum += value

    def grow(self, total: float, filled: Iterable[tuple[int, int]]) -> None:
        """Add values: their sum, and how many there are in each bucket."""
        self.sum = min(self.sum + total, MOST_GROWTH)
        for bucket, times in filled:
            self.counts[bucket] = min(self.counts[bucket] + times, MOST_GROWTH)

    def add(self, other: Distribution) -> None:
        """Add the values of another histogram."""
        self.grow(other.sum, other.filled())

    def filled(self) -> list[tuple[int, int]]:
        """The buckets that are not empty, and how many values each has."""
        return [(bucket, times) for bucket, times in enumerate(self.counts) if times]

    def quantile(self, share: float) -> float | None:
        """Estimate the value below which this share of all values is; None if there are none.

        Within a bucket, values are taken to be spread evenly, as Prometheus does.

        :param share: from 0 to 1.
        """
        count = self.count
        if not count:
            return None
        rank = share * count
        below = 0
        for bucket, times in self.filled():
            if below + times >= rank:
                if bucket == len(BOUNDS):
                    return BOUNDS[-1]
                low = BOUNDS[bucket - 1] if bucket else 0.0
                return low + (BOUNDS[bucket] - low) * (rank - below) / times
            below += times
        return BOUNDS[-1]


_encode: Final = msgspec.msgpack.Encoder().encode


class Packer:
    """Packs what is new into reports of a bounded size.

    :ivar reports: what is packed; a description comes before any number of its series.
    """

    def __init__(self) -> None:
        self.reports: list[MetricsReport] = []
        self._left = 0

    def define(self, definition: Definition) -> None:
        """Add the description of a series."""
        self._room_for(len(_encode(definition))).defined.append(definition)

    def number(self, index: int, amount: float) -> None:
        """Add a number."""
        self._room_for(20).numbers.append((index, amount))

    def histogram(self, index: int, total: float, filled: list[tuple[int, int]]) -> None:
        """Add what a histogram has got."""
        self._room_for(20 + 11 * len(filled)).histograms.append((index, total, filled))

    def _room_for(self, size: int) -> MetricsReport:
        if self._left < size:
            self._left = _REPORT_SIZE
            self.reports.append(MetricsReport([], [], []))
        self._left -= size
        return self.reports[-1]
