"""The worker apart asks the dispatcher for the status: both ends in one process, on one loop."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import msgspec
import pytest

from poolsrv.core.event_loop import EventLoop
from poolsrv.ipc.stats import Answer
from poolsrv.worker import status_client
from poolsrv.worker.status_client import ServerReport, StatusClient
from tests.helpers.statuses import status


class Both:
    """A client, and the dispatcher's end, at which the test answers."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.dispatcher, ours = socket.socketpair()
        self.dispatcher.setblocking(False)
        self.client = StatusClient(self.loop, ours, self._guarded)
        self.sock = ours
        self.got: list[ServerReport] = []

    def _guarded(self, what: str, callback: Callable[[], object]) -> None:
        assert what == "server_report"
        callback()

    def ask(self) -> None:
        self.client.ask(self.got.append)

    def questions(self) -> int:
        try:
            return self.dispatcher.recv(1000).count(b"status\n")
        except BlockingIOError:
            return 0

    def answer(self, data: bytes | None = None) -> None:
        whole = msgspec.json.encode(Answer(1, status())) + b"\n" if data is None else data
        self.dispatcher.sendall(whole)
        self.turn()

    def turn(self) -> None:
        self.loop.turn(0.0)

    def close(self) -> None:
        self.loop.close()
        self.dispatcher.close()
        self.sock.close()


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Iterator[Both]:
    monkeypatch.setattr(status_client, "LONGEST_PAUSE", 0.0)
    monkeypatch.setattr(status_client, "TIMEOUT", 1000.0)
    made = Both()
    yield made
    made.close()


def test_one_question_is_on_its_way_and_others_share_the_next(both: Both) -> None:
    both.ask()
    assert both.questions() == 1
    both.ask()
    both.ask()
    assert both.questions() == 0
    both.answer()
    assert [report.health for report in both.got] == ["well"]
    both.turn()  # the pause
    assert both.questions() == 1
    both.answer()
    assert len(both.got) == 3
    assert both.got[1] is both.got[2]
    both.turn()
    assert both.questions() == 0


def test_there_is_a_pause_between_two_questions(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_client, "LONGEST_PAUSE", 1000.0)
    monkeypatch.setattr(status_client, "PAUSE_SHARE", 1e12)
    both.ask()
    both.answer()
    both.ask()
    both.turn()
    assert (both.questions(), len(both.got)) == (1, 1)  # the first one


def test_an_answer_may_come_in_pieces(both: Both) -> None:
    whole = msgspec.json.encode(Answer(1, status())) + b"\n"
    both.ask()
    for place in range(0, len(whole), 100):
        assert not both.got
        both.answer(whole[place : place + 100])
    assert both.got[0].json() == msgspec.json.format(msgspec.json.encode(status()), indent=2)
    assert both.got[0].compact_json() == msgspec.json.encode(status())


def test_a_dispatcher_that_is_late_is_down_until_it_answers(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_client, "TIMEOUT", 0.0)
    both.ask()
    both.turn()
    both.ask()
    both.turn()
    assert [report.reason for report in both.got] == ["down: the dispatcher does not answer within 0 s"] * 2
    assert (both.got[0].status, both.got[0].is_ready, both.got[0].json()) == (None, False, b"null")
    assert both.got[0].readiness == "not ready: the dispatcher does not answer within 0 s"
    monkeypatch.setattr(status_client, "TIMEOUT", 30.0)
    both.answer()  # to the question that was given up
    assert len(both.got) == 2
    both.turn()
    both.ask()
    both.answer()
    assert both.got[2].health == "well"


def test_a_dispatcher_that_is_gone(both: Both) -> None:
    both.ask()
    both.dispatcher.close()
    both.turn()
    both.ask()
    both.turn()
    assert [report.reason for report in both.got] == ["down: the dispatcher is gone"] * 2


@pytest.mark.parametrize("line", [b"nonsense\n", b'{"protocol": 1}\n', b'{"protocol": 1, "error": "failed"}\n'])
def test_an_answer_that_is_none(both: Both, line: bytes) -> None:
    both.ask()
    both.answer(line)
    assert both.got[0].health == "down"
    assert both.got[0].status is None


def test_the_end_of_accepting_is_told(both: Both) -> None:
    stopping = status(server={"state": "stopping", "drains_in": 7.4})
    both.ask()
    both.answer(msgspec.json.encode(Answer(1, stopping)) + b"\n")
    (report,) = both.got
    assert (report.health, report.is_ready) == ("degraded", False)
    assert report.readiness == "not ready: the pool is stopping (it drains in 7 s)"
