"""A plugin has taken all descriptors of its worker: what is under way ends as it should, and the worker lives on."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.plugins import reset
from tests.helpers.server import ServerProcess, receive_all, receive_exactly, receive_line
from tests.worker.test_worker import plugin

Serve = Callable[..., ServerProcess]

HOG = """
    held = []

    @hookimpl
    def on_worker_start(self, worker):
        self.worker = worker

    @hookimpl
    def on_readable(self, conn):
        if conn.listener != "hog":
            return
        line = conn.recv_line()
        if line == b"take\\n":
            self.take()
        elif line == b"give\\n":
            while self.held:
                os.close(self.held.pop())
        elif line == b"thread\\n":
            self.worker.run_blocking(os.getpid, done=lambda future: conn.send(b"%d\\n" % future.result()))
            return
        if line:
            conn.send(b"%d\\n" % os.getpid())

    def take(self):
        try:
            while True:
                self.held.append(os.open(os.devnull, os.O_RDONLY))
        except OSError:
            pass

    @hookimpl
    def on_child_exit(self, child, conn):
        if self.held:
            self.take()  # what has become free by the program's end too
"""
CONFIG = """
[pool]
workers = 1
[limits]
open_files = 256
[listeners.hog]
bind = "127.0.0.1:0"
handler = "hog"
[listeners.cat]
bind = "127.0.0.1:0"
handler = "cgi"
plugins = ["hog"]
[listeners.cat.cgi]
protocol = "inetd"
program = ["cat"]
"""


def tell(sock: socket.socket, line: bytes) -> int:
    sock.sendall(line)
    return int(receive_line(sock))


@pytest.mark.server
def test_programs_end_and_the_worker_serves_on(serve: Serve, tmp_path: Path) -> None:
    server = serve(CONFIG, paths=(plugin(tmp_path, HOG, "hog"),))
    with server.connect("hog") as hog, server.connect("cat") as ends, server.connect("cat") as resets:
        for sock in (ends, resets):
            sock.sendall(b"x")
            assert receive_exactly(sock, 1) == b"x"
        pid = tell(hog, b"take\n")
        ends.shutdown(socket.SHUT_WR)
        assert receive_all(ends) == b""
        reset(resets)
        assert tell(hog, b"give\n") == pid
        with server.connect("cat") as sock:
            sock.sendall(b"y")
            assert receive_exactly(sock, 1) == b"y"
        assert tell(hog, b"?\n") == pid
    assert server.stop() == 0
    assert "failed" not in server.log


def test_the_reserve_is_there_again_after_each_look() -> None:
    """In a process of its own, for a reserve is kept to the end of the process."""
    code = """
import errno, os, resource, subprocess, sys
from poolsrv.core import procfs, reserve
child = subprocess.Popen(["sleep", "60"])
reserve.keep()
lowest = os.dup(0)
os.close(lowest)
resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, lowest))
for _ in range(3):
    assert procfs.children_of_this_process() == {child.pid}
    assert procfs.is_alive(child.pid)
try:
    os.dup(0)
except OSError as error:
    assert error.errno == errno.EMFILE
else:
    sys.exit("there were descriptors left")
child.kill()
child.wait()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.server
def test_the_first_call_in_a_thread(serve: Serve, tmp_path: Path) -> None:
    """It must not have to import anything, for which files would have to be opened."""
    server = serve(CONFIG, paths=(plugin(tmp_path, HOG, "hog"),))
    with server.connect("hog") as hog:
        pid = tell(hog, b"take\n")
        assert tell(hog, b"thread\n") == pid
