"""``/events`` with clients that are many, slow or gone; in process."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
from poolsrv_status import Status
from poolsrv_status.event_stream import INTERVAL, MOST_CLIENTS, PATIENCE, EventStream

from poolsrv.worker.status_client import ServerReport, report_on, report_without
from tests.helpers.statuses import status


def test_what_explain_says() -> None:
    plugin = Status(Status.Options())
    answers = {path: text for path in ("/metrics", "/events", "/", "/x") for _, text in plugin.explain(path)}
    assert answers == {
        "/metrics": "the server's status, /metrics",
        "/events": "the server's status, /events",
        "/": "the live page",
        "/x": "404: there is nothing of that name",
    }
    del plugin
    gc.collect()  # it has a descriptor


class Ticks:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.call = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Worker:
    """As much of a worker as the stream uses."""

    draining = False

    def __init__(self) -> None:
        self.ticks: list[Ticks] = []
        self.asked: list[Callable[[ServerReport], object]] = []

    def every(self, seconds: float, callback: Callable[[], object]) -> Ticks:
        assert seconds == INTERVAL
        self.ticks.append(Ticks(callback))
        return self.ticks[-1]

    def server_report(self, done: Callable[[ServerReport], object]) -> None:
        self.asked.append(done)

    def answer(self, report: ServerReport | None = None) -> None:
        (done,) = self.asked
        self.asked.clear()
        done(report or report_on(status()))

    def second(self) -> None:
        (ticks,) = [one for one in self.ticks if not one.cancelled]
        ticks.call()


class Client:
    """A request, and its response."""

    method = "GET"

    def __init__(self) -> None:
        self.started = self.status = 0
        self.sent: list[bytes] = []
        self.congested = False
        self.ended = ""
        self.on_cancel: Callable[[], object] | None = None

    def error(self, status: int, **fields: Any) -> None:
        self.status, self.ended = status, f"{fields}"

    def start(self, status: int, headers: Any, first: bytes = b"") -> None:
        self.status = status
        self.sent.append(first)

    def send(self, data: bytes) -> None:
        self.sent.append(data)

    def end(self) -> None:
        self.ended = "end"

    def abort(self, reason: str) -> None:
        self.ended = reason


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def stream(worker: Worker) -> EventStream:
    return EventStream(worker)  # type: ignore[arg-type]


def add(stream: EventStream) -> Client:
    client: Any = Client()
    stream.add(client, client)
    return client  # type: ignore[no-any-return]


def test_one_answer_is_for_all_and_none_is_asked_for_without_clients(worker: Worker, stream: EventStream) -> None:
    clients = [add(stream) for _ in range(3)]
    assert len(worker.asked) == 1
    worker.answer()
    assert [len(client.sent) for client in clients] == [2, 2, 2]
    assert clients[0].sent[1].startswith(b'event: health\ndata: {"health":"well",')
    assert b'\n\nevent: status\ndata: {"time":' in clients[0].sent[1]
    assert clients[0].sent[1].endswith(b"}\n\n")
    worker.second()
    worker.second()  # the answer is late
    assert len(worker.asked) == 1
    worker.answer(report_without("it hangs"))
    assert clients[0].sent[2].startswith(b'event: health\ndata: {"health":"down","reason":"down: it hangs"')
    assert b"status" not in clients[0].sent[2]
    for client in clients:
        assert client.on_cancel is not None
        client.on_cancel()
    worker.second()
    assert worker.asked == []
    assert worker.ticks[0].cancelled
    add(stream)
    assert len(worker.ticks) == 2


def test_there_are_not_too_many_clients(worker: Worker, stream: EventStream) -> None:
    for _ in range(MOST_CLIENTS):
        assert add(stream).status == 200
    refused = add(stream)
    assert (refused.status, refused.ended) == (503, "{'retry_after': 5}")


def test_nothing_is_kept_for_a_client_that_reads_too_slowly(worker: Worker, stream: EventStream) -> None:
    slow, quick = add(stream), add(stream)
    worker.answer()
    slow.congested = True
    for _ in range(PATIENCE):
        worker.second()
        worker.answer()
    assert (len(slow.sent), slow.ended) == (2, "")
    slow.congested = False
    worker.second()
    worker.answer()
    assert len(slow.sent) == 3
    slow.congested = True
    for _ in range(PATIENCE + 1):
        worker.second()
        worker.answer()
    assert (len(slow.sent), slow.ended) == (3, "it reads too slowly")
    assert quick.ended == ""


def test_a_drain_ends_all_streams_and_begins_none(worker: Worker, stream: EventStream) -> None:
    client = add(stream)
    worker.answer()
    worker.draining = True
    stream.close()
    stream.close()
    assert client.ended == "end"
    assert worker.ticks[0].cancelled
    late = add(stream)
    assert (late.status, late.ended) == (200, "end")  # it comes back, as after an error it would not
