"""How connections come into a worker: when they are taken, and what is reported and told."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, cast

import pytest

from poolsrv.core.event_loop import READ, EventLoop
from poolsrv.ipc.worker_channel import (
    DRAINING,
    FULL,
    SERVING,
    AcceptedConnection,
    DispatcherEnd,
    Report,
    WorkerEnd,
)
from poolsrv.worker.connection import Connection
from poolsrv.worker.descriptor_room import DescriptorRoom
from poolsrv.worker.intake import RECOUNT_AFTER, Intake
from poolsrv.worker.reporter import Reporter
from poolsrv.worker.service import Service as RealService
from tests.helpers.streams import pass_time


class Service(RealService):
    """Has connections that are numbers."""

    def __init__(self) -> None:
        self.connections = {}
        self.told: list[int] = []

    def open(self, fd: int, number: int, peer: Any, accepted_at: float) -> None:
        os.close(fd)
        self.connections[number] = cast(Connection, number)

    def opened_after_drain(self, connection: Connection) -> None:
        self.told.append(cast(int, connection))


class Room(DescriptorRoom):
    """Says what the test says."""

    def __init__(self) -> None:
        self.lost = 0
        self.has_some, self.leaks = True, False

    def is_there(self) -> bool:
        return self.has_some

    def is_leaking(self) -> bool:
        return self.leaks

    def taken(self, handed: list[AcceptedConnection]) -> None:
        pass


class Entrance:
    """An intake, and the dispatcher's end of its channel."""

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self.dispatcher = DispatcherEnd()
        channel = WorkerEnd(self.dispatcher._worker_socket)
        self.service, self.room = Service(), Room()
        self.reporter = Reporter(loop, channel, urgent=False, hang_timeout=0.0, counters=lambda: (0, 0, 0, 0, 0))
        self.drained = self.gone = 0
        self.intake = Intake(
            loop, channel, [self.service], self.reporter, self.room, give_way=self.give_way, gone=self.end
        )
        loop.after_turn = self.reporter.after_turn
        self.reporter.begin(SERVING)
        loop.register(channel.fileno(), READ, self.intake.on_channel)
        self.last_id = 0

    def give_way(self) -> None:
        self.drained += 1
        self.drain()

    def drain(self) -> None:
        """As the worker's process does."""
        self.intake.drain()
        self.reporter.state = DRAINING

    def end(self) -> None:
        self.gone += 1
        self.intake.stop()

    def send(self) -> int:
        """Pass on a connection; its number."""
        self.last_id += 1
        fd = os.open(os.devnull, os.O_RDWR)
        assert self.dispatcher.send([AcceptedConnection(fd, 0, self.last_id, ("192.0.2.1", 7))])
        os.close(fd)
        return self.last_id

    def turn(self) -> list[int]:
        """The connections that are there after an iteration."""
        self.loop.turn(0)
        return list(self.service.connections)

    def state(self) -> str | None:
        """The state that has been reported last."""
        self.reporter.tell()
        state = None
        while (report := self.dispatcher.receive()) is not None:
            assert isinstance(report, Report)
            state = report.state or state
        return state


@pytest.fixture
def entrance(loop: EventLoop) -> Iterator[Entrance]:
    entrance = Entrance(loop)
    yield entrance
    entrance.dispatcher.close()


def test_what_there_is_no_room_for_is_taken_later(entrance: Entrance) -> None:
    entrance.room.has_some = False
    number = entrance.send()
    assert entrance.turn() == []
    assert entrance.state() == FULL
    entrance.room.has_some = True
    pass_time(entrance.loop, RECOUNT_AFTER)
    assert entrance.turn() == [number]
    assert entrance.state() == SERVING
    assert entrance.service.told == []


def test_in_a_pool_that_drains_a_worker_takes_what_it_had_no_room_for_and_tells_plugins(entrance: Entrance) -> None:
    before = entrance.send()
    entrance.turn()
    entrance.room.has_some = False
    late = entrance.send()
    entrance.drain()
    assert entrance.turn() == [before]
    assert entrance.state() == DRAINING
    entrance.room.has_some = True
    pass_time(entrance.loop, RECOUNT_AFTER)
    assert entrance.turn() == [before]  # it is another worker's
    assert not entrance.intake.take_rest()
    entrance.room.has_some = False
    entrance.intake.take_late()
    assert entrance.turn() == [before]
    entrance.room.has_some = True
    pass_time(entrance.loop, RECOUNT_AFTER)
    assert entrance.turn() == [before, late]
    assert entrance.service.told == [late]
    last = entrance.send()
    assert entrance.turn() == [before, late, last]
    assert entrance.service.told == [late, last]
    assert entrance.state() in (None, DRAINING)  # after a long iteration it looks for more, and says it again


def test_the_rest_is_taken_before_the_end(entrance: Entrance) -> None:
    entrance.drain()
    entrance.intake.take_late()
    number = entrance.send()
    assert entrance.intake.take_rest()
    assert list(entrance.service.connections) == [number]
    assert not entrance.intake.take_rest()


def test_a_worker_gives_way_once(entrance: Entrance) -> None:
    entrance.room.has_some, entrance.room.leaks = False, True
    entrance.send()
    assert entrance.turn() == []
    for _ in range(3):
        pass_time(entrance.loop, RECOUNT_AFTER)
        entrance.turn()
    assert entrance.drained == 1
    assert entrance.state() == DRAINING


def test_after_the_stop_nothing_is_taken(entrance: Entrance) -> None:
    entrance.send()
    entrance.intake.stop()
    assert entrance.turn() == []
    assert not entrance.intake.take_rest()
    left = entrance.dispatcher.reclaim()
    assert left is not None
    os.close(left[0].fd)


def test_the_end_of_the_dispatcher_is_told_once(entrance: Entrance, loop: EventLoop) -> None:
    entrance.drain()
    entrance.dispatcher._socket.close()
    for _ in range(3):
        entrance.turn()
    assert entrance.gone == 1
