"""What a worker reports of the runs that plugins tell it of."""

from __future__ import annotations

import logging
from contextlib import closing
from typing import Any

import msgspec
import pytest

from poolsrv.ipc.runs import LONGEST_REPORT, Run
from poolsrv.ipc.worker_channel import BadReport, DispatcherEnd, Report
from poolsrv.worker.run_sources import RunSources


def run(number: int, failed: bool = False, **fields: Any) -> Run:
    return Run(at=float(number), took=0.1, failed=failed, listener="www", program="/a.sh", **fields)


def reported(sources: RunSources) -> list[Run]:
    """As the dispatcher reads them."""
    with closing(DispatcherEnd()) as channel:
        worker = channel._worker_socket
        worker.send(msgspec.msgpack.encode(Report(0, [], None, None, [], None, sources.collect())))
        report = channel.receive()
        assert report is not None
        return report.runs


def test_failures_come_first_and_what_has_no_room_comes_later() -> None:
    sources = RunSources()
    runs = [run(number, failed=number % 2 == 0) for number in range(60)]
    given = [runs]
    sources.add(lambda: given.pop() if given else [])
    first, second, third = (reported(sources) for _ in range(3))
    assert [one.at for one in (*first, *second)] == [float(number) for number in range(0, 60, 2)]
    assert (len(first), len(second), third) == (16, 14, [])


def test_a_report_is_bounded_in_bytes() -> None:
    sources = RunSources()
    large = {f"NAME_{number}": "x" * 150 for number in range(50)}
    sources.add(lambda: [run(number, environment=large) for number in range(16)])
    assert sum(len(msgspec.msgpack.encode(one)) for one in reported(sources)) <= LONGEST_REPORT


@pytest.mark.parametrize("error", [ZeroDivisionError, SystemExit, KeyboardInterrupt])
def test_a_source_that_fails_hides_no_other(error: type[BaseException], caplog: pytest.LogCaptureFixture) -> None:
    def fail() -> list[Run]:
        raise error

    sources = RunSources()
    sources.add(lambda: [run(1), run(2, pid=-5), run(3)])
    sources.add(fail)
    sources.add(lambda: ["a string", run(5)])  # type: ignore[list-item]
    sources.add(lambda: [run(4)])
    with caplog.at_level(logging.ERROR, logger="poolsrv.worker"):
        assert [one.at for one in reported(sources)] == [1.0, 3.0, 4.0]
    assert [record.getMessage() for record in caplog.records] == ["a plugin's callback failed (report_runs)"] * 3


@pytest.mark.parametrize(
    "runs",
    [
        [{"id": "../../ab", "at": 1.0, "took": 0.1, "failed": True, "listener": "a", "program": "b"}],
        [{"at": 1.0, "took": 0.1, "failed": True, "listener": "a" * 201, "program": "b"}],
        [{"at": 1.0, "took": 0.1, "failed": True, "listener": "a", "program": "b", "environment": {"A": "x" * 2000}}],
        [msgspec.to_builtins(run(1))] * 17,
        ["a string"],
    ],
)
def test_a_report_with_runs_that_are_none_is_refused(runs: list[Any]) -> None:
    with closing(DispatcherEnd()) as channel:
        channel._worker_socket.send(msgspec.msgpack.encode([0, [], None, None, [], None, runs]))
        with pytest.raises(BadReport):
            channel.receive()


def test_no_source_is_asked_where_no_records_are_kept() -> None:
    sources = RunSources(are_kept=False)
    sources.add(lambda: [run(1)])
    assert sources.collect() == []
