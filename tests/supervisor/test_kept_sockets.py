"""Sockets that a service manager keeps: a server is stopped and started, and no client is refused."""

from __future__ import annotations

import itertools
import socket
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import pytest

from tests.helpers.server import TIMEOUT, ServerProcess, receive_all, wait_until

pytestmark = pytest.mark.server

CLIENTS: Final = 6
PAUSE: Final = 0.005  # seconds between the connections of a client

# Takes the place of the service manager's child: it gets the socket, and becomes the server.
RECEIVE = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as manager:
    manager.connect(sys.argv[1])
    (descriptor,) = socket.recv_fds(manager, 1, 1)[1]
if descriptor != 3:
    os.dup2(descriptor, 3)
    os.close(descriptor)
os.set_inheritable(3, True)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="hello")
os.execv(sys.argv[2], sys.argv[2:])
"""


class Manager:
    """Keeps a listening socket, and passes it to each server that it starts, as systemd does with a socket unit."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._open = ExitStack()
        self._socket = self._open.enter_context(socket.create_server(("127.0.0.1", 0), backlog=4096))
        self.address: tuple[str, int] = self._socket.getsockname()

    def start(self, config: str) -> ServerProcess:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        path = str(folder / "manager")
        with socket.socket(socket.AF_UNIX) as door:
            door.bind(path)
            door.listen()
            door.settimeout(TIMEOUT)
            server = ServerProcess(config, folder, prefix=(sys.executable, "-c", RECEIVE, path))
            self._open.enter_context(server)
            with door.accept()[0] as child:
                socket.send_fds(child, [b"x"], [self._socket.fileno()])
        return server.wait_ready()

    def close(self) -> None:
        self._open.close()


class Connects:
    """Clients that connect, send a line, finish sending and read the answer, again and again, each in a thread.

    :ivar outcomes: how often each has come: ``"answered"``, or the name of an error.
    """

    def __init__(self, address: tuple[str, int]) -> None:
        self.outcomes: Counter[str] = Counter()
        self._address = address
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _run(self) -> None:
        while not self._stop.wait(PAUSE):
            outcome = self._once()
            with self._lock:
                self.outcomes[outcome] += 1

    def _once(self) -> str:
        try:
            with socket.create_connection(self._address, TIMEOUT) as sock:
                sock.sendall(b"hello\n")
                sock.shutdown(socket.SHUT_WR)
                return "answered" if receive_all(sock) == b"hello\n" else "cut short"
        except OSError as error:
            return type(error).__name__

    def wait_for_more(self) -> None:
        """Wait until each client has had another answer, one way or the other."""
        before = self.outcomes.total()
        wait_until(lambda: self.outcomes.total() >= before + 2 * CLIENTS, "more connections")

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT)


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with closing(Manager(tmp_path)) as manager:
        yield manager


@pytest.mark.parametrize("dispatch", ["round-robin", "kernel"])
def test_no_client_is_refused_while_the_server_is_stopped_and_started(manager: Manager, dispatch: str) -> None:
    pool = f'[pool]\nworkers = 2\ndispatch = "{dispatch}"\n'
    config = pool + '[listeners.hello]\nbind = "systemd:hello"\nhandler = "echo"\n'
    server = manager.start(config)
    with closing(Connects(manager.address)) as clients:
        for _ in range(2):
            clients.wait_for_more()
            assert server.stop() == 0
            # All clients wait in the queue of the socket now, or are about to.
            server = manager.start(config)
        clients.wait_for_more()
    assert clients.outcomes.keys() == {"answered"}
