"""A pool that has no descriptors for its start, or for the sockets that stand."""

from __future__ import annotations

import array
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from poolsrv.dispatcher.__main__ import _receive_start
from poolsrv.errors import StartError
from poolsrv.ipc.pool_link import PoolLink


@contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_it_says_so_and_does_not_crash() -> None:
    supervisor, pool = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with supervisor, pool, open(os.devnull) as null:
        several = array.array("i", [null.fileno()] * 8)
        supervisor.sendmsg([b'{"kind": "start"}'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, several)])
        link = PoolLink(pool)
        with descriptors_left(2), pytest.raises(StartError, match=r"sockets can't be taken over: .* no room"):
            _receive_start(link)


FAILS = """
import errno, os, sys
from poolsrv.dispatcher import __main__

def serve(link, hang_file):
    if in_worker and (worker := os.fork()):
        os.waitpid(worker, 0)
        return 0
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

in_worker = sys.argv.pop() == "worker"
__main__._serve = serve
__main__.main()
"""


@pytest.mark.parametrize("where", ["pool", "worker"])
def test_a_pool_for_which_there_is_no_room_says_so_and_a_worker_does_not_speak_for_it(where: str) -> None:
    supervisor, pool = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with supervisor:
        with pool:
            command = [sys.executable, "-c", FAILS, str(pool.fileno()), where]
            done = subprocess.run(command, pass_fds=[pool.fileno()], capture_output=True, text=True, timeout=60)
        said = supervisor.recv(4096)
    if where == "pool":
        assert (done.returncode, done.stderr) == (1, "")
        assert b"can't start the pool: Too many open files" in said
    else:
        assert done.returncode == 0
        assert done.stderr == "can't start: Too many open files\n"  # the log, which is not set up here
        assert said == b""
