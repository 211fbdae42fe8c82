"""Impossible reports: the dispatcher survives whatever a worker sends, and ends that worker alone."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolsrv.config.model import ListenerConfig
from poolsrv.dispatcher.admission import AdmissionControl
from poolsrv.dispatcher.worker_slot import CONDEMNED, STARTING
from poolsrv.ipc.metrics import BUCKETS, Definition, MetricsReport
from poolsrv.ipc.worker_channel import (
    DRAINING,
    FULL,
    MAX_ASKED_PER_REPORT,
    MAX_CLOSED_PER_REPORT,
    SERVING,
    Report,
)
from tests.helpers.books import Books
from tests.helpers.plugins import ask, listener, served
from tests.helpers.server import ServerProcess, assert_rests, is_alive, wait_until

TOTALS = (1, 2, 3, 4, 5)
DEFINED = [Definition(kind, kind, "help", [("listener", "p")]) for kind in ("counter", "gauge", "histogram")]


def with_metrics(defined: Any, numbers: Any = (), histograms: Any = ()) -> Report:
    return Report(0, [], None, None, [], MetricsReport(defined, list(numbers), list(histograms)))


class Pair(Books):
    """Two workers of a listener with limits per source, behind a proxy; their ends are in this process.

    The first has taken the connections 1 to 3; 4 and 5 wait for it, each in a message of its own. It has asked about 1,
    and closed 2. The second has taken 6.
    """

    def __init__(self) -> None:
        config = ListenerConfig("p", (), "p", proxy_protocol=True, max_per_source=10)
        plain = ListenerConfig("q", (), "q", max_per_source=10)
        super().__init__([config, plain])
        for index in range(2):
            self.say(Report(0, [], SERVING, None), index)
        first, second = self.slots
        second.state = FULL  # for a moment
        self.give(1, 2, 3)
        self.take(0)
        self.say(Report(3, [2], None, TOTALS, [(1, ("192.0.2.1", 7))]))
        self.give(4)
        self.give(5)
        second.state, first.state = SERVING, FULL
        self.give(6)
        self.take(1)
        self.say(Report(1, [], None, None), 1)
        first.state = SERVING
        assert (list(first.connections), list(first.waiting), list(second.connections)) == ([1, 3, 4, 5], [4, 5], [6])


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    pair.close()


def peer(number: int) -> tuple[int, tuple[str, int]]:
    return (number, ("192.0.2.1", 7))


GOOD = {
    "nothing": Report(0, [], None, None),
    "taken": Report(1, [], None, None),
    "all taken, and closed": Report(2, [4, 5, 1, 3], None, None),
    "counters": Report(0, [], None, (2**63 - 1,) * 5),
    "full": Report(0, [], FULL, None),
    "draining": Report(0, [], DRAINING, None),
    "asked": Report(0, [], None, None, [peer(3)]),
    "asked and closed": Report(0, [3], None, None, [peer(3)]),
    "asked about one whose close has been told": Report(0, [], None, None, [peer(2)]),
    "metrics": with_metrics(DEFINED, [(0, 1), (0, 0.5), (1, -7)], [(2, 0.1, [(0, 1), (BUCKETS - 1, 2)])]),
    "a metric that changes its kind": with_metrics([*DEFINED, DEFINED[0]._replace(kind="gauge")], [(3, -1)]),
    "asked about a unix socket's": Report(0, [], None, None, [(3, ("unix:/x", 0))]),
}
BAD = {
    "more taken than was waiting": Report(3, [], None, None),
    "far more taken": Report(2**63 - 1, [], None, None),
    "fewer than none": Report(-1, [], None, None),
    "closed twice in one report": Report(0, [1, 1], None, None),
    "closed before": Report(0, [2], None, None),
    "closed, and unknown": Report(0, [99], None, None),
    "closed, and another's": Report(0, [6], None, None),
    "closed, and not taken": Report(0, [4], None, None),
    "closed, and not taken yet": Report(1, [5], None, None),
    "closed, below 0": Report(0, [-1], None, None),
    "closed too many": Report(0, list(range(100, 101 + MAX_CLOSED_PER_REPORT)), None, None),
    "a state of another kind": Report(0, [], "splendid", None),
    "a state that only the dispatcher knows": Report(0, [], "empty", None),
    "starting once more": Report(0, [], STARTING, None),
    "counters below 0": Report(0, [], None, (0, 0, 0, 0, -1)),
    "counters too large": Report(0, [], None, (0, 0, 0, 0, 2**63)),
    "too few counters": Report(0, [], None, (0, 0, 0, 0)),  # type: ignore[arg-type]
    "too many counters": Report(0, [], None, (0,) * 6),  # type: ignore[arg-type]
    "asked twice": Report(0, [], None, None, [peer(1)]),
    "asked twice in one report": Report(0, [], None, None, [peer(3), peer(3)]),
    "asked, and not taken": Report(0, [], None, None, [peer(4)]),
    "asked too many": Report(0, [], None, None, [peer(n) for n in range(100, 101 + MAX_ASKED_PER_REPORT)]),
    "asked with an impossible port": Report(0, [], None, None, [(3, ("192.0.2.1", 65536))]),
    "asked with a host that is no text": Report(0, [], None, None, [(3, (7, 7))]),  # type: ignore[list-item]
    "taken, as text": Report("1", [], None, None),  # type: ignore[arg-type]
    "taken, as a fraction": Report(1.5, [], None, None),  # type: ignore[arg-type]
    "taken, as nothing": Report(None, [], None, None),  # type: ignore[arg-type]
    "closed, as text": Report(0, ["1"], None, None),  # type: ignore[list-item]
    "closed, as a map": Report(0, {1: 1}, None, None),  # type: ignore[arg-type]
    "a state that is a number": Report(0, [], 1, None),  # type: ignore[arg-type]
    "a metric that it has not described": with_metrics(DEFINED, [(3, 1)]),
    "a histogram that it has not described": with_metrics(DEFINED, [], [(3, 1.0, [])]),
    "a counter that shrinks": with_metrics(DEFINED, [(0, -1)]),
    "a counter that is no number": with_metrics(DEFINED, [(0, float("nan"))]),
    "a gauge without end": with_metrics(DEFINED, [(1, float("inf"))]),
    "a growth that is too large": with_metrics(DEFINED, [(0, 2**60)]),
    "a number for a histogram": with_metrics(DEFINED, [(2, 1)]),
    "a histogram for a number": with_metrics(DEFINED, [], [(0, 1.0, [(0, 1)])]),
    "a histogram whose sum is none": with_metrics(DEFINED, [], [(2, float("nan"), [(0, 1)])]),
    "a histogram whose sum shrinks": with_metrics(DEFINED, [], [(2, -1.0, [(0, 1)])]),
    "a bucket that there is not": with_metrics(DEFINED, [], [(2, 1.0, [(BUCKETS, 1)])]),
    "a bucket that loses": with_metrics(DEFINED, [], [(2, 1.0, [(0, -1)])]),
    "an unknown kind of metric": with_metrics([DEFINED[0]._replace(kind="summary")]),  # type: ignore[arg-type]
    "a metric with no name": with_metrics([DEFINED[0]._replace(name="")]),
    "a metric whose name breaks a line": with_metrics([DEFINED[0]._replace(name="a\nb")]),
    "a metric whose name ends a line": with_metrics([DEFINED[0]._replace(name="a\n")]),
    "a help of a thousand characters": with_metrics([DEFINED[0]._replace(help="x" * 1000)]),
    "a label of a thousand characters": with_metrics([DEFINED[0]._replace(labels=[("a", "x" * 1000)])]),
    "too many labels": with_metrics([DEFINED[0]._replace(labels=[("a", "x")] * 11)]),
}
BYTES = {
    "nothing": b"",
    "a zero": b"\0",
    "noise": bytes(range(256)),
    "the largest": b"\xff" * 32768,
    "marshal's": b"\xa9\x05\xe9\x00\x00\x00\x00",
    "cut short": b"\x95\x00\x90\xc0",
    "too much": b"\x95\x00\x90\xc0\xc0\x90\x00",
    "too few fields": b"\x93\x00\x90\xc0",
    "a list that claims four thousand million": b"\x95\x00\xdd\xff\xff\xff\xff",
    "counters that claim as many": b"\x95\x00\x90\xc0\xdd\xff\xff\xff\xff",
    "a text that claims as many": b"\x95\x00\x90\xdb\xff\xff\xff\xff",
    "a map that claims as many": b"\xdf\xff\xff\xff\xff",
    "a thousand lists in each other": b"\x95\x00" + b"\x91" * 1000,
    "a thousand lists in the place of a report": b"\x91" * 5000,
    "text that is not UTF-8": b"\x95\x00\x90\xa2\xff\xfe\xc0\x90",
}


@pytest.mark.parametrize("report", GOOD.values(), ids=GOOD)
def test_an_honest_report_is_accepted(pair: Pair, report: Report) -> None:
    assert pair.say(report)
    assert pair.killed == []


@pytest.mark.parametrize("report", BAD.values(), ids=BAD)
def test_an_impossible_report_ends_its_worker(pair: Pair, report: Report, caplog: pytest.LogCaptureFixture) -> None:
    assert not pair.say(report)
    assert_condemned(pair, caplog)


@pytest.mark.parametrize("data", BYTES.values(), ids=BYTES)
def test_bytes_that_are_no_report_end_their_worker(pair: Pair, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
    assert not pair.write(data)
    assert_condemned(pair, caplog)


def test_a_report_that_is_cut_anywhere_is_none(pair: Pair) -> None:
    whole = b"\x95\x01\x91\x03\xa7serving\x95\x01\x02\x03\x04\x05\x90"
    for size in range(len(whole)):
        fresh = Pair()
        assert not fresh.write(whole[:size])
        assert fresh.killed == [fresh.slots[0]]
        fresh.close()
    assert pair.write(whole)
    assert pair.killed == []


def assert_condemned(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    """It is killed and gets nothing, nothing more is read from it, and its records are cleared when it has ended."""
    first, second = pair.slots
    assert pair.killed == [first]
    assert caplog.text.count("worker 0 (pid 1000) can't be trusted") == 1
    assert not first.has_room()
    assert not pair.say(Report(0, [], SERVING, None))
    assert pair.killed == [first]
    assert len(caplog.records) == 1
    assert pair.listeners[0].counts.open == 5
    assert list(second.connections) == [6]
    assert pair.dispatcher.worker_ended(first) == 2  # 1 and 3; 4 and 5 had not been taken
    assert pair.listeners[0].counts.open == 3
    assert sorted(second.connections) == [4, 5, 6]
    assert pair.take(1) == [4, 5]
    assert (first.connections, first.waiting, first.peer_known, first.condemned) == ({}, {}, set(), False)
    assert sources(pair) == {}


def sources(pair: Pair) -> dict[int, int]:
    admission = pair.listeners[0].admission
    assert isinstance(admission, AdmissionControl)
    assert admission._sources is not None
    return admission._sources._open


def test_a_worker_that_never_served_is_condemned_as_one_that_could_not_start(pair: Pair) -> None:
    pair.slots[0].state = STARTING
    assert not pair.say(Report(0, [], DRAINING, None))
    assert pair.killed == [pair.slots[0]]
    assert pair.slots[0].state == STARTING


def test_a_draining_worker_does_not_serve_again(pair: Pair) -> None:
    assert pair.say(Report(0, [], DRAINING, None))
    assert not pair.say(Report(0, [], SERVING, None))
    assert pair.slots[0].state == CONDEMNED


def test_a_worker_that_reports_what_is_still_in_its_channel_as_taken_is_found_out(pair: Pair) -> None:
    """That shows when they are reclaimed. They are served all the same, even if their end was reported."""
    assert pair.say(Report(2, [4], None, None))
    assert pair.listeners[0].counts.open == 4
    pair.dispatcher.worker_stopped(pair.slots[0], True)
    assert pair.say(Report(0, [], FULL, None))
    assert pair.killed == []
    pair.dispatcher._reclaim(pair.slots[0])
    pair.dispatcher.resume()
    assert pair.killed == [pair.slots[0]]
    assert pair.listeners[0].counts.open == 5
    assert pair.take(1) == [4, 5]


def test_descriptors_that_come_with_a_report_are_closed(pair: Pair) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with open(os.devnull) as file:
        assert pair.write(b"\x95\x00\x90\xc0\xc0\x90", *[file.fileno()] * 20)
    assert len(os.listdir("/proc/self/fd")) == before
    assert pair.killed == []


@pytest.mark.parametrize("how", [socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR])
def test_a_worker_whose_channel_was_shut_down_is_killed(pair: Pair, how: int) -> None:
    pair.workers[0]._socket.shutdown(how)
    pair.slots[1].state = FULL
    pair.give(7)
    pair.slots[1].state = SERVING
    assert pair.slots[0].channel is not None
    pair.slots[0].channel.ask()  # harmless
    assert not pair.dispatcher.on_report(pair.slots[0])
    assert pair.killed == [pair.slots[0]]
    pair.dispatcher.worker_ended(pair.slots[0])
    pair.loop.turn(0)
    assert sorted(pair.take(1)) == [4, 5, 7]


def test_a_worker_whose_answers_can_t_be_sent_is_killed(pair: Pair) -> None:
    assert pair.workers[0]._admission_socket is not None
    pair.workers[0]._admission_socket.shutdown(socket.SHUT_RDWR)
    pair.say(Report(0, [], None, None, [peer(3)]))
    assert pair.killed == [pair.slots[0]]


def test_a_worker_that_asks_and_takes_no_answers_is_killed(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poolsrv.dispatcher.report_check.MAX_UNANSWERED", 1000)
    numbers = iter(range(100, 10**9))
    for _ in range(1000):
        if not pair.say(Report(0, [], None, None, [peer(next(numbers)) for _ in range(MAX_ASKED_PER_REPORT)])):
            break
    assert pair.killed == [pair.slots[0]]


def test_what_the_kernel_adds_to_a_message_pushes_out_no_descriptor(pair: Pair) -> None:
    pair.workers[0]._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    pair.slots[1].state = FULL
    pair.give(*range(10, 26))
    pair.slots[1].state = SERVING
    assert pair.take(0) == [4, 5, *range(10, 26)]


# --- whole servers

MODULE = """
class Liar(Tells):
    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            if line == b"pid\\n":
                conn.send(f"{os.getpid()}\\n".encode())
            else:
                exec(line, {"conn": conn, "os": os, "socket": socket, "worker": conn._host._owner})
"""
LIES = [
    b"worker._reporter.closed += [conn.id, conn.id]; worker._reporter.tell()",
    b"worker._reporter.closed += [conn.id]; worker._reporter.tell(); worker._reporter.closed += [conn.id]",
    b"worker._reporter.taken = 1000; worker._reporter.tell()",
    b"worker._channel._socket.send(b'x' * 1000)",
    b"worker._channel._socket.send(b'')",
    b"worker._channel._socket.shutdown(socket.SHUT_RDWR)",
    b"worker._channel._socket.shutdown(socket.SHUT_WR)",
    b"socket.send_fds(worker._channel._socket, [b'no report'], [0, 1, 2])",
    b"worker.connection_closed(conn.id); conn.abort()",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder: Path = tmp_path_factory.mktemp("liars")
    with served(folder, MODULE, listener("liar"), listener("ping"), pool="workers = 2") as server:
        yield server


@pytest.mark.server
@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.decode()[:40])
def test_a_worker_that_lies_costs_only_its_own_connections(server: ServerProcess, lie: bytes) -> None:
    dispatcher = server.dispatcher_pid
    with server.connect("liar") as liar, server.connect("liar") as other:
        pid, innocent = int(ask(liar, b"pid")), int(ask(other, b"pid"))
        assert pid != innocent
        after = len(server.lines)
        liar.sendall(lie + b"\n")
        server.wait_for_line(rf"worker \d \(pid {pid}\) can't be trusted, killing it: ", after=after)
        server.wait_for_line(rf"\(pid {pid}\) (killed by SIGKILL|exited 4)", after=after)
        server.wait_for_line(r"\(pid \d+\) serves", after=after)
        assert int(ask(other, b"pid")) == innocent
    for _ in range(4):
        with server.connect("ping") as sock:
            assert ask(sock, b"hello") == b"hello"
    wait_until(lambda: not is_alive(pid), "the end of the liar")
    assert is_alive(dispatcher)
    assert server.dispatcher_pid == dispatcher
    assert "fault of the server" not in server.log
    assert_rests(dispatcher)
