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
    returncode = None

    def kill(self) -> None:
        """Nothing is there to be killed."""


class OneHelper:
    """What the fork server uses of a worker, and the helper's end of its socket."""

    def spawn(self, argv: list[str], *, env: dict[str, str], stdin: int) -> Process:
        """Keep the end that the helper would have."""
        self.control = socket.socket(fileno=os.dup(stdin))
        return Process()

    def every(self, seconds: float, callback: Callable[[], object]) -> Handle:
        """No time passes, unless a test calls this."""
        self.check = callback
        return Handle()

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Handle:
        """No time passes, unless a test calls this: it is about the helper's start."""
        self.late = callback
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
        self.withdraw: Callable[[], object]

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
    ready(helper)
    yield fork_server
    fork_server.close()


@pytest.fixture(name="starting")
def _starting(helper: OneHelper, ends: list[ForkServer]) -> Iterator[ForkServer]:
    """A fork server that is not ready yet."""
    fork_server = ForkServer(cast(Worker, helper), ("python3",), (), {}, ends.append)
    yield fork_server
    fork_server.close()


def ready(helper: OneHelper) -> None:
    """Say that the helper is ready."""
    helper.control.send(b"ready\x004")
    helper.read()


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


def outcomes(requests: list[Request]) -> list[str]:
    """What has become of them."""
    return [request.outcome for request in requests]


def test_requests_wait_for_a_helper_that_starts(helper: OneHelper, starting: ForkServer) -> None:
    """Then as many children are forked as they need, and those ahead; each gets one, in their order."""
    assert starting.can_run()
    requests = [run(starting) for _ in range(3)]
    ready(helper)
    assert helper.control.recv(99) == b"fork\x0011"
    children = helper.fork(101, 102, 103)
    helper.read()
    assert [child.recv(99) for child in children] == [b"request 1", b"request 2", b"request 3"]
    helper.late()
    helper.check()
    assert outcomes(requests) == ["", "", ""]
    for child in children:
        child.close()


def test_a_helper_that_starts_slowly(helper: OneHelper, starting: ForkServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests start cold, one at a time, the one first that has waited longest; in the end all do."""
    monkeypatch.setattr("poolsrv_cgi.warm.fork_server.PATIENCE", 1e9)
    requests = [run(starting) for _ in range(5)]
    helper.late()
    assert outcomes(requests) == ["cold", "", "", "", ""]
    starting.cold += 1  # as the pool counts it
    assert starting.can_run()
    starting.cold_ended()
    assert outcomes(requests) == ["cold", "cold", "", "", ""]
    helper.check()
    assert outcomes(requests) == ["cold", "cold", "", "", ""]
    monkeypatch.setattr("poolsrv_cgi.warm.fork_server.PATIENCE", 0.0)
    helper.check()
    assert outcomes(requests) == ["cold"] * 5
    assert not starting.can_run()
    ready(helper)
    assert starting.can_run()


def test_a_request_after_its_time_starts_cold_if_no_other_does(helper: OneHelper, starting: ForkServer) -> None:
    helper.late()
    assert not starting.can_run()
    starting.cold += 1
    assert starting.can_run()
    starting.cold_ended()
    assert not starting.can_run()


@pytest.mark.parametrize("says", [b"", b"failed\x000\x00decimal: ImportError", b"nonsense"])
def test_a_helper_that_ends_while_requests_wait(
    helper: OneHelper, starting: ForkServer, ends: list[ForkServer], says: bytes
) -> None:
    """All start cold at once, and once."""
    requests = [run(starting) for _ in range(3)]
    if says:
        helper.control.send(says)
    helper.control.shutdown(socket.SHUT_RDWR)
    helper.read()
    assert outcomes(requests) == ["cold"] * 3
    assert ends == [starting]
    assert not starting.children


@pytest.mark.parametrize("is_ready", [False, True])
def test_a_request_whose_client_leaves_while_it_waits(helper: OneHelper, starting: ForkServer, is_ready: bool) -> None:
    """No child gets it, and nothing of it is kept. What has a child already stays the child's."""
    if is_ready:
        ready(helper)
    requests = [run(starting) for _ in range(3)]
    requests[1].withdraw()
    assert outcomes(requests) == ["", "cold", ""]  # a child of the pool's would not even start, as it is to end
    if not is_ready:
        ready(helper)
    children = helper.fork(101, 102)
    helper.read()
    assert [child.recv(99) for child in children] == [b"request 1", b"request 3"]
    requests[0].withdraw()
    assert outcomes(requests) == ["", "cold", ""]
    assert len(starting.children) == 2
    for child in children:
        child.close()


def test_it_is_told_once_that_a_start_has_had_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is ready, late, or has ended, whichever comes first."""
    monkeypatch.setattr("poolsrv_cgi.warm.fork_server.PATIENCE", 0.0)

    def settle(*events: str) -> list[str]:
        told: list[str] = []
        other = OneHelper()
        fork_server = ForkServer(cast(Worker, other), ("python3",), (), {}, lambda _: None, lambda: told.append(event))
        for event in events:
            if event == "ready":
                ready(other)
            elif event == "late":
                other.check()
            else:
                other.control.close()
                other.read()
        fork_server.close()
        other.control.close()
        return told

    assert settle("ready", "late", "ended") == ["ready"]
    assert settle("late", "ready", "ended") == ["late"]
    assert settle("ended") == ["ended"]
