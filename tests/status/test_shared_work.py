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


def test_what_several_ask_for_is_done_once() -> None:
    worker = Worker()
    shared = SharedWork(worker, lambda report, kind: f"{report.health} {kind}")  # type: ignore[arg-type]
    one, other = report_on(status()), report_on(status())
    answers: list[tuple[str, str]] = []

    def ask(client: str, report: Any, kind: str) -> None:
        shared.ask(report, kind, lambda future: answers.append((client, future.result())))

    ask("a", one, "text")
    ask("b", one, "text")
    ask("c", one, "open")
    ask("d", other, "text")
    assert answers == []
    assert worker.run() == 3
    assert answers == [("a", "well text"), ("b", "well text"), ("c", "well open"), ("d", "well text")]
    ask("e", one, "text")
    assert worker.run() == 1
    assert answers[4:] == [("e", "well text")]
    assert not shared._asking
