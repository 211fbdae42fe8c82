"""What a worker makes of a launcher that breaks the protocol: its user's programs may have got hold of it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from poolsrv.core import logs
from poolsrv.core.event_loop import EventLoop
from poolsrv.ipc.pool_link import PoolLink
from poolsrv.net.programs import Child, Reaper
from poolsrv.worker.launched_programs import LaunchedPrograms


class Fake:
    """A spawner and its launcher; and the worker's programs."""

    def __init__(self) -> None:
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._theirs.settimeout(20)
        self.loop = EventLoop()
        self.spawner = PoolLink(ours)
        self.programs = LaunchedPrograms(Reaper(self.loop), self.loop, self.spawner, "www")
        self.ended: list[Child] = []

    def launch(self) -> PoolLink:
        self.programs.open()
        return self.launcher()

    def launcher(self) -> PoolLink:
        """The launcher's end, once the worker has asked for one."""
        message = PoolLink(self._theirs).receive()
        assert message is not None
        return PoolLink(socket.socket(fileno=message.fds[0]))

    def spawn(self) -> Child:
        return self.programs.spawn(
            ["/bin/true"], env=None, cwd=None, sources=[None] * 3, limits=None, sandbox=None,
            owner=None, on_exit=self.ended.append,  # type: ignore[arg-type]
        )  # fmt: skip

    def close(self) -> None:
        logs.followers.clear()
        self.programs.close_inherited()
        self.spawner.close()
        self._theirs.close()
        self.loop.close()


@pytest.fixture
def fake() -> Iterator[Fake]:
    fake = Fake()
    yield fake
    fake.close()


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("started", {"pid": None}), ("started", {"pid": 2**31}), ("started", {}), ("started", {"pid": -5}),
        ("failed", {"errno": "x", "text": 1}), ("failed", {}), ("failed", {"errno": [], "text": ""}),
    ],
)  # fmt: skip
def test_an_answer_that_is_wrong_is_an_error(fake: Fake, kind: str, fields: dict[str, Any]) -> None:
    launcher = fake.launch()
    launcher.send(kind, **fields)
    with pytest.raises(OSError, match="launcher has been lost"):
        fake.spawn()
    assert not fake.programs.running
    fake.loop.turn(0)
    launcher.close()


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"pid": None}, {"pid": 7}, {"pid": 7, "status": 0}, {"pid": 7, "status": 2**200, "usage": None},
        {"pid": 7, "status": 0, "usage": [1]}, {"pid": 7, "status": 0, "usage": [1.0] * 16},
        {"pid": 7, "status": 0, "usage": "x" * 16}, {"pid": 7, "status": 0, "usage": ["x"] * 16},
        {"pid": 7, "status": "x", "usage": None},
    ],
)  # fmt: skip
def test_an_end_that_is_wrong_ends_all_its_programs(fake: Fake, fields: dict[str, Any]) -> None:
    """As the end of the launcher does. The worker goes on, and keeps no descriptor that has come with it."""
    launcher = fake.launch()
    launcher.send("started", pid=7)
    child = fake.spawn()
    before = len(os.listdir("/proc/self/fd"))
    launcher.send("ended", [0, 1, 2], **fields)
    fake.loop.turn(0)
    fake.loop.turn(0)
    assert fake.ended == [child]
    assert type(child.returncode) is int
    assert child.cpu is None or type(child.cpu) is float
    assert len(os.listdir("/proc/self/fd")) <= before
    launcher.close()


def test_one_that_is_slowed_down(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    """A program of its user can do that. The worker does not wait for its answer, as long as that may be."""
    launcher = fake.launch()
    pid = os.fork()
    if pid == 0:
        try:
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            launcher.send("ready")
            signal.pause()
        finally:
            os._exit(1)
    try:
        with pytest.raises(OSError, match="launcher has been lost"):
            fake.spawn()
        assert "www: the launcher of its programs has been slowed down" in caplog.text
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    fake.loop.turn(0)
    launcher.close()


def test_one_that_has_been_changed(fake: Fake, caplog: pytest.LogCaptureFixture) -> None:
    """What it has started ends with it. The program is started by the next one, and runs on."""
    launcher = fake.launch()
    launcher.send("started", pid=7)
    first = fake.spawn()
    launcher.send("changed", what="share of the CPUs")
    others: list[PoolLink] = []

    def serve() -> None:
        others.append(fake.launcher())
        others[0].send("started", pid=8)

    with ThreadPoolExecutor(1) as pool:
        served = pool.submit(serve)
        second = fake.spawn()
        served.result()
    assert "www: the launcher of its programs has had its share of the CPUs changed by another process" in caplog.text
    fake.loop.turn(0)
    assert (fake.ended, first.returncode, second.pid) == ([first], -signal.SIGKILL, 8)
    others[0].send("ended", pid=8, status=3, usage=None)
    fake.loop.turn(0)
    assert second.returncode == 3
    for link in (launcher, *others):
        link.close()


def test_a_number_that_is_used_again(fake: Fake) -> None:
    """The end of the first program has come before the start of the second. Two at a time are wrong."""
    launcher = fake.launch()
    launcher.send("started", pid=7)
    first = fake.spawn()
    launcher.send("ended", pid=7, status=3, usage=None)
    launcher.send("started", pid=7)
    second = fake.spawn()
    fake.loop.turn(0)
    assert (fake.ended, first.returncode, second.returncode) == ([first], 3, None)
    launcher.send("started", pid=7)
    with pytest.raises(OSError, match="launcher has been lost"):
        fake.spawn()
    fake.loop.turn(0)
    assert fake.ended == [first, second]
    launcher.close()
