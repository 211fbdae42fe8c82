"""The ledger: what workers report adds up, over their deaths; and what it shows is what ``status`` has."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolsrv.dispatcher.ledger import Ledger, gauges
from poolsrv.dispatcher.worker_slot import WorkerSlot
from poolsrv.ipc.figures import FIGURES, PER_WORKER
from poolsrv.ipc.metrics import MOST_SERIES, Definition, Distribution, MetricsReport
from tests.helpers.control import query
from tests.helpers.plugins import ask, listener, served
from tests.helpers.server import ServerProcess, wait_until

OPERATIONS = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
PAGE = OPERATIONS.split("\n### Metrics\n")[1].split("\n### ")[0]


def described(kind: Any, name: str = "x") -> Definition:
    return Definition(kind, name, "help", [("listener", "www")])


def test_the_sum_outlives_the_workers() -> None:
    ledger, slots = Ledger(), [WorkerSlot(0), WorkerSlot(1)]
    for slot in slots:
        defined = [described("counter", "c"), described("gauge", "g"), described("histogram", "h")]
        ledger.take(slot, MetricsReport(defined, [(0, 2), (1, 5)], [(2, 0.5, [(3, 1)])]))
    ledger.take(slots[0], MetricsReport([], [(0, 1.5)], [(2, 1.0, [(3, 1), (4, 2)])]))
    slots[0].clear()
    labels = (("listener", "www"),)
    found = ledger.snapshot()
    assert found["c"] == {labels: 5.5}
    distribution = found["h"][labels]
    assert isinstance(distribution, Distribution)
    assert (distribution.count, distribution.sum, distribution.filled()) == (5, 2.0, [(3, 3), (4, 2)])
    assert list(gauges(slots).values()) == [5]
    assert ledger.helps["c"] == "help"


def test_a_name_keeps_its_kind(caplog: pytest.LogCaptureFixture) -> None:
    ledger, slot = Ledger(), WorkerSlot(0)
    ledger.take(slot, MetricsReport([described("counter")], [(0, 1)], []))
    other = WorkerSlot(1)
    for _ in range(2):
        ledger.take(other, MetricsReport([described("histogram")], [], [(0, 1.0, [(1, 1)])]))
        other.clear()
    assert list(ledger.snapshot()["x"].values()) == [1]
    assert caplog.text.count("metric x is not shown: it is a counter elsewhere, and here a histogram") == 1


def test_the_number_of_series_is_bounded(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger()
    for index in range(2):
        slot = WorkerSlot(index)
        names = [f"n{index}_{number}" for number in range(MOST_SERIES - 10)]
        ledger.take(slot, MetricsReport([described("counter", name) for name in names], [], []))
    assert len(ledger.snapshot()) == MOST_SERIES
    assert "series already" in caplog.text


# --- with a server

MODULE = """
class Counts:
    @hookimpl
    def on_worker_start(self, worker):
        self.lines = worker.metrics.counter("lines", "Lines", labels=["word"])
        self.open = worker.metrics.gauge("open_now", "Connections")
        self.sizes = worker.metrics.histogram("size_bytes", "Sizes")

    @hookimpl
    def on_connection_init(self, conn):
        self.open.inc()

    @hookimpl
    def on_connection_close(self, conn):
        self.open.dec()

    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            word = line.decode().strip()
            if word == "fail":
                raise LookupError(word)
            if word == "late":
                conn.worker.metrics.counter("late_ones", "Defined in a hook").inc()
            self.lines.labels(word).inc()
            self.sizes.observe(len(line))
            conn.send(b"%d\\n" % os.getpid())


class More(Counts):
    pass
"""
POOL = 'workers = 2\ncontrol = "ctl"'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("counts")
    listeners = [listener("a", "counts"), listener("b", "counts"), listener("c", "more")]
    with served(folder, MODULE, *listeners, pool=POOL) as server:
        (folder / "run").mkdir()
        (folder / "run" / "ctl").symlink_to("../ctl")
        yield server


def series(server: ServerProcess, name: str, **labels: str) -> Any:
    """The value of a series, or its histogram; 0 where there is none."""
    for metric in query(server)["status"]["metrics"]:
        for one in metric["series"]:
            if metric["name"] == name and labels.items() <= one["labels"].items():
                return one.get("value", one.get("histogram"))
    return 0


@pytest.mark.server
def test_metrics_of_plugins_are_summed_over_workers_dead_ones_included(server: ServerProcess) -> None:
    pids = set()
    for _ in range(4):
        with server.connect("a") as sock:
            pids.add(int(ask(sock, b"hello")))
    assert len(pids) == 2
    hello = {"listener": "a", "plugin": "counts", "word": "hello"}
    wait_until(lambda: series(server, "lines", **hello) == 4, "both workers' reports")
    os.kill(pids.pop(), signal.SIGKILL)
    server.wait_for_line(r"worker \d \(pid \d+\) killed by SIGKILL")
    assert series(server, "lines", **hello) == 4
    assert series(server, "size_bytes", listener="a")["count"] == 4
    assert series(server, "size_bytes", listener="a")["p50"] > 5
    assert series(server, "size_bytes", listener="b")["count"] == 0
    assert series(server, "poolsrv_worker_ends", how="killed") == 1
    totals = query(server)["status"]["totals"]
    assert (totals["accepted"], totals["bytes_in"]) >= (4, 24)


@pytest.mark.server
def test_a_gauge_is_what_it_is_now(server: ServerProcess) -> None:
    with server.connect("b") as sock:
        ask(sock, b"x")
        wait_until(lambda: series(server, "open_now", listener="b") == 1, "the gauge to rise")
    wait_until(lambda: series(server, "open_now", listener="b") == 0, "the gauge to fall")


@pytest.mark.server
def test_a_metric_that_is_defined_in_a_hook_has_the_right_owner(server: ServerProcess) -> None:
    with server.connect("c") as sock:
        ask(sock, b"late")
    wait_until(lambda: series(server, "late_ones", listener="c", plugin="more") == 1, "the metric")


@pytest.mark.server
def test_the_engine_counts_connections_their_times_and_faults(server: ServerProcess) -> None:
    before = series(server, "poolsrv_connection_duration_seconds", listener="b")["count"]
    with server.connect("b") as sock:
        ask(sock, b"y")
        sock.sendall(b"fail\n")
        assert sock.recv(10) == b""
    name = "poolsrv_connection_duration_seconds"
    wait_until(lambda: series(server, name, listener="b")["count"] == before + 1, "the worker's report")
    for name in ("poolsrv_accept_to_worker_seconds", "poolsrv_first_byte_seconds"):
        found = series(server, name, listener="b")
        assert found["count"] == before + 1
        assert 0 <= found["p50"] <= found["p99"] <= found["buckets"][-1][0]
    assert series(server, "poolsrv_plugin_faults", listener="b", plugin="counts", hook="on_readable") == 1
    worker = query(server)["status"]["workers"][0]
    assert 0 < worker["descriptors"] <= worker["descriptor_limit"]
    assert worker["in_flight"] == 0


@pytest.mark.server
def test_every_metric_is_on_the_page(server: ServerProcess) -> None:
    found = query(server)["status"]["metrics"]
    own = {metric["name"] for metric in found if metric["name"].startswith("poolsrv_")}
    assert own <= FIGURES.keys()
    rows = re.findall(r"^\| `(poolsrv_\w+)` \| (\w+) \|([^|]*)\| ([^|]*) \|$", PAGE, re.MULTILINE)
    assert {row[0]: (row[1], re.findall(r"\w+", row[2]), row[3].strip()) for row in rows} == {
        name: (figure.kind, list(figure.labels), figure.help)
        for name, figure in FIGURES.items()
        if name not in PER_WORKER
    }
    for metric in found:
        if metric["name"] in own:
            for one in metric["series"]:
                assert tuple(one["labels"]) == FIGURES[metric["name"]].labels
