"""Workers whose plugins take descriptors up to the limit: no connection is lost by it, and they are replaced."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from poolsrv.core.event_loop import EventLoop
from poolsrv.ipc.figures import UNDELIVERED
from poolsrv.ipc.worker_channel import LOST, MAX_PER_MESSAGE, AcceptedConnection
from poolsrv.worker.descriptor_room import SPARE, DescriptorRoom
from poolsrv.worker.engine_metrics import WorkerMetrics
from tests.helpers.control import query
from tests.helpers.distributions import install
from tests.helpers.plugins import IMPORTS, ask, listener
from tests.helpers.puppet import Crowd, address_of
from tests.helpers.server import ServerProcess, assert_rests, wait_until

MODULE = (
    IMPORTS
    + '''
class Leaks:
    """Opens descriptors for ever: some with each connection."""

    each = 1

    def __init__(self):
        self.kept = []

    @hookimpl
    def on_connection_init(self, conn):
        self.kept += [os.open(os.devnull, os.O_RDONLY) for _ in range(self.each)]

    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        conn.send(f"{os.getpid()}\\n".encode())


class LeaksSeven(Leaks):
    each = 7


class Greedy(Leaks):
    """Takes all that there are, once it has had some connections, and says nothing."""

    each = 0
    count = 0

    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        self.count += 1
        if self.count == 5:
            try:
                while True:
                    self.kept.append(os.dup(1))
            except OSError:
                pass
        conn.send(f"{os.getpid()}\\n".encode())


class Failing(Greedy):
    """The same, and its hook fails by it."""

    @hookimpl
    def on_connection_init(self, conn):
        if len(self.kept) > 5:
            os.dup(1)
        self.kept.append(0)

    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        conn.send(f"{os.getpid()}\\n".encode())
        self.count += 1
        while self.count >= 5:
            self.kept.append(os.dup(1))


class Stocked(Leaks):
    """Has taken nearly all before the first connection."""

    each = 0

    @hookimpl
    def on_worker_start(self, worker):
        while (fd := os.dup(1)) < 100:
            self.kept.append(fd)
'''
)


@contextmanager
def running(folder: Path, name: str, workers: int = 2) -> Iterator[ServerProcess]:
    site = folder / "site"
    names = ("Leaks", "LeaksSeven", "Greedy", "Failing", "Stocked")
    install(site, "under-test", {one.lower(): f"under_test:{one}" for one in names}, MODULE)
    config = f'[pool]\nworkers = {workers}\ngraceful_timeout = 5.0\ncontrol = "run/ctl"\n' + listener(name)
    with ServerProcess(config, folder, paths=(site,), descriptors=120) as server:
        yield server.wait_ready()


@pytest.mark.server
@pytest.mark.parametrize("name", ["leaks", "leaksseven"])
def test_a_worker_whose_plugin_leaks_loses_no_connection(tmp_path: Path, name: str) -> None:
    """They come one by one, and each worker is replaced before it loses one."""
    with running(tmp_path, name) as server:
        first = set(server.worker_pids())
        served: set[int] = set()
        connections = 0
        while connections < 200 or len(served - first) < 2:  # a replacement's start may take its time
            connections += 1
            with server.connect(name) as sock:
                served.add(int(ask(sock, b"x")))
        server.wait_for_line(r"plugins hold the descriptors, of which there are 120: taking no more .* draining")
        assert "connections lost" not in server.log
        assert "worker failed" not in server.log
        assert server.stop() == 0


@pytest.mark.server
def test_a_plugin_that_takes_all_descriptors_at_once_costs_one_message_at_most(tmp_path: Path) -> None:
    """What is sent in that very moment may not fit; after it, nothing is taken."""
    with running(tmp_path, "greedy") as server:
        first = set(server.worker_pids())
        answers: list[bytes] = []
        while len(answers) < 200 or len({int(answer) for answer in answers if answer} - first) < 2:
            with server.connect("greedy") as sock:
                try:
                    answers.append(ask(sock, b"x"))
                except ConnectionResetError:
                    answers.append(b"")
        server.wait_for_line(r"plugins hold the descriptors, of which there are 120.* draining")
        cut_off = answers.count(b"")
        wait_until(lambda: server.log.count("plugins hold the descriptors") >= cut_off, "a line for each loss")
        wait_until(lambda: counted(server, UNDELIVERED) == lost(server), "a count of what the log tells of")
        assert "worker failed" not in server.log
        assert server.stop() == 0


@pytest.mark.server
def test_a_burst_into_workers_whose_plugin_leaks_is_answered(tmp_path: Path) -> None:
    with running(tmp_path, "leaks") as server, Crowd(address_of(server, "leaks"), 500, leave=True) as crowd:
        answers = crowd.run()
        assert len(answers) == 500
        assert b"" not in answers
        server.wait_for_line("plugins hold the descriptors")
        assert "connections lost" not in server.log


@pytest.mark.server
def test_a_hook_that_fails_for_want_of_descriptors_costs_its_connections_alone(tmp_path: Path) -> None:
    with running(tmp_path, "failing", workers=1) as server:
        (first,) = server.worker_pids()
        others: set[bytes] = set()
        while len(others) < 2:
            with server.connect("failing") as sock:
                answer = ask(sock, b"x")
                if answer and int(answer) != first:
                    others.add(answer)
        server.wait_for_line("plugins hold the descriptors, of which there are 120: taking", count=2)
        assert "connections lost" not in server.log
        assert "worker failed" not in server.log


@pytest.mark.server
def test_a_worker_that_never_had_room_is_not_replaced_again_and_again(tmp_path: Path) -> None:
    """Another one would have none either. It says so, and the dispatcher waits."""
    with running(tmp_path, "stocked", workers=1) as server:
        workers = server.worker_pids()
        with server.connect("stocked"):
            server.wait_for_line("close to the limit of 120 open descriptors")
            assert_rests(server.dispatcher_pid, 1.0)
        assert server.worker_pids() == workers


def lost(server: ServerProcess) -> int:
    """According to the log."""
    return sum(map(int, re.findall(r"connections lost: (\d+)", server.log)))


def counted(server: ServerProcess, name: str) -> int:
    (value,) = (
        one["value"]
        for metric in query(server)["status"]["metrics"]
        for one in metric["series"]
        if metric["name"] == name
    )
    return int(value)


# --- in this process


def test_what_did_not_fit_is_counted() -> None:
    with closing(EventLoop()) as loop:
        room = room_of(loop)
        room.taken([AcceptedConnection(5, 0, 1, "", 0.0), AcceptedConnection(LOST, 0, 2, "", 0.0)])
        metrics = WorkerMetrics(["www"])
        metrics.engine.update(loop, room.lost)
        (report,) = metrics.registry.collect()
        names = [definition.name for definition in metrics.definitions]
        assert dict(report.numbers)[names.index(UNDELIVERED)] == 1


@contextmanager
def limit_above(highest: int, free: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def opened() -> int:
    return len(os.listdir("/proc/self/fd"))


def room_of(loop: EventLoop, of_connections: Callable[[], int] = lambda: 0) -> DescriptorRoom:
    room = DescriptorRoom(loop, of_connections)
    room.probe = 1
    return room


def test_there_is_room_for_a_message_or_there_is_none(loop: EventLoop) -> None:
    used = opened()
    for free, there_is in ((SPARE + MAX_PER_MESSAGE, True), (SPARE + MAX_PER_MESSAGE - 1, False)):
        room = room_of(loop)
        with limit_above(used, free):
            assert room.is_there() is there_is


def test_without_any_descriptor_left_there_is_no_room(loop: EventLoop) -> None:
    """Not even for the folder that is listed to count them."""
    room = room_of(loop)
    assert room.is_there()
    highest = os.dup(1)
    os.close(highest)
    with limit_above(highest, 0):
        room._allowance = 0
        assert not room.is_there()
        assert room.is_leaking()


def test_a_high_number_and_a_failure_have_them_counted(loop: EventLoop) -> None:
    for doubt in (
        lambda room: room.taken([AcceptedConnection(10**6, 0, 1, "")]),
        lambda room: room.doubt(OSError(errno.EMFILE, "")),
        lambda room: setattr(room, "_sure_until", 0.0),
    ):
        room = room_of(loop)
        assert room.is_there()
        highest = os.dup(1)
        os.close(highest)
        with limit_above(highest, 0):
            assert room.is_there()  # believed
            doubt(room)
            assert not room.is_there()


def test_descriptors_of_connections_are_no_leak(loop: EventLoop) -> None:
    """They come back."""
    connections = 0
    room = room_of(loop, lambda: connections)
    assert room.is_there()
    with limit_above(opened(), 5):
        room._allowance = 0
        connections = 100
        assert not room.is_there()
        assert not room.is_leaking()
        connections = 3
        assert room.is_leaking()


def test_after_a_loss_it_leaks(loop: EventLoop) -> None:
    room = room_of(loop, lambda: 1000)
    assert room.is_there()
    room.taken([AcceptedConnection(10, 0, 1, ""), AcceptedConnection(LOST, 0, 2, "")])
    assert room.lost == 1
    assert room.is_leaking()
