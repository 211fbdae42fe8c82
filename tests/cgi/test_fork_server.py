"""The worker's side of a warm interpreter, in process: a helper of the test's own says what it likes."""

from __future__ import annotations

import array
import os
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import pytest
from poolsrv_cgi.warm.child import WarmChild
from poolsrv_cgi.warm.fork_server import ForkServer

from poolsrv import Worker


class Handle:
    """A timer or a watch that a worker has given out."""

    def cancel(self) -> None:
        """Nothing is left to be done."""


class Process:
    """A process that never was."""

    pid = 1 << 30

    def kill(self) -> None:
        """Nothing is there to be killed."""


class OneHelper:
    """What the fork server uses of a worker, and the helper's end of its socket."""

    def spawn(self, argv: list[str], *, env: dict[str, str], stdin: int) -> Process:
        """Keep the end that the helper would have."""
        self.control = socket.socket(fileno=os.dup(stdin))
        return Process()

    def every(self, seconds: float, callback: Callable[[], object]) -> Handle:
        """No time passes."""
        return Handle()

    def add_reader(self, fd: int, callback: Callable[[], object]) -> Handle:
        """Keep what is to be called once there are messages."""
        self.read = callback
        return Handle()

    def fork(self, *pids: int) -> list[socket.socket]:
        """Say that these children wait for a request; their ends of the sockets."""
        pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in pids]
        sockets = array.array("i", [theirs.fileno() for _, theirs in pairs])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, sockets)]
        self.control.sendmsg([b"\0".join([b"forked", *(b"%d" % pid for pid in pids)])], rights)
        for _, theirs in pairs:
            theirs.close()
        return [ours for ours, _ in pairs]


class Request:
    """What the fork server uses of a request's child."""

    def __init__(self) -> None:
        self.pid = 0
        self.outcome = ""
        self.descriptors = (0, 0, 0)

    def started(self, pid: int) -> None:
        """It runs."""
        self.pid = pid

    def not_started(self) -> None:
        """It is to be started cold."""
        self.outcome = "cold"

    def adopt(self) -> None:
        """It runs on, without the helper."""
        self.outcome = "runs on"


@pytest.fixture(name="helper")
def _helper() -> Iterator[OneHelper]:
    helper = OneHelper()
    yield helper
    helper.control.close()


@pytest.fixture(name="ends")
def _ends() -> list[ForkServer]:
    return []


@pytest.fixture(name="fork_server")
def _fork_server(helper: OneHelper, ends: list[ForkServer]) -> Iterator[ForkServer]:
    fork_server = ForkServer(cast(Worker, helper), ("python3",), (), {}, ends.append)
    helper.control.send(b"ready\x004")
    helper.read()
    yield fork_server
    fork_server.close()


def run(fork_server: ForkServer) -> Request:
    """Give the fork server a request."""
    request = Request()
    assert fork_server.run(cast(WarmChild, cast(Any, request)), lambda number: b"request %d" % number)
    return request


@contextmanager
def _room_for(count: int) -> Iterator[None]:
    """Room for so many more descriptors."""
    lowest = os.dup(0)
    os.close(lowest)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0) for _ in range(count)]
    highest = max(taken, default=lowest - 1)
    for fd in taken:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("wrong", [b"nonsense", b"forked\x007", b"pid\x00999\x007"])
def test_what_is_said_beside_a_malformed_message_counts(
    helper: OneHelper, fork_server: ForkServer, ends: list[ForkServer], wrong: bytes
) -> None:
    """A script that has said that it runs is not started a second time, although the helper is ended."""
    requests = [run(fork_server) for _ in range(3)]
    children = helper.fork(101, 102, 103)
    helper.read()
    helper.control.send(b"pid\x001\x00101")
    helper.control.send(wrong)
    helper.control.send(b"pid\x002\x00102")
    helper.read()
    assert ends == [fork_server]
    assert [(request.pid, request.outcome) for request in requests] == [(101, "runs on"), (102, "runs on"), (0, "cold")]
    for child in children:
        child.close()


def test_malformed_messages_while_it_ends(helper: OneHelper, fork_server: ForkServer) -> None:
    """What comes after them is still read."""
    request = run(fork_server)
    (child,) = helper.fork(101)
    helper.read()
    helper.control.send(b"nonsense")
    helper.control.send(b"pid\x001\x00101")
    fork_server.close()
    assert (request.pid, request.outcome) == (101, "runs on")
    child.close()


@pytest.mark.parametrize("room", [0, 1, 2])
def test_no_descriptors_for_its_children(
    helper: OneHelper, fork_server: ForkServer, ends: list[ForkServer], room: int
) -> None:
    """A worker that has no descriptors left uses the children whose sockets it got, and starts the others cold."""
    requests = [run(fork_server) for _ in range(3)]
    children = helper.fork(101, 102, 103)
    with _room_for(room):
        helper.read()
    assert [request.outcome for request in requests] == [""] * room + ["cold"] * (3 - room)
    for number, child in enumerate(children):
        assert child.recv(99) == (b"request %d" % (number + 1) if number < room else b"")  # its socket is closed
        child.close()
    assert not ends
    helper.control.send(b"pong")
    helper.read()
    assert not ends
