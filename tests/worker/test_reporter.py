"""What a worker reports although nothing happens."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from poolsrv.core.event_loop import EventLoop
from poolsrv.ipc.worker_channel import SERVING, DispatcherEnd, WorkerEnd
from poolsrv.worker.reporter import Reporter


@pytest.fixture
def above() -> Iterator[DispatcherEnd]:
    end = DispatcherEnd()
    yield end
    end.close()


def test_a_worker_that_nobody_connects_to_is_not_silent_from_its_start_on(above: DispatcherEnd) -> None:
    loop = EventLoop()
    reporter = Reporter(
        loop, WorkerEnd(above._worker_socket), urgent=False, hang_timeout=0.2, counters=lambda: (0, 0, 0, 0, 0)
    )
    loop.after_turn = reporter.after_turn
    reporter.begin(SERVING)
    report = above.receive()
    assert report is not None
    assert report.state == SERVING
    for _ in range(3):
        loop.turn(5.0)  # ends as soon as a timer is due
        report = above.receive()
        assert report is not None
        assert report.counters is not None
    loop.close()
