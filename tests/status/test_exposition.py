"""``/metrics``: what is made of a record, in both formats, and docs/operations.md, which lists it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from poolsrv_status import exposition
from poolsrv_status.gauges import FAMILIES
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from poolsrv.ipc.figures import FIGURES, PER_WORKER
from poolsrv.ipc.metrics import BOUNDS, Distribution
from poolsrv.worker.status_client import report_on
from tests.helpers.statuses import listener, status, worker

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


def exposed(accept: str = "", **fields: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text = exposition.encode(report_on(status(**fields)), accept)[0].decode()
    families = parse_openmetrics(text) if accept else parse(text)  # type: ignore[no-untyped-call]
    found = {}
    for family in families:
        for sample in family.samples:
            key = sample.name, frozenset(sample.labels.items())
            assert key not in found, "a sample twice"
            found[key] = sample.value
    return found


def only(found: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return found[name, frozenset(labels.items())]


def metric(name: str, kind: str, *series: dict[str, Any], text: str = "What it is") -> dict[str, Any]:
    return {"name": name, "kind": kind, "help": text, "series": list(series)}


def histogram(*values: float, **labels: str) -> dict[str, Any]:
    found = Distribution()
    for value in values:
        found.observe(value)
    buckets = [(BOUNDS[bucket] if bucket < len(BOUNDS) else None, times) for bucket, times in found.filled()]
    quantiles = {"p50": None, "p90": None, "p99": None}
    return {"labels": labels, "histogram": {"count": found.count, "sum": found.sum, "buckets": buckets, **quantiles}}


def test_the_bounds_are_those_of_the_server() -> None:
    assert exposition.BOUNDS == BOUNDS


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_counters_and_histograms(accept: str) -> None:
    found = exposed(
        accept,
        metrics=[
            metric("lines", "counter", {"labels": {"listener": "www", "plugin": "words"}, "value": 5}),
            metric("words_total", "counter", {"labels": {}, "value": 7}),
            metric("users", "gauge", {"labels": {}, "value": -2.5}),
            metric("line_size_bytes", "histogram", histogram(3, 700, 5e9, listener="www")),
            metric("wait_seconds", "histogram", histogram(0.0015, 3e5), histogram(listener="idle")),
        ],
    )
    assert only(found, "lines_total", listener="www", plugin="words") == 5
    assert only(found, "words_total") == 7
    assert only(found, "users") == -2.5
    for le, count in (("2.0", 0), ("5.0", 1), ("500.0", 1), ("1000.0", 2), ("1e+09", 2)):
        assert only(found, "line_size_bytes_bucket", listener="www", le=le) == count
    assert only(found, "line_size_bytes_bucket", listener="www", le="+Inf") == 3
    assert only(found, "line_size_bytes_count", listener="www") == 3
    assert only(found, "wait_seconds_bucket", le="0.001") == 0
    assert only(found, "wait_seconds_bucket", le="0.002") == 1
    assert only(found, "wait_seconds_bucket", le="100000.0") == 1
    assert only(found, "wait_seconds_count") == 2
    assert ("wait_seconds_count", frozenset({("listener", "idle")})) not in found  # it has no values


def test_the_buckets_are_the_same_each_time() -> None:
    one, other = (exposed(metrics=[metric("x_seconds", "histogram", histogram(value))]) for value in (1e-6, 50.0))
    assert one.keys() == other.keys()


def test_a_name_that_is_used_in_two_ways_is_shown_once() -> None:
    found = exposed(
        OPENMETRICS,
        metrics=[
            metric("lines", "counter", {"labels": {}, "value": 1}),
            metric("lines_total", "counter", {"labels": {}, "value": 2}),
            metric("lines_total", "gauge", {"labels": {"a": "b"}, "value": 3}),
            metric("lines_total_count", "gauge", {"labels": {}, "value": 4}),
        ],
    )
    assert only(found, "lines_total") == 1
    assert not any(value == 3 for (name, _), value in found.items() if name.startswith("lines"))


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_values_of_labels_are_escaped(accept: str) -> None:
    hostile = 'a"b\\c\nd\x1b\u2028é'
    series = {"labels": {"path": hostile}, "value": 1}
    found = exposed(accept, metrics=[metric("requests", "counter", series, text="one\nline \\ back")])
    assert only(found, "requests_total", path=hostile) == 1


def test_a_draining_worker_and_its_successor_are_one_and_the_worker_apart_has_its_name() -> None:
    workers = [worker(state="draining", open=5, lag=0.5), worker(pid=11, open=2)]
    found = exposed(workers=workers, apart=[worker(slot=-1, open=1, descriptor_limit=0)])
    assert only(found, "poolsrv_worker_connections", worker="0") == 7
    assert only(found, "poolsrv_worker_loop_lag_seconds", worker="0") == 0.5
    assert only(found, "poolsrv_worker_cpu_ratio", worker="0") == 1.0
    assert only(found, "poolsrv_worker_connections", worker="apart") == 1
    assert ("poolsrv_worker_descriptor_limit", frozenset({("worker", "apart")})) not in found
    assert only(found, "poolsrv_workers", state="draining") == 1
    assert only(found, "poolsrv_workers", state="serving") == 1


def test_the_server_and_its_listeners() -> None:
    reload = {"at": 1789995001.0, "ok": False, "errors": ["no"]}
    leaving = [{"generation": 1, "pid": 4}]
    found = exposed(
        server={"last_reload": reload, "leaving": leaving}, listeners=[listener(max_connections=9, paused=True)]
    )
    assert only(found, "poolsrv_draining_pools") == 1
    assert only(found, "poolsrv_pool_crashes_total") == 1
    assert only(found, "poolsrv_last_reload_successful") == 0
    assert only(found, "poolsrv_health", health="degraded") == 1
    assert only(found, "poolsrv_ready") == 1
    assert only(found, "poolsrv_listener_max_connections", listener="www") == 9
    assert only(found, "poolsrv_listener_paused", listener="www") == 1
    assert only(found, "poolsrv_listener_queue_connections", listener="www", address="127.0.0.1:8080") == 2


def test_every_family_is_made_and_is_on_the_page() -> None:
    reload = {"at": 1.0, "ok": True, "errors": []}
    found = exposed(server={"last_reload": reload}, listeners=[listener(max_connections=9)])
    expected = set()
    for family in FAMILIES:
        name = family.name + ("_total" if family.kind == "counter" else "")
        labels = [set(dict(key[1])) for key in found if key[0] == name]
        assert labels, name
        assert all(one == set(family.labels) for one in labels), name
        cells = [f"`{name}`", family.kind, ", ".join(f"`{label}`" for label in family.labels), family.help]
        expected.add("| " + " | ".join(cell for cell in cells if cell) + " |")
    rows = PAGE.partition("### Metrics for Prometheus")[2].partition("\n## ")[0]
    listed = {row.replace("| |", "|") for row in re.findall(r"^\| `poolsrv_.*$", rows, re.MULTILINE)}
    assert listed == expected


def test_no_family_has_the_name_of_one_of_the_server_s_figures() -> None:
    assert not {family.name for family in FAMILIES} & (FIGURES.keys() - PER_WORKER)
