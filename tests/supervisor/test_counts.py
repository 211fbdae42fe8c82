"""Counters over pools: a reload, a drain and a crash set none back."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolsrv.core.event_loop import EventLoop
from poolsrv.ipc.counted import added, is_counted
from poolsrv.ipc.pieces import in_pieces
from poolsrv.supervisor.counts import Counts
from tests.helpers.plugins import ask, listener, served
from tests.helpers.server import ServerProcess, wait_until

MODULE = """
class Counts:
    @hookimpl
    def on_worker_start(self, worker):
        self.lines = worker.metrics.counter("lines", "Lines")
        self.sizes = worker.metrics.histogram("size_bytes", "Sizes")

    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            self.lines.inc()
            self.sizes.observe(len(line))
            conn.send(b"%d\\n" % os.getpid())
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    pool = 'workers = 1\ncontrol = "ctl"\ngraceful_timeout = 20.0'
    with served(tmp_path, MODULE, listener("a", "counts"), pool=pool) as server:
        yield server


def figures(server: ServerProcess) -> dict[str, Any] | None:
    """All that counts up; None while no pool answers."""
    try:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(10.0)
            sock.connect(str(server.folder / "ctl"))
            sock.sendall(b"status\n")
            with sock.makefile("rb") as file:
                status = json.loads(file.readline())["status"]
    except (OSError, ValueError):
        return None
    found = {f"totals.{name}": status["totals"][name] for name in ("accepted", "events", "bytes_in", "cpu")}
    found["listener"] = status["listeners"][0]["accepted"]
    for metric in status["metrics"]:
        for one in metric["series"]:
            if metric["kind"] != "gauge":
                key = metric["name"] + json.dumps(one["labels"])
                found[key] = one["value"] if "value" in one else one["histogram"]["count"]
    return found


class Watcher:
    """Asks all the time, and notes each counter that has gone back."""

    def __init__(self, server: ServerProcess) -> None:
        self.faults: list[str] = []
        self.answers = 0
        self._server = server
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        before: dict[str, Any] = {}
        while not self._over.wait(0.005):
            now = figures(self._server)
            if now is None:
                continue
            self.answers += 1
            self.faults += [f"{key}: {before[key]} {now.get(key)}" for key in before if now.get(key, 0) < before[key]]
            before = now

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()


def count(server: ServerProcess, name: str) -> Any:
    found = figures(server) or {}
    return next((value for key, value in found.items() if key.startswith(name)), 0)


@pytest.mark.server
def test_no_counter_goes_back_at_a_reload_and_a_drain_counts_on(server: ServerProcess) -> None:
    with server.connect("a") as old, Watcher(server) as watcher:
        ask(old, b"one")
        wait_until(lambda: count(server, "lines") == 1, "the first line")
        server.reload()
        assert count(server, "poolsrv_connections_accepted") == 1
        ask(old, b"two")  # its pool drains
        with server.connect("a") as new:
            ask(new, b"three")
            wait_until(lambda: count(server, "lines") == 3, "all three, of both pools")
        old.close()
        server.wait_for_line(r"generation 1 \(pid \d+\) has left")
        wait_until(lambda: count(server, "poolsrv_connection_duration_seconds") == 2, "both ends")
        assert count(server, "size_bytes") == 3
        assert count(server, "totals.accepted") == count(server, "listener") == 2
    assert watcher.answers > 2
    assert watcher.faults == []


@pytest.mark.server
def test_what_has_been_shown_outlives_a_crash(server: ServerProcess) -> None:
    with Watcher(server) as watcher:
        with server.connect("a") as sock:
            ask(sock, b"one")
            wait_until(lambda: count(server, "lines") == 1, "the line")
        os.kill(server.dispatcher_pid, signal.SIGKILL)
        server.wait_for_line(r"\bready\b", count=2)
        assert count(server, "lines") == 1
        with server.connect("a") as sock:
            ask(sock, b"two")
        wait_until(lambda: count(server, "lines") == 2, "the other line")
    assert watcher.faults == []


# --- the supervisor's part


class Link:
    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []
        self.full = False

    def send(self, kind: str, **fields: Any) -> None:
        assert kind == "counted"
        if self.full:
            raise BlockingIOError
        self.sent.append(fields)

    @property
    def known(self) -> dict[str, Any]:
        return {key: amount for fields in self.sent for key, amount in fields["counted"]}

    @property
    def is_complete(self) -> bool:
        return any(fields.get("complete") for fields in self.sent)


class Pool:
    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.runs = 500
        self.link = Link()


@pytest.fixture
def counts() -> Iterator[Counts]:
    loop = EventLoop()
    yield Counts(loop)
    loop.close()


def test_buckets_that_fill_late_take_hardly_any_memory(counts: Counts) -> None:
    """Rare values come after days: they must not look like a leak."""
    pool: Any = Pool(1)
    counts.tell(pool, None)

    def report(filled: int) -> None:
        buckets = [[bucket, 1000 + bucket] for bucket in range(filled)]
        for series in range(100):
            counts.taken(pool, json.loads(json.dumps({"counted": [[f"h{series}", [1.5, buckets]]]})))

    report(1)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        report(46)
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 60_000  # all that is filled: 400 bytes each


def test_a_pool_learns_the_sum_of_all_others(counts: Counts) -> None:
    pools: Any = [Pool(number) for number in range(3)]
    counts.tell(pools[0], None)
    assert pools[0].link.is_complete
    counts.taken(pools[0], {"counted": [["c", 5], ["h", [1.5, [[3, 2]]]]]})
    counts.tell(pools[1], pools[0])
    assert not pools[1].link.sent
    counts.taken(pools[0], {"counted": [["c", 6]]})
    counts.taken(pools[0], {"last": True})
    assert pools[1].link.is_complete
    assert pools[1].link.known == {"c": 6, "h": [1.5, [[3, 2]]]}
    counts.taken(pools[1], {"counted": [["c", 10]]})
    counts.taken(pools[0], {"counted": [["c", 7]]})
    assert pools[1].link.known["c"] == 7
    counts.ended(pools[0])
    counts.tell(pools[2], pools[1])
    counts.ended(pools[1])
    assert pools[2].link.is_complete
    assert pools[2].link.known == {"c": 17, "h": [1.5, [[3, 2]]]}


def test_a_pool_that_has_no_room_learns_it_later(counts: Counts) -> None:
    first, second = pools = Pool(1), Pool(2)
    any_pools: Any = pools
    counts.taken(any_pools[0], {"counted": [["c", 1]]})
    second.link.full = True
    counts.tell(any_pools[1], None)
    second.link.full = False
    counts._try_again()
    assert second.link.known == {"c": 1}
    assert second.link.is_complete
    assert not first.link.sent


WRONG = [
    7, {"c": 1}, [["c"]], [["c", 1, 2]], [[7, 1]], [["c", "1"]], [["c", -1]], [["c", True]], [["c", None]],
    [["c", float("inf")]], [["c", float("nan")]], [["c", 2**63]], [["x" * 10_000, 1]], [["h", [1.0]]],
    [["h", [1.0, [[0]]]]], [["h", [1.0, [[0, -1]]]]], [["h", [1.0, [[100, 1]]]]], [["h", [-1, []]]],
    [["h", [1.0, [[0.5, 1]]]]], [["h", [1.0, {"0": 1}]]],
]  # fmt: skip


@pytest.mark.parametrize("counted", WRONG, ids=lambda value: str(value)[:40])
def test_what_is_no_count_is_refused(counted: object) -> None:
    assert not is_counted(counted)


def test_counts_are_added_and_cut_into_messages() -> None:
    assert is_counted([["c", 1], ["d", 0.5], ["h", [1.5, [[3, 2]]]]])
    assert added([1.5, [[3, 2]]], [1, [[3, 1], [1, 4]]]) == [2.5, [[1, 4], [3, 3]]]
    assert added(1, [1, []]) == [1, []]
    many = [(f"key {number}" * 20, number) for number in range(1000)]
    pieces = list(in_pieces(many))
    assert [one for piece in pieces for one in piece] == many
    assert all(len(json.dumps(piece)) < 40_000 for piece in pieces)
