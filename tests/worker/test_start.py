"""What a worker does from its fork until it rests: little, since each page of memory that it writes to is its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poolsrv.ipc.told_once import ToldOnce
from poolsrv.testing.loading import load
from poolsrv.worker.hooks import log_fault
from poolsrv.worker.process import WorkerProcess
from tests.helpers.kinds import is_compiled
from tests.helpers.plugins import ask, listener, served
from tools.compiled import FILES

# Functions of poolsrv, each counted once; there are 63. If more are needed, see whether the dispatcher can do what is
# new: once for all workers, before it forks (WorkerProcess.__init__).
MOST_FUNCTIONS = 65

MODULE = '''
import poolsrv

FOLDER = os.path.dirname(poolsrv.__file__) + os.sep
ran = []


def watch():
    """Note the functions of the engine that run in a worker, until it waits for the first time."""
    def note(frame, event, argument):
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(FOLDER):
            name = f"{code.co_filename[len(FOLDER):]}:{code.co_qualname}"
            if name not in ran:
                ran.append(name)
            if code.co_name == "wait":
                sys.setprofile(None)

    sys.setprofile(note)


os.register_at_fork(after_in_child=watch)


class Lists:
    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        conn.send(" ".join(ran).encode() + b"\\n")
'''


@pytest.mark.server
def test_few_functions_run_until_a_worker_rests(tmp_path: Path) -> None:
    with served(tmp_path, MODULE, listener("lists")) as server, server.connect("lists") as client:
        ran = ask(client, b"?\n").decode().split()
    assert "worker/process.py:WorkerProcess.run" in ran  # it has been watched
    if is_compiled:  # a profile function sees no compiled call, and so not the wait either
        assert not {f"poolsrv/{name.partition(':')[0]}" for name in ran} & set(FILES)
        return
    assert ran[-1] == "core/event_loop.py:EventLoop.wait"
    assert len(ran) <= MOST_FUNCTIONS, "\n".join(ran)


def test_a_worker_that_has_only_been_made_is_not_noticed() -> None:
    """The dispatcher has one: its own calls of plugins, for workers that have ended, are not counted as a worker's."""
    server = load("echo", None)
    told = ToldOnce()
    try:
        before = os.listdir("/proc/self/fd")
        worker = WorkerProcess(server, told, asks=True)
        assert os.listdir("/proc/self/fd") == before
    finally:
        os.close(told._fd)
    assert server.listeners[0].hooks.fault_handler is log_fault
    assert not any(service.connections for service in worker._services)
