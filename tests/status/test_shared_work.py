"""Clients that ask for the same at the same time share the work."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from poolsrv_status.shared_work import SharedWork

from poolsrv.worker.status_client import report_on
from tests.helpers.statuses import status


class Worker:
    """Runs what is to run when it is told."""

    def __init__(self) -> None:
        self.waiting: list[Callable[[], object]] = []
        self.calls = 0

    def run_blocking(self, function: Callable[..., Any], *args: Any, done: Callable[[Future[Any]], object]) -> None:
        self.waiting.append(partial(self._run, partial(function, *args), done))

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        callback()

    def _run(self, function: Callable[[], Any], done: Callable[[Future[Any]], object]) -> None:
        self.calls += 1
        future: Future[Any] = Future()
        future.set_result(function())
        done(future)

    def run(self) -> int:
        waiting, self.waiting, self.calls = self.waiting, [], 0
        for call in waiting:
            call()
        return self.calls


def test_what_several_ask_for_is_done_once_and_one_thing_at_a_time() -> None:
    worker = Worker()
    seen: list[Any] = []

    def work(report: Any, kind: str) -> str:
        seen.append(report)
        return kind

    shared = SharedWork(worker, work)  # type: ignore[arg-type]
    first, second, third = (report_on(status()) for _ in range(3))
    answers: list[tuple[str, str]] = []

    def ask(client: str, report: Any, kind: str) -> None:
        shared.ask(report, kind, lambda future: answers.append((client, future.result())))

    ask("a", first, "text")
    ask("b", first, "text")
    ask("c", first, "open")
    ask("d", second, "text")
    ask("e", third, "text")
    assert answers == []
    assert worker.run() == 1
    assert answers == [("a", "text"), ("b", "text")]
    assert worker.run() == 1
    assert answers[2:] == [("c", "open")]
    assert worker.run() == 1
    assert answers[3:] == [("d", "text"), ("e", "text")]
    assert seen == [first, first, third]
    assert worker.run() == 0
    ask("f", first, "text")
    assert worker.run() == 1
    assert answers[5:] == [("f", "text")]
