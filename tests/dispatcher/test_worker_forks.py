"""Workers that are forked together: one that can't be forked does not keep the others from serving."""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
from functools import partial
from pathlib import Path

import pytest

from poolsrv.config.model import APART
from poolsrv.core import forked_copies
from poolsrv.dispatcher.worker_forks import WorkerFork, close_others, fork_all
from poolsrv.dispatcher.worker_slot import WorkerSlot
from tests.helpers.plugins import ask, listener, served
from tests.helpers.server import wait_until

MODULE = '''
from poolsrv.core import forked_copies

fork, calls = forked_copies.fork, []


def fork_some():
    """Refuse the second one."""
    calls.append(1)
    if len(calls) == 2:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return fork()


forked_copies.fork = fork_some


class Who:
    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        conn.send(b"%d %d\\n" % (conn.worker.slot, len(os.listdir("/proc/self/fd"))))
'''


@pytest.mark.server
def test_one_that_can_not_be_forked_is_forked_later(tmp_path: Path) -> None:
    with served(tmp_path, MODULE, listener("who"), pool="workers = 3") as server:
        counts: dict[int, int] = {}

        def have_all_answered() -> bool:
            with server.connect("who") as client:
                slot, descriptors = map(int, ask(client, b"?\n").split())
                counts.setdefault(slot, descriptors)
            return len(counts) == 3

        wait_until(have_all_answered, "each worker has served a client")
        assert "can't fork worker 1: Resource temporarily unavailable" in server.log
        assert "worker 1 could not start: next try in " in server.log
    assert counts.keys() == {0, 1, 2}
    assert len(set(counts.values())) == 1  # none has another one's descriptors


@pytest.mark.server
def test_with_few_descriptors_left_a_worker_is_forked_or_not_but_does_not_fail(tmp_path: Path) -> None:
    """What it has is made before it is forked, or is what the dispatcher has had for it: it makes no copies."""
    pool = 'workers = 2\ndispatch = "kernel"'
    bind = '["127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"]'
    with served(tmp_path, MODULE, listener("who").replace('"127.0.0.1:0"', bind), pool=pool) as server:
        before = resource.prlimit(server.dispatcher_pid, resource.RLIMIT_NOFILE)
        used = len(os.listdir(f"/proc/{server.dispatcher_pid}/fd"))

        def is_tried(before: int) -> bool:
            return server.log.count(" serves") + server.log.count("can't fork") > before

        def is_whole(served: int) -> bool:
            return server.log.count(" serves") == served

        for free in range(7):
            tries = server.log.count(" serves") + server.log.count("can't fork")
            resource.prlimit(server.dispatcher_pid, resource.RLIMIT_NOFILE, (used + free, before[1]))
            os.kill(server.worker_pids()[0], signal.SIGKILL)
            wait_until(partial(is_tried, tries), "a try")
            resource.prlimit(server.dispatcher_pid, resource.RLIMIT_NOFILE, before)
            wait_until(partial(is_whole, free + 3), "a whole pool")
        assert "can't fork worker" in server.log  # with none free
        assert "Traceback" not in server.log
        assert "exited" not in server.log


def test_a_child_closes_what_others_have(monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair()
    forks = [WorkerFork(WorkerSlot(index, 1), False, lambda: theirs) for index in (0, 1, APART)]
    pids = iter([101, None, 0])

    def fork() -> int:
        pid = next(pids)
        if pid is None:
            raise OSError(errno.EAGAIN, "no")
        return pid

    monkeypatch.setattr(forked_copies, "fork", fork)
    assert fork_all(forks) is forks[2]
    assert [one.pid for one in forks] == [101, -1, 0]
    assert [one.error is not None for one in forks] == [False, True, False]
    close_others(forks, forks[2])
    assert forks[2].questions is theirs
    assert theirs.fileno() >= 0
    assert len(os.listdir("/proc/self/fd")) == before + 5
    forks[2].close()
    ours.close()
    assert len(os.listdir("/proc/self/fd")) == before
