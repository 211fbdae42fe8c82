"""Hung workers: told from stopped ones, made to say where they hang, and replaced."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.plugins import listener, served
from tests.helpers.puppet import Client, config, connect_until
from tests.helpers.server import ServerProcess, process_state, wait_until

pytestmark = pytest.mark.server

Serve = Callable[..., ServerProcess]


def test_a_silent_worker_dumps_its_stack_is_killed_and_replaced(serve: Serve, site: Path, tmp_path: Path) -> None:
    server = serve(config("workers = 2\nhang_timeout = 0.5"), paths=(site,))
    with Client(server) as client:
        pid = int(client.ask("pid"))
        assert client.ask(f"block {tmp_path / 'never'}") == "blocks"
        assert client.answer() == ""
    file = site / "poolsrv_puppet.py"
    server.wait_for_line(
        rf"worker \d \(pid {pid}\) has been silent for \d+\.\d s, it hangs in plugin 'puppet' \(block, {file}:\d+\);"
        " killing it"
    )
    server.wait_for_line(rf"\(pid {pid}\) killed by SIGKILL, 1 connection is lost")
    server.wait_for_line("serves", count=3)
    assert server.stop() == 0


def test_an_idle_worker_is_not_silent(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 2\nhang_timeout = 0.4"), paths=(site,))
    workers = server.worker_pids()
    time.sleep(1.5)  # several times the timeout: nothing must happen
    assert server.worker_pids() == workers
    assert "silent" not in server.log


def test_a_stopped_worker_is_not_hung(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 2\nhang_timeout = 0.4"), paths=(site,))
    workers = server.worker_pids()
    os.kill(workers[0], signal.SIGSTOP)
    server.wait_for_line("has been stopped")
    time.sleep(1.5)  # as above
    os.kill(workers[0], signal.SIGCONT)
    server.wait_for_line("has been continued")
    with Client(server) as first, Client(server) as second:
        assert {int(first.ask("pid")), int(second.ask("pid"))} == set(workers)
    assert "silent" not in server.log


def test_after_all_were_stopped_no_worker_is_hung(serve: Serve, site: Path) -> None:
    """Ctrl-Z in a terminal, and ``fg`` later."""
    server = serve(config("workers = 2\nhang_timeout = 0.4"), paths=(site,))
    workers = server.worker_pids()
    everybody = [server.pid, server.dispatcher_pid, *workers]
    os.killpg(server.pid, signal.SIGSTOP)
    wait_until(lambda: {process_state(pid) for pid in everybody} == {"T"}, "processes that have stopped")
    time.sleep(1.0)  # more than the timeout
    os.kill(server.dispatcher_pid, signal.SIGCONT)
    # the dispatcher goes on first, and finds the workers long silent
    server.wait_for_line("has been stopped", count=2)
    time.sleep(0.6)
    os.killpg(server.pid, signal.SIGCONT)
    for pid in workers:
        connect_until(server, pid).close()
    assert "silent" not in server.log


def test_a_worker_that_was_slow_and_has_answered_is_not_killed(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1\nhang_timeout = 0.4"), paths=(site,))
    with Client(server) as client:
        pid = client.ask("pid")
        hang_file = find_hang_file(int(pid))
        for _ in range(3):
            # From when it is asked where it hangs it has half a second.
            assert client.ask(f"block_until_asked {hang_file}") == "asked"
            assert client.ask("pid") == pid
        time.sleep(0.6)
        assert client.ask("pid") == pid
    assert "killing" not in server.log


def find_hang_file(pid: int) -> str:
    for name in os.listdir(f"/proc/{pid}/fd"):
        path = f"/proc/{pid}/fd/{name}"
        if "poolsrv-hang" in os.readlink(path):
            return path
    raise AssertionError(f"{pid} has none")


# --- several plugins in one module

MODULE = """
def helper():
    while True:
        time.sleep(0.01)


class Base:
    @hookimpl
    def on_readable(self, conn):
        what = conn.recv_line()
        if what is not None:
            getattr(self, what.decode().strip())(conn)

    def loops(self, conn):
        while True:
            pass

    def computes(self, conn):
        sum(range(10**13))  # in C: no handler of Python's runs


class First(Base):
    pass


class Second(Base):
    pass


class Third:
    @hookimpl
    def on_connection_init(self, conn):
        self.helps(conn)

    def helps(self, conn):
        if conn.peer[1] % 2 < 2:
            helper()


class Fourth:
    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        conn.call_later(0.0, lambda: helper())


class Fifth:
    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        sum(range(10**13))
"""


def test_the_plugin_whose_hook_runs_is_named_among_those_of_one_module(tmp_path: Path) -> None:
    """Also where they inherit it from one class, where a function of the module runs, and in a callback."""
    names = ["first", "second", "third", "fourth", "fifth"]
    with served(
        tmp_path, MODULE, *(listener(name) for name in names), pool="workers = 1\nhang_timeout = 0.3"
    ) as server:
        for name, line, blamed in (
            ("first", b"loops", "'first'"),
            ("second", b"loops", "'second'"),
            ("third", b"", "'third'"),
            ("fourth", b"", "'fourth'"),
            ("fifth", b"", "'fifth'"),
            ("second", b"computes", "'first' or 'second'"),  # nothing tells
        ):
            after = len(server.lines)
            with server.connect(name) as sock:
                sock.sendall(line + b"\n")
                found = server.wait_for_line(r"it hangs in plugin (.*?) \(", after=after)
            assert found.group(1) == blamed
            server.wait_for_line(r"\(pid \d+\) serves", after=after)
