"""Metrics in a worker: what a plugin may define, what is reported of it, and that nothing it does breaks a report."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest

from poolsrv.ipc.metrics import BOUNDS, MOST_GROWTH, Distribution, MetricsReport
from poolsrv.ipc.worker_channel import Report
from poolsrv.worker.metrics import (
    MOST_METRICS_OF_PLUGIN,
    MOST_SERIES_OF_PLUGIN,
    Metrics,
    PluginOf,
    Registry,
)

WWW = PluginOf("www", "web")


@pytest.fixture
def registry() -> Registry:
    return Registry()


@pytest.fixture
def metrics(registry: Registry) -> Metrics:
    return Metrics(registry, lambda: WWW)


def decoded(reports: list[MetricsReport]) -> list[MetricsReport]:
    """As the dispatcher reads them: whatever is reported has to pass its checks."""
    encoded = [msgspec.msgpack.encode(Report(0, [], None, None, [], one)) for one in reports]
    assert all(len(one) < 65536 for one in encoded)
    return [report for one in encoded if (report := msgspec.msgpack.decode(one, type=Report).metrics) is not None]


@pytest.mark.parametrize("count", [1, 2, 30, 1000])
def test_values_that_are_added_together_come_into_the_same_buckets(metrics: Metrics, count: int) -> None:
    one, other = metrics.histogram("one_by_one", "Seconds."), metrics.histogram("together", "Seconds.")
    choices = random.Random(count)
    on_bounds = choices.sample(BOUNDS, min(count, len(BOUNDS)))
    values = [*on_bounds, 0.0, 1e10, *(10 ** choices.uniform(-7, 3) for _ in range(count))]
    choices.shuffle(values)
    for value in values:
        one.observe(value)
    other.new += values
    assert other.count == one.count == len(values)
    other.settle()
    assert other.counts == one.counts
    assert other.sum == pytest.approx(one.sum)
    assert not other.new
    assert other.count == len(values)


def test_a_time_below_zero_counts_as_zero(metrics: Metrics) -> None:
    """A worker takes it from its own clock's latest reading, which may be older than the dispatcher's."""
    histogram = metrics.histogram("waits", "Seconds.")
    histogram.new += [0.25, -0.001, -0.002]
    histogram.settle()
    assert (histogram.sum, histogram.counts[0], histogram.count) == (0.25, 2, 3)


def test_values_that_are_not_added_yet_are_reported(registry: Registry, metrics: Metrics) -> None:
    metrics.histogram("waits", "Seconds.").new += [0.3, 0.4]
    (report,) = decoded(registry.collect())
    assert [(round(total, 3), filled) for _, total, filled in report.histograms] == [(0.7, [(17, 2)])]
    assert registry.collect() == []


def test_what_has_changed_is_reported_once(registry: Registry, metrics: Metrics) -> None:
    counter = metrics.counter("shouts_total", "Shouts")
    gauge = metrics.gauge("volume", "Volume", ["room"])
    histogram = metrics.histogram("length_bytes", "Length")
    counter.inc()
    counter.inc(2)
    gauge.labels("hall").set(11)
    gauge.labels(room="attic").dec(0.5)
    histogram.observe(0.3)
    histogram.observe(1e12)
    (report,) = decoded(registry.collect())
    assert [definition.name for definition in report.defined] == ["shouts", "length_bytes", "volume", "volume"]
    assert report.defined[0].labels == [("listener", "www"), ("plugin", "web")]
    assert report.defined[3].labels == [("listener", "www"), ("plugin", "web"), ("room", "attic")]
    assert report.numbers == [(0, 3), (2, 11), (3, -0.5)]
    assert report.histograms == [(1, MOST_GROWTH if MOST_GROWTH < 1e12 else 1e12 + 0.3, [(17, 1), (len(BOUNDS), 1)])]
    assert registry.collect() == []
    counter.inc(0.5)
    gauge.labels("hall").set(11)
    (report,) = decoded(registry.collect())
    assert (report.defined, report.numbers, report.histograms) == ([], [(0, 0.5)], [])


def test_the_same_metric_is_defined_once_for_each_listener(registry: Registry) -> None:
    owner = WWW
    metrics = Metrics(registry, lambda: owner)
    first = metrics.counter("requests", "Requests")
    assert metrics.counter("requests_total", "Requests") is first
    owner = PluginOf("admin", "web")
    second = metrics.counter("requests", "Requests")
    first.inc()
    second.inc(4)
    assert registry.value("requests", listener="admin") == 4
    assert registry.value("requests") == 5
    with pytest.raises(KeyError):
        registry.value("requests", listener="none")


WRONG = {
    "no small letters": (("Requests", "x"), "small letters"),
    "no name": (("", "x"), "small letters"),
    "a name that is too long": (("a" * 101, "x"), "at most 100"),
    "no text": ((7, "x"), "small letters"),
    "the server's own": (("poolsrv_requests", "x"), "the server's own"),
    "an ending that Prometheus uses": (("requests_count", "x"), "_count"),
    "no help": (("requests", ""), "its help"),
    "no text as help": (("requests", None), "its help"),
    "labels as text": (("requests", "x", "abc"), "list of names"),
    "labels that are no text": (("requests", "x", [1]), "list of names"),
    "a label that is no name": (("requests", "x", ["a-b"]), "'a-b'"),
    "a label of the server's": (("requests", "x", ["listener"]), "'listener'"),
    "a label twice": (("requests", "x", ["a", "a"]), "twice"),
    "too many labels": (("requests", "x", list("abcdefghi")), "8 labels, not 9"),
    "another's name, with other labels": (("taken", "x", ["a"]), "of that name already, of plugin 'other'"),
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_right_is_an_error_that_says_so(
    registry: Registry, metrics: Metrics, arguments: tuple[str, str], message: str
) -> None:
    Metrics(registry, lambda: PluginOf("www", "other")).counter("taken", "x")
    with pytest.raises(ValueError, match=message):
        metrics.counter(*arguments)


def test_a_name_has_one_kind(metrics: Metrics) -> None:
    metrics.counter("requests", "x")
    with pytest.raises(ValueError, match="there is a counter of that name already, without labels"):
        metrics.gauge("requests", "x")
    with pytest.raises(ValueError, match="'_total'"):
        metrics.gauge("x_total", "x")


def test_wrong_use_is_an_error_that_says_so(metrics: Metrics) -> None:
    counter = metrics.counter("requests", "x")
    with pytest.raises(ValueError, match="it has no labels, not 200"):
        counter.labels(200)
    for amount in (-1, float("nan")):
        with pytest.raises(ValueError, match="only grows"):
            counter.inc(amount)
        with pytest.raises(ValueError, match="from 0 up"):
            metrics.histogram("seconds", "x").observe(amount)
    labelled = metrics.counter("answers", "x", ["code", "method"])
    with pytest.raises(ValueError, match=r"use answers.labels\(code, method\)"):
        labelled.inc()
    for values, named in (((), {}), (("200",), {}), (("200", "GET", "x"), {}), (("200",), {"method": "GET"})):
        with pytest.raises(ValueError, match="it has the labels code, method, not"):
            labelled.labels(*values, **named)
    with pytest.raises(ValueError, match="text"):
        labelled.labels([], "GET")
    with pytest.raises(ValueError, match="it has labels"):
        metrics.gauge("g", "x", ["a"]).set(1)
    with pytest.raises(ValueError, match="it has labels"):
        metrics.histogram("h", "x", ["a"]).observe(1)


def test_a_plugin_has_only_so_many_metrics(metrics: Metrics) -> None:
    for number in range(MOST_METRICS_OF_PLUGIN):
        metrics.counter(f"c{number}", "x")
    with pytest.raises(ValueError, match="a plugin may have 100 metrics"):
        metrics.counter("one_more", "x")


def test_a_label_that_takes_any_value_fills_nothing_and_breaks_nothing(
    registry: Registry, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    counter = metrics.counter("requests", "x", ["path"])
    for number in range(MOST_SERIES_OF_PLUGIN + 500):
        counter.labels(f"/{number}").inc()
    counter.labels("/7").inc()
    assert caplog.text.count("gets no more") == 1
    reports = decoded(registry.collect())
    assert sum(len(report.defined) for report in reports) == MOST_SERIES_OF_PLUGIN
    assert sum(amount for report in reports for _, amount in report.numbers) == MOST_SERIES_OF_PLUGIN + 1


def test_values_of_labels_are_cut_and_made_text(registry: Registry, metrics: Metrics) -> None:
    counter = metrics.counter("requests", "x", ["a"])
    for value in (200, None, "é" * 300, "\udcff", b"bytes"):
        counter.labels(value).inc()
    (report,) = decoded(registry.collect())
    values = [definition.labels[2][1] for definition in report.defined]
    assert values == ["200", "None", "é" * 97 + "...", "\\udcff", "b'bytes'"]


@pytest.mark.parametrize("amount", [float("inf"), 10**30, 2**64, True, 1e300, "seven"])
def test_whatever_is_counted_can_be_reported(registry: Registry, metrics: Metrics, amount: Any) -> None:
    counter, gauge = metrics.counter("c", "x"), metrics.gauge("g", "x")
    gauge.set(amount)
    if isinstance(amount, str):
        with pytest.raises(TypeError):
            counter.inc(amount)  # type: ignore[arg-type]
    else:
        counter.inc(amount)
        metrics.histogram("h", "x").observe(amount)
    decoded(registry.collect())
    counter.inc()
    assert registry.collect()[-1].numbers == [(0, 1)]


def test_distributions_add_up_and_have_quantiles() -> None:
    one, other = Distribution(), Distribution()
    assert one.quantile(0.5) is None
    for number in range(1, 101):
        (one if number % 2 else other).observe(number / 100)
    one.add(other)
    assert one.count == 100
    assert one.sum == pytest.approx(50.5)
    for share in (0.5, 0.9, 0.99):
        assert one.quantile(share) == pytest.approx(share, rel=0.15)
    one.observe(1e10)
    assert one.quantile(1.0) == BOUNDS[-1]
