"""A worker's acceptor, with real sockets: when it accepts, and what it reports."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from poolsrv.config.model import ListenerConfig
from poolsrv.core.event_loop import EventLoop
from poolsrv.ipc.worker_channel import (
    MAX_ACCEPTED_PER_REPORT,
    MAX_PER_MESSAGE,
    AcceptedConnection,
    DispatcherEnd,
    Grant,
    Report,
    WorkerEnd,
)
from poolsrv.net.access_list import parse as network
from poolsrv.worker.descriptor_room import DescriptorRoom
from poolsrv.worker.kernel_acceptor import KernelAcceptor, OwnSocket
from poolsrv.worker.reporter import Reporter
from poolsrv.worker.service import Service as RealService


class Service(RealService):
    """Keeps what it is given."""

    def __init__(self, config: ListenerConfig, opened: Callable[[AcceptedConnection], object]) -> None:
        self.config = config
        self.opened = opened

    def open(self, fd: int, number: int, peer: Any, accepted_at: float) -> None:
        self.opened(AcceptedConnection(fd, 0, number, peer, accepted_at))


class Room(DescriptorRoom):
    """Keeps the descriptors that it hears of."""

    def __init__(self) -> None:
        self.heard_of: list[int] = []

    def accepted(self, count: int, fd: int) -> None:
        self.heard_of.append(fd)


class Entrance:
    """A listening socket, its acceptor, and a service that keeps what it is given."""

    def __init__(self, **keys: Any) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.listener.setblocking(False)
        self.loop = EventLoop()
        self.opened: list[AcceptedConnection] = []
        self.has_room = True
        self.reasons: list[str] = []
        self.room = Room()
        self.above = DispatcherEnd()
        self.reporter = Reporter(
            self.loop,
            WorkerEnd(self.above._worker_socket),
            urgent=False,
            hang_timeout=0.0,
            counters=lambda: (0, 0, 0, 0, 0),
        )
        self.service = Service(ListenerConfig("a", (), "echo", **keys), self.opened.append)
        self.acceptor = KernelAcceptor(
            self.loop,
            [self.service],
            self.reporter,
            self.room,
            has_room=lambda: self.has_room,
            no_room=self.reasons.append,
        )
        self.acceptor.sockets.append(OwnSocket(5, 0, self.listener))
        self.clients: list[socket.socket] = []

    def connect(self, count: int) -> None:
        self.clients += [socket.create_connection(self.listener.getsockname()) for _ in range(count)]

    def turns(self, count: int = 4) -> list[int]:
        for _ in range(count):
            self.loop.turn(0.01)
        return [one.id for one in self.opened]

    def close(self) -> None:
        self.acceptor.close()
        self.loop.turn(0)
        for one in self.opened:
            socket.close(one.fd)
        for client in self.clients:
            client.close()
        self.above.close()
        self.loop.close()


@pytest.fixture
def entrance() -> Iterator[Entrance]:
    one = Entrance()
    yield one
    one.close()


def test_it_accepts_once_it_has_been_granted_ids_and_as_many_as_these(entrance: Entrance) -> None:
    entrance.connect(7)
    assert entrance.turns() == []
    entrance.acceptor.granted(Grant(10, 13))
    assert entrance.turns() == [10, 11, 12]
    entrance.acceptor.granted(Grant(10, 13))  # told twice
    assert entrance.turns() == [10, 11, 12]
    entrance.acceptor.granted(Grant(100, 200))
    assert entrance.turns() == [10, 11, 12, 100, 101, 102, 103]
    runs = [run for report in reports(entrance) for run in report.accepted] + entrance.reporter.accepted
    assert {socket for socket, _ in runs} == {5}
    assert sum(count for _, count in runs) == 7
    assert entrance.acceptor.accepted == 7
    assert {(one.listener, one.peer) for one in entrance.opened} == {
        (0, client.getsockname()) for client in entrance.clients
    }
    assert entrance.room.heard_of  # descriptors


def test_it_takes_no_more_at_a_time_than_a_message_would_bring(entrance: Entrance) -> None:
    entrance.connect(MAX_PER_MESSAGE * 2)
    entrance.acceptor.granted(Grant(1, 100))
    assert len(entrance.turns(1)) == MAX_PER_MESSAGE


def test_it_accepts_nothing_while_it_is_paused_or_after_it_is_closed(entrance: Entrance) -> None:
    entrance.acceptor.granted(Grant(1, 100))
    entrance.acceptor.pause()
    entrance.connect(1)
    assert entrance.turns() == []
    entrance.acceptor.resume()
    assert entrance.turns() == [1]
    entrance.has_room = False
    entrance.connect(1)
    assert entrance.turns() == [1]
    entrance.has_room = True
    assert entrance.turns() == [1, 2]
    entrance.acceptor.close()
    entrance.acceptor.granted(Grant(200, 300))
    entrance.acceptor.resume()
    assert entrance.turns() == [1, 2]
    assert entrance.listener.fileno() == -1


def test_it_refuses_whom_the_access_lists_refuse() -> None:
    entrance = Entrance(deny=(network("127.0.0.0/8"),))
    entrance.acceptor.granted(Grant(1, 100))
    entrance.connect(2)
    assert entrance.turns() == []
    assert entrance.reporter.refused == [(5, "deny", client.getsockname()) for client in entrance.clients]
    for client in entrance.clients:
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert not entrance.acceptor.accepted
    entrance.close()


@pytest.mark.parametrize(
    ("number", "reasons"), [(errno.EMFILE, ["Too many open files"]), (errno.EINVAL, [""]), (errno.ECONNABORTED, [])]
)
def test_what_accept_says(entrance: Entrance, monkeypatch: pytest.MonkeyPatch, number: int, reasons: list[str]) -> None:
    failures = [OSError(number, "Too many open files")]
    accept = socket.socket._accept  # type: ignore[attr-defined]

    def fail_once(sock: socket.socket) -> Any:
        if failures:
            raise failures.pop()
        return accept(sock)

    monkeypatch.setattr(socket.socket, "_accept", fail_once)
    entrance.acceptor.granted(Grant(1, 100))
    entrance.connect(1)
    assert entrance.turns() == [1]
    assert entrance.reasons == reasons


def reports(entrance: Entrance) -> list[Report]:
    found = []
    while (report := entrance.above.receive()) is not None:
        found.append(report)
    return found


def test_the_first_connection_after_a_pause_is_reported_at_once(entrance: Entrance) -> None:
    entrance.loop.after_turn = entrance.reporter.after_turn_of_acceptor
    entrance.reporter._beat_every = 1000.0  # a heartbeat would report all
    entrance.reporter.has_accepted(5, 1)
    entrance.turns(1)
    (report,) = reports(entrance)
    assert report.accepted == [(5, 1)]
    entrance.reporter._told_at = entrance.loop.now + 1000.0  # just now, whatever the machine does meanwhile
    entrance.reporter.has_accepted(5, 1)
    entrance.reporter.refused.append((5, "deny", ("192.0.2.1", 7)))
    entrance.turns(1)
    assert reports(entrance) == []
    entrance.reporter._tell_late()
    (report,) = reports(entrance)
    assert (report.accepted, report.refused) == ([(5, 1)], [(5, "deny", ("192.0.2.1", 7))])


def test_a_connection_is_reported_before_a_plugin_sees_it(entrance: Entrance) -> None:
    """The first one after a pause; should the worker hang then, the dispatcher knows what it has."""
    seen: list[list[Report]] = []

    def serve(accepted: AcceptedConnection) -> None:
        entrance.opened.append(accepted)
        seen.append(reports(entrance))

    entrance.service.opened = serve
    entrance.acceptor.granted(Grant(1, 100))
    entrance.connect(1)
    assert entrance.turns() == [1]
    assert [one.accepted for one in seen[0]] == [[(5, 1)]]


def test_what_is_said_of_a_connection_comes_after_its_accept(entrance: Entrance) -> None:
    most = [(5, 1), (6, 1)] * (MAX_ACCEPTED_PER_REPORT // 2)
    for number, _ in (*most, *most, (5, 1)):
        entrance.reporter.has_accepted(number, 1)
    entrance.reporter.closed += [1, 5]
    entrance.reporter.asked.append((5, ("192.0.2.1", 7)))
    entrance.reporter.tell()
    first, second, third = reports(entrance)
    assert [one.accepted for one in (first, second, third)] == [most, most, [(5, 1)]]
    assert [one.closed for one in (first, second, third)] == [[], [], [1, 5]]
    assert [len(one.asked) for one in (first, second, third)] == [0, 0, 1]
