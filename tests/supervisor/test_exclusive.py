"""Exclusive listeners: one instance in the world, over reloads, deaths and failed starts."""

from __future__ import annotations

import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.distributions import install
from tests.helpers.plugins import ask, nothing_to_read
from tests.helpers.server import ServerProcess, process_state, receive_all, receive_line, wait_until
from tests.supervisor.test_older_supervisor import OlderSupervisor

pytestmark = pytest.mark.server

Serve = Callable[..., ServerProcess]

STORE = """
import fcntl
import os
import time

from poolsrv import hookimpl

VERSION = 1


class Store:
    # A second instance beside it can't have the lock, and can't start.
    exclusive = True
    defaults = {"idle_timeout": 0.0}

    @hookimpl
    def on_worker_start(self, worker):
        self.lock = os.open("lock", os.O_RDWR | os.O_CREAT, 0o600)
        fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        worker.spawn(["/bin/sleep", "1000"], stdin=self.lock)  # keeps the lock for as long as it runs
        if VERSION == 3:
            raise OSError("this version can't start")
        self.file = open("written", "a+")

    @hookimpl
    def on_worker_stop(self, worker):
        while os.path.exists("stick"):
            time.sleep(0.01)
        self.file.close()
        os.close(self.lock)

    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            command, *arguments = line.decode().split()
            if command == "add":
                self.file.write(arguments[0] + "\\n")
                self.file.flush()
            elif command == "stay":
                conn.state = command
            elif command == "draining":
                conn.send(f"{conn.draining}\\n".encode())
                continue
            conn.send(f"{VERSION} {os.getpid()}\\n".encode())
            if command == "done":
                conn.close()

    @hookimpl
    def on_drain(self, conn):
        if conn.state is None:
            conn.close()
"""
CONFIG = '[pool]\nworkers = {}\n{}[listeners.store]\nbind = "unix:store.sock"\nhandler = "store"\n'
ECHO = '[listeners.echo]\nbind = "unix:echo.sock"\nhandler = "echo"\n'
DRAINING = r"worker 0 \(pid \d+\) is exclusive, and another pool takes over: draining"


@pytest.fixture
def stores(tmp_path: Path) -> Path:
    """A folder for PYTHONPATH with the plugin ``store``, version 1."""
    install(tmp_path / "site", "poolsrv-store", {"store": "poolsrv_store:Store"}, STORE)
    return tmp_path / "site"


def install_version(stores: Path, version: int) -> None:
    (stores / "poolsrv_store.py").write_text(STORE.replace("VERSION = 1", f"VERSION = {version}"))


@contextmanager
def connected(server: ServerProcess, name: str = "store") -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(server.folder / f"{name}.sock"))
        yield sock


def version_and_pid(server: ServerProcess) -> tuple[int, int]:
    with connected(server) as sock:
        version, pid = ask(sock, b"pid").split()
    return int(version), int(pid)


def was_alone(server: ServerProcess) -> bool:
    return "BlockingIOError" not in server.log


def test_clients_wait_until_the_new_instance_can_start(serve: Serve, stores: Path) -> None:
    """Other listeners are served meanwhile."""
    server = serve(CONFIG.format(2, "") + ECHO, paths=(stores,))
    with connected(server) as old:
        before = ask(old, b"stay")
        install_version(stores, 2)
        server.signal(signal.SIGHUP)
        server.wait_for_line(DRAINING)
        with connected(server) as waiting, connected(server, "echo") as other:
            waiting.sendall(b"pid\n")
            assert ask(other, b"hello") == b"hello"
            assert nothing_to_read(waiting)
            assert ask(old, b"pid") == before
            assert ask(old, b"done") == before
            assert receive_line(waiting).startswith(b"2 ")
    server.wait_for_line(r"generation 2 \(pid \d+\) serves")
    assert was_alone(server)


@pytest.mark.long
def test_no_acknowledged_write_is_lost_over_20_reloads(serve: Serve, stores: Path) -> None:
    server = serve(CONFIG.format(1, ""), paths=(stores,))
    acknowledged: list[list[str]] = [[], []]
    ended = threading.Event()

    def write(number: int) -> None:
        count = 0
        while not ended.is_set():
            with connected(server) as sock:
                while not ended.wait(0.002):
                    count += 1
                    try:
                        sock.sendall(f"add {number}-{count}\n".encode())
                        if not receive_line(sock):
                            break  # it may have been written, and it may not
                    except (BrokenPipeError, ConnectionResetError):
                        break
                    acknowledged[number].append(f"{number}-{count}")

    writers = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for writer in writers:
        writer.start()
    try:
        for _ in range(20):
            server.reload()
            more = len(acknowledged[0]) + 1
            wait_until(partial(lambda more: len(acknowledged[0]) >= more, more), "a write after the reload")
    finally:
        ended.set()
        for writer in writers:
            writer.join()
    assert server.stop() == 0
    written = (server.folder / "written").read_text().split()
    assert len(written) == len(set(written))
    assert set(acknowledged[0] + acknowledged[1]) <= set(written)
    assert was_alone(server)
    assert "is closed" not in server.log  # no connection was accepted and then dropped


def test_if_the_new_one_can_t_start_the_old_code_does_again(serve: Serve, stores: Path) -> None:
    server = serve(CONFIG.format(1, "max_boot_failures = 2\n"), paths=(stores,))
    before = version_and_pid(server)
    install_version(stores, 3)
    server.signal(signal.SIGHUP)
    server.wait_for_line(DRAINING)
    version, pid = version_and_pid(server)
    assert version == 1
    assert pid != before[1]
    server.wait_for_line("this one starts its exclusive workers again")
    server.wait_for_line("the reload has failed")
    assert "worker 0 could not start 2 times in a row" in server.log
    install_version(stores, 2)
    server.reload()
    assert version_and_pid(server)[0] == 2
    assert was_alone(server)


def test_a_worker_is_replaced_once_it_has_ended(serve: Serve, stores: Path) -> None:
    server = serve(CONFIG.format(1, ""), paths=(stores,))
    with connected(server) as old:
        _, pid = map(int, ask(old, b"stay").split())
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: ask(old, b"draining") == b"True", "the signal")
        with connected(server) as waiting:
            waiting.sendall(b"pid\n")
            assert nothing_to_read(waiting)
            ask(old, b"done")
            assert int(receive_line(waiting).split()[1]) != pid
    _, pid = version_and_pid(server)
    os.kill(pid, signal.SIGKILL)
    assert version_and_pid(server)[1] != pid
    assert was_alone(server)


def test_a_worker_that_is_stuck_is_killed(serve: Serve, stores: Path) -> None:
    server = serve(CONFIG.format(1, "graceful_timeout = 0.1\n"), paths=(stores,))
    (server.folder / "stick").touch()
    install_version(stores, 2)
    server.reload()
    assert version_and_pid(server)[0] == 2
    server.wait_for_line(r"worker 0 \(pid \d+\) does not end: killing it")
    assert was_alone(server)
    (server.folder / "stick").unlink()


@pytest.mark.parametrize("which", ["old", "new"])
def test_a_dispatcher_that_dies_while_the_other_waits(serve: Serve, stores: Path, which: str) -> None:
    """What is left of it has ended before another instance starts."""
    server = serve(CONFIG.format(1, ""), paths=(stores,))
    install_version(stores, 2)
    with connected(server) as old:
        ask(old, b"stay")
        before = len(server.lines)
        server.signal(signal.SIGHUP)
        server.wait_for_line(DRAINING, after=before)
        candidate = next(pid for pid in pools_of(server) if pid != server.dispatcher_pid)
        os.kill(server.dispatcher_pid if which == "old" else candidate, signal.SIGKILL)
        if which == "new":
            server.wait_for_line("this one starts its exclusive workers again")
            assert ask(old, b"done").startswith(b"1 ")
        else:
            receive_all(old)
    assert version_and_pid(server)[0] == (2 if which == "old" else 1)
    assert was_alone(server)


def pools_of(server: ServerProcess) -> list[int]:
    text = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()
    return [int(pid) for pid in text.split() if process_state(int(pid)) != "Z"]


def test_hup_while_the_new_pool_waits_is_followed_by_another_reload(serve: Serve, stores: Path) -> None:
    server = serve(CONFIG.format(1, ""), paths=(stores,))
    with connected(server) as old:
        ask(old, b"stay")
        server.signal(signal.SIGHUP)
        server.wait_for_line(DRAINING)
        server.signal(signal.SIGHUP)
        server.wait_for_line("another reload follows")
        install_version(stores, 2)
        ask(old, b"done")
    server.wait_for_line(r"generation 3 \(pid \d+\) serves")
    assert version_and_pid(server)[0] == 2
    assert was_alone(server)


def test_term_while_the_new_pool_waits(serve: Serve, stores: Path) -> None:
    server = serve(CONFIG.format(1, ""), paths=(stores,))
    with connected(server) as old:
        ask(old, b"stay")
        server.signal(signal.SIGHUP)
        server.wait_for_line(DRAINING)
        server.signal(signal.SIGTERM)
        server.wait_for_line("SIGTERM: stopping")
        ask(old, b"done")
    assert server.wait() == 0
    assert was_alone(server)


def test_a_pool_that_is_told_to_end_from_outside_is_waited_for(serve: Serve, stores: Path) -> None:
    server = serve(CONFIG.format(1, ""), paths=(stores,))
    with connected(server) as old:
        ask(old, b"stay")
        install_version(stores, 2)
        os.kill(server.dispatcher_pid, signal.SIGTERM)
        server.wait_for_line("another one is started")
        wait_until(lambda: ask(old, b"draining") == b"True", "the signal")
        with connected(server) as waiting:
            waiting.sendall(b"pid\n")
            assert ask(old, b"done").startswith(b"1 ")
            assert receive_line(waiting).startswith(b"2 ")
    assert was_alone(server)


def test_a_listener_may_be_renamed_become_exclusive_and_go(serve: Serve, stores: Path) -> None:
    shared = CONFIG.format(2, "") + "exclusive = false\nworkers = 1\n"
    server = serve(shared, paths=(stores,))
    for text in (CONFIG.format(2, ""), CONFIG.format(2, "").replace("listeners.store", "listeners.other")):
        with connected(server) as old:
            ask(old, b"stay")
            server.file.write_text(text)
            before = len(server.lines)
            server.signal(signal.SIGHUP)
            server.wait_for_line(DRAINING, after=before)
            with connected(server) as waiting:
                waiting.sendall(b"pid\n")
                ask(old, b"done")
                assert receive_line(waiting)
            server.wait_for_line(r"reload: stopping", after=before)
    server.file.write_text(CONFIG.format(2, "").partition("[listeners")[0] + ECHO)
    server.reload()
    with connected(server, "echo") as sock:
        assert ask(sock, b"hello") == b"hello"
    assert was_alone(server)


def test_several_exclusive_listeners_share_a_worker(serve: Serve, tmp_path: Path) -> None:
    module = STORE.replace('"lock"', "self.name").replace('"written"', 'self.name + ".txt"')
    module = module.replace(
        "    @hookimpl\n",
        "    class Options(msgspec.Struct):\n        name: str\n\n"
        "    def __init__(self, options):\n        self.name = options.name\n\n    @hookimpl\n",
        1,
    )
    install(tmp_path / "site", "poolsrv-store", {"store": "poolsrv_store:Store"}, "import msgspec\n" + module)
    text = "[pool]\nworkers = 3\n" + "".join(
        f'[listeners.{name}]\nbind = "unix:{name}.sock"\nhandler = "store"\n[listeners.{name}.store]\nname = "{name}"\n'
        for name in ("one", "two")
    )
    server = serve(text + ECHO, paths=(tmp_path / "site",))
    pids = []
    for _ in range(2):
        for name in ("one", "two"):
            with connected(server, name) as sock:
                pids.append(ask(sock, b"pid"))
        server.reload()
    assert pids[0] == pids[1] != pids[2]
    assert pids[2] == pids[3]
    assert was_alone(server)
    server.signal(signal.SIGTTOU)
    server.wait_for_line("SIGTTOU: 2 workers")
    server.signal(signal.SIGTTOU)
    server.wait_for_line("no worker is removed: the listeners need 2")
    with connected(server, "echo") as sock:
        assert ask(sock, b"hello") == b"hello"


def test_a_supervisor_of_an_older_version_can_t_see_to_it(
    tmp_path: Path, stores: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(stores))
    config = tmp_path / "poolsrv.toml"
    config.write_text(CONFIG.format(1, ""))
    supervisor = OlderSupervisor(config, version=2)
    try:
        supervisor.start()
        failed = supervisor.receive_until("failed")
        assert re.fullmatch(
            r"listeners.store.exclusive: the supervisor, pid \d+, is of an older version, and knows no exclusive"
            r" listeners: restart the server",
            failed["lines"][0],
        )
        assert supervisor.end()[0] == 1
    finally:
        supervisor.close()
