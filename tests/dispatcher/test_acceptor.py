"""The intake: how connections are accepted, with real sockets."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from poolsrv.config.model import ListenerConfig
from poolsrv.core.event_loop import EventLoop
from poolsrv.core.listening_sockets import ListeningSocket
from poolsrv.dispatcher.acceptor import Acceptor
from poolsrv.dispatcher.bind import Bound
from poolsrv.dispatcher.listener import MOST_SINGLE_TURNS, Listener
from poolsrv.dispatcher.worker_slot import SERVING, WorkerSlot
from poolsrv.ipc.worker_channel import AcceptedConnection


class CountingListener(socket.socket):
    """Counts how often it was asked for a connection, and how often there was none."""

    asked = in_vain = 0

    def _accept(self) -> tuple[int, object]:
        self.asked += 1
        try:
            return super()._accept()  # type: ignore[misc,no-any-return]
        except BlockingIOError:
            self.in_vain += 1
            raise


class Entrance:
    """One listener with an intake, and a worker that has room for whoever comes."""

    def __init__(self) -> None:
        self.listener = CountingListener()
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(512)
        self.listener.setblocking(False)
        self.loop = EventLoop()
        self.accepted: list[AcceptedConnection] = []
        slot = WorkerSlot(0)
        slot.state = SERVING
        bound = Bound("p", ListeningSocket("127.0.0.1:0", self.listener), True)
        listener = Listener(0, ListenerConfig("p", (), "p"), [bound], [slot])
        self.intake = Acceptor(
            self.loop,
            [listener],
            lambda listener: slot,
            lambda slot, handed: self.accepted.append(handed),
            lambda slots: None,
            lambda: None,
            1,
        )
        self.intake.open()
        self.clients: list[socket.socket] = []

    def connect(self, count: int) -> None:
        for _ in range(count):
            self.clients.append(socket.create_connection(self.listener.getsockname()))

    def close(self) -> None:
        self.intake.close()
        self.loop.close()
        self.listener.close()
        for handed in self.accepted:
            os.close(handed.fd)
        for client in self.clients:
            client.close()


@pytest.fixture
def entrance() -> Iterator[Entrance]:
    entrance = Entrance()
    yield entrance
    entrance.close()


def test_where_connections_come_one_by_one_it_is_seldom_looked_for_a_second(entrance: Entrance) -> None:
    for count in range(1, 201):
        entrance.connect(1)
        entrance.loop.turn(0)
        assert len(entrance.accepted) == count
    assert entrance.listener.in_vain <= 200 / MOST_SINGLE_TURNS + 5


def test_connections_that_come_together_are_accepted_in_two_turns(entrance: Entrance) -> None:
    for count in (100, 200):
        entrance.connect(100)
        entrance.loop.turn(0)  # perhaps only the first: it was not known that there are more
        entrance.loop.turn(0)
        assert len(entrance.accepted) == count


def test_a_flood_after_single_connections_is_noticed_within_some_turns(entrance: Entrance) -> None:
    for _ in range(200):
        entrance.connect(1)
        entrance.loop.turn(0)
    entrance.connect(300)
    for _ in range(MOST_SINGLE_TURNS + 1):
        entrance.loop.turn(0)
    assert len(entrance.accepted) == 500
    assert [handed.id for handed in entrance.accepted] == list(range(1, 501))
