"""A worker asks whether a client is admitted: both ends in one process, over a real channel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from poolsrv.config.model import ListenerConfig
from poolsrv.core.event_loop import EventLoop
from poolsrv.dispatcher import admission_server
from poolsrv.dispatcher.dispatcher import Dispatcher
from poolsrv.dispatcher.listener import Listener
from poolsrv.dispatcher.worker_slot import WorkerSlot
from poolsrv.ipc.worker_channel import MAX_ASKED_PER_REPORT, SERVING, DispatcherEnd, Report, WorkerEnd
from poolsrv.worker.admission_client import AdmissionClient
from poolsrv.worker.reporter import Reporter


class Stub:
    """A connection, as far as this is concerned."""

    def __init__(self, number: int, host: str) -> None:
        self.id = number
        self.peer = (host, 4000)
        self.ended = ""

    def _is_closed(self) -> bool:
        return bool(self.ended)

    def _refuse(self, reason: str) -> None:
        self.ended = reason


class Both:
    """A dispatcher with one slot, and that worker's side."""

    def __init__(self, **keys: object) -> None:
        config = ListenerConfig("www", (), "echo", proxy_protocol=True, **keys)  # type: ignore[arg-type]
        self.above, self.below = EventLoop(), EventLoop()
        self.slot = WorkerSlot(0, state=SERVING)
        self.listener = Listener(self.above, 0, config, [], [self.slot])
        self.dispatcher = Dispatcher(self.above, [self.listener], [self.slot])
        assert self.dispatcher.is_asked
        self.channel = self.slot.channel = DispatcherEnd(answers=True)
        assert self.channel._admission_sockets is not None
        self.worker = WorkerEnd(self.channel._worker_socket, self.channel._admission_sockets[1])
        self.reporter = Reporter(
            self.below, self.worker, urgent=True, hang_timeout=0.0, counters=lambda: (0, 0, 0, 0, 0)
        )
        self.below.after_turn = self.reporter.after_turn
        self.admission_client = AdmissionClient(self.below, self.worker, self.reporter)
        self.admission_client.begin()
        self.admitted: list[int] = []
        self.last_id = 0

    def connect(self, host: str) -> Any:
        """A connection that the worker has, and whose client is known."""
        self.last_id += 1
        connection: Any = Stub(self.last_id, host)
        self.slot.connections[connection.id] = 0
        self.listener.counts.open += 1
        self.admission_client.ask_admission(connection, lambda: self.admitted.append(connection.id))
        return connection

    def close(self, connection: Any) -> None:
        connection.ended = connection.ended or "closed"
        self.reporter.closed.append(connection.id)

    def turn(self) -> None:
        """The worker's turn, then the dispatcher's, then the worker's."""
        self.below.turn(0)
        while self.dispatcher.on_report(self.slot):
            pass
        self.above.turn(0)
        self.below.turn(0)


@pytest.fixture
def made() -> Iterator[list[Both]]:
    found: list[Both] = []
    yield found
    for both in found:
        both.channel.close()
        both.above.close()
        both.below.close()


@pytest.fixture
def both(made: list[Both]) -> Both:
    made.append(Both(max_per_source=2))
    return made[-1]


def test_which_clients_are_admitted(both: Both) -> None:
    connections = [both.connect("192.0.2.1") for _ in range(3)] + [both.connect("192.0.2.2")]
    both.turn()
    assert both.admitted == [1, 2, 4]
    assert connections[2].ended == "max_per_source"
    assert both.listener.refusals == {"max_per_source": 1}
    assert [refusal.peer for refusal in both.dispatcher.recent_refusals] == ["192.0.2.1:4000"]


def test_a_client_that_has_gone_no_longer_counts(both: Both) -> None:
    first, _ = both.connect("192.0.2.1"), both.connect("192.0.2.1")
    both.turn()
    both.close(first)
    both.turn()
    assert both.connect("192.0.2.1").ended == ""
    both.turn()
    assert both.admitted == [1, 2, 3]


def test_a_client_that_goes_before_the_answer_does_not_count(both: Both) -> None:
    for _ in range(5):
        both.close(both.connect("192.0.2.1"))
        both.turn()
    assert both.admitted == []
    both.connect("192.0.2.1")
    both.turn()
    assert both.admitted == [6]


def test_a_worker_that_dies_takes_its_clients_with_it(both: Both) -> None:
    for _ in range(2):
        both.connect("192.0.2.1")
    both.turn()
    assert both.listener.admission is not None
    for number in both.slot.connections:
        both.listener.admission.closed(number)
    assert both.listener.admission.admit_client(99, ("192.0.2.1", 1)) is None


def test_a_client_without_an_address_is_admitted(both: Both) -> None:
    for _ in range(5):
        both.connect("unix:/run/x.sock")
    both.turn()
    assert both.admitted == [1, 2, 3, 4, 5]


def test_the_proxys_own_address_does_not_count(both: Both) -> None:
    assert both.listener.admission is not None
    with open("/dev/null") as file:
        assert all(both.listener.admission.admit(number, file.fileno(), ("192.0.2.1", 1)) for number in range(5))


def test_many_questions_at_once(both: Both) -> None:
    """More than fit in a report, or in an answer."""
    count = 3 * MAX_ASKED_PER_REPORT + 1
    for number in range(count):
        both.connect(f"2001:db8:{number:x}::1")
    while len(both.admitted) < count:
        both.turn()
    assert sorted(both.admitted) == list(range(1, count + 1))


def test_a_question_after_its_connection_s_close_was_told(both: Both) -> None:
    """Reports are cut to size: a close may be in an earlier one than the question."""
    both.connect("192.0.2.1")
    both.reporter.asked.clear()
    del both.slot.connections[1]
    assert both.worker.report(Report(0, [], None, None, [(1, ("192.0.2.1", 1))]))
    both.turn()
    assert both.admitted == []
    assert both.listener.admission is not None
    assert both.listener.admission.admit_client(2, ("192.0.2.1", 1)) is None
    assert both.listener.admission.admit_client(3, ("192.0.2.1", 1)) is None


def test_answers_for_which_there_is_no_room_wait(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission_server, "RETRY_DELAY", 0.0)
    unrelated = 0
    while both.channel.answer([(0, "full")] * MAX_ASKED_PER_REPORT):
        unrelated += 1
    both.connect("192.0.2.1")
    both.reporter.tell()
    while both.dispatcher.on_report(both.slot):
        pass
    both.above.turn(0)
    both.above.turn(0)
    assert both.slot.unanswered == [(1, None)]
    for _ in range(unrelated):
        assert len(both.worker.receive_answers()) == MAX_ASKED_PER_REPORT
    while not both.admitted:
        both.turn()
    assert both.slot.unanswered == []


def test_the_end_of_the_dispatcher_is_no_answer(both: Both) -> None:
    assert both.channel._admission_sockets is not None
    both.channel._admission_sockets[0].close()
    turns_before = both.below.turns
    both.below.turn(0)
    with pytest.raises(EOFError):
        both.worker.receive_answers()
    assert both.below.wait(0) == []  # it is not told again and again
    assert both.below.turns == turns_before + 1
