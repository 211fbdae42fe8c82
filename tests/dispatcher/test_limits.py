"""Limits over the pool and per source: refusing, waiting, counting, the log, and the end of it."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.plugins import ask, listener, served
from tests.helpers.server import ServerProcess, assert_rests, open_descriptors, wait_until

pytestmark = pytest.mark.server

HERE, ELSEWHERE = "127.0.0.1", "127.0.0.2"  # as the sources of connections; all of 127/8 is this machine

REFUSED: Counter[str] = Counter()  # by this file's tests, by listener

PLUGINS = """
class Puppet(Tells):
    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            conn.send(b"%d\\n" % os.getpid())
"""
MIXED = """
[listeners.mixed]
bind = ["127.0.0.1:0", "unix:mixed.sock"]
handler = "ping"
allow = ["127.0.0.0/8"]
deny = ["127.0.0.2", "127.1.0.0/16"]
max_per_source = 2

[listeners.closed]
bind = ["[::1]:0", "127.0.0.1:0"]
handler = "ping"
allow = ["192.0.2.0/24", "127.0.0.2"]
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with served(
        tmp_path_factory.mktemp("limits"),
        PLUGINS,
        listener("ping"),
        listener("full", "ping", max_connections=2, when_full="refuse"),
        listener("waits", "ping", max_connections=2),
        listener("fast", "ping", connection_rate=4, connection_rate_burst=3, when_full="refuse"),
        listener("paced", "ping", connection_rate=10, connection_rate_burst=2),
        listener("source", "puppet", max_per_source=3),
        listener("pace", "ping", rate_per_source=2, rate_per_source_burst=2),
        listener("flood", "ping", deny=["127.0.0.0/8"]),
        MIXED,
        pool="workers = 2",
    ) as running:
        yield running


class Clients:
    """Connections of this test, closed at its end."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._open: list[socket.socket] = []

    def connect(self, name: str, source: str = HERE, address: int = 0) -> socket.socket:
        """Connect from one of this machine's addresses; the connection may be refused later."""
        host, _, port = self._server.addresses(name)[address].rpartition(":")
        if host == "[::1]":
            sock = socket.create_connection(("::1", int(port)), 30)
        else:
            sock = socket.create_connection((host, int(port)), 30, (source, 0))
        self._open.append(sock)
        return sock

    def is_admitted(self, name: str, source: str = HERE, address: int = 0) -> socket.socket | None:
        """Return the connection if it is served; None if it is refused, which is a reset."""
        try:
            sock = self.connect(name, source, address)
            assert ask(sock, b"hello")
        except (ConnectionResetError, BrokenPipeError):
            REFUSED[name] += 1
            return None
        return sock

    def admitted(self, name: str, source: str = HERE) -> socket.socket:
        """Connect until a connection is served."""
        found: list[socket.socket] = []

        def tries() -> bool:
            sock = self.is_admitted(name, source)
            found.extend([sock] if sock is not None else [])
            return bool(found)

        wait_until(tries, "a connection that is admitted")
        return found[0]

    def close(self) -> None:
        for sock in self._open:
            sock.close()


@pytest.fixture
def clients(server: ServerProcess) -> Iterator[Clients]:
    made = Clients(server)
    yield made
    made.close()


# --- over the whole pool


def test_full_refuses_counts_and_admits_again(server: ServerProcess, clients: Clients) -> None:
    first, second = clients.admitted("full"), clients.admitted("full")
    for _ in range(5):
        assert clients.is_admitted("full") is None
    assert ask(first, b"x") == ask(second, b"x") == b"x"
    first.close()
    clients.admitted("full")


def test_full_makes_others_wait_and_admits_them_in_turn(server: ServerProcess, clients: Clients) -> None:
    after = len(server.lines)
    held = [clients.admitted("waits"), clients.admitted("waits")]
    waiting = [clients.connect("waits") for _ in range(3)]
    for sock in waiting:
        sock.sendall(b"hello\n")
    server.wait_for_line("waits: connections have to wait for max_connections = 2", after=after)
    for sock, other in zip([*held, waiting[0]], waiting, strict=True):
        sock.close()
        assert other.recv(100) == b"hello\n"
    assert "waits: refusing" not in server.log


def test_a_rate_refuses_counts_and_admits_again(server: ServerProcess, clients: Clients) -> None:
    began = time.monotonic()
    admitted = [clients.is_admitted("fast") for _ in range(100)]
    # No more than the bucket held and what came into it since.
    assert 3 <= len([sock for sock in admitted if sock]) <= 3 + 4 * (time.monotonic() - began) + 1
    clients.admitted("fast")


def test_a_rate_makes_others_wait_and_loses_none(server: ServerProcess, clients: Clients) -> None:
    after = len(server.lines)
    began = time.monotonic()
    waiting = [clients.connect("paced") for _ in range(8)]
    for sock in waiting:
        assert ask(sock, b"hello") == b"hello"
    assert time.monotonic() - began >= 0.5  # two at once, six at intervals of 0.1 seconds
    server.wait_for_line("paced: connections have to wait for connection_rate = 10", after=after)


# --- per source


def test_one_source_is_refused_and_others_are_not(server: ServerProcess, clients: Clients) -> None:
    held = [clients.admitted("source") for _ in range(3)]
    assert [clients.is_admitted("source") for _ in range(4)] == [None] * 4
    assert all(clients.is_admitted("source", ELSEWHERE) for _ in range(3))
    assert clients.is_admitted("source", ELSEWHERE) is None
    held[0].close()
    clients.admitted("source")


def test_what_a_dead_worker_had_no_longer_counts(server: ServerProcess, clients: Clients) -> None:
    after = len(server.lines)
    pids = {int(ask(clients.admitted("source", "127.0.0.3"), b"pid")) for _ in range(3)}
    assert clients.is_admitted("source", "127.0.0.3") is None
    victim = pids.pop()
    os.kill(victim, signal.SIGKILL)
    server.wait_for_line(rf"pid {victim}\) killed by SIGKILL", after=after)
    assert clients.is_admitted("source", "127.0.0.3")
    server.wait_for_line(r"\bserves$", after=after)


def test_one_source_is_too_fast_and_others_are_not(server: ServerProcess, clients: Clients) -> None:
    began = time.monotonic()
    admitted = [clients.is_admitted("pace") for _ in range(50)]
    assert 2 <= len([sock for sock in admitted if sock]) <= 2 + 2 * (time.monotonic() - began) + 1
    assert clients.is_admitted("pace", ELSEWHERE)
    clients.admitted("pace")


# --- allow and deny


def test_allow_and_deny(server: ServerProcess, clients: Clients) -> None:
    assert clients.is_admitted("mixed")
    assert clients.is_admitted("mixed", ELSEWHERE) is None
    assert clients.is_admitted("mixed", "127.1.2.3") is None
    assert clients.is_admitted("mixed", "127.2.2.3")
    assert clients.is_admitted("closed", address=1) is None
    assert clients.is_admitted("closed", ELSEWHERE, address=1)


def test_what_is_not_in_allow_is_refused_in_every_family(server: ServerProcess, clients: Clients) -> None:
    try:
        assert clients.is_admitted("closed", address=0) is None
    except OSError as error:
        pytest.skip(f"no IPv6 here: {error}")


def test_a_unix_client_has_no_address(server: ServerProcess) -> None:
    socks = []
    try:
        for _ in range(5):
            sock = socket.socket(socket.AF_UNIX)
            socks.append(sock)
            sock.settimeout(30)
            sock.connect(str(server.folder / "mixed.sock"))
            assert ask(sock, b"hello") == b"hello"
    finally:
        for sock in socks:
            sock.close()


def test_a_flood_of_refused_connections_leaves_nothing(server: ServerProcess, clients: Clients) -> None:
    """No descriptor, no worker, and two lines in the log."""
    (dispatcher,) = {os_parent(pid) for pid in server.worker_pids()}
    settled = len(open_descriptors(dispatcher))  # the most: earlier tests' may still be open
    after = len(server.lines)
    address = server.addresses("flood")[0].rpartition(":")
    for _ in range(2000):
        with pytest.raises(ConnectionResetError), socket.create_connection((address[0], int(address[2])), 30) as sock:
            sock.recv(1)
    REFUSED["flood"] += 2000
    wait_until(lambda: len(open_descriptors(dispatcher)) <= settled, "descriptors that are closed")
    assert not [line for line in server.lines[after:] if "flood #" in line]


def os_parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


# --- the log


def test_a_limit_event_is_logged_once_at_its_begin_and_once_at_its_end(server: ServerProcess, clients: Clients) -> None:
    after = len(server.lines)
    for name in ("full", "fast", "source", "pace", "flood"):
        wait_until(lambda name=name: clients.is_admitted(name) is None, "a refusal")  # type: ignore[misc]
    for _ in range(3):
        clients.connect("waits").sendall(b"hello\n")
    for _ in range(4):
        clients.connect("paced").sendall(b"hello\n")
    for name, words in (("waits", "max_connections = 2"), ("paced", "connection_rate = 10")):
        server.wait_for_line(f"{name}: connections have to wait for {words}")
    clients.close()
    for name, words in (("waits", "max_connections = 2"), ("paced", "connection_rate = 10")):
        server.wait_for_line(f"{name}: connections no longer have to wait for {words}", after=after)
    for name, words in (
        ("full", "max_connections = 2"),
        ("fast", "connection_rate = 4"),
        ("source", "max_per_source = 3"),
        ("pace", "rate_per_source = 2"),
        ("flood", "deny"),
    ):
        begin = rf"{name}: refusing connections for {words}, first that of 127.0.0.\d:\d+$"
        end = rf"{name}: no longer refusing connections for {words}: (\d+) (?:was|were) refused$"
        server.wait_for_line(end, after=after)
        told = [line for line in server.lines if f" {name}: " in line]
        assert [bool(re.search(pattern, line)) for line, pattern in zip(told, [begin, end] * 99, strict=False)] == [
            True
        ] * len(told)
        assert sum(int(match[1]) for line in told if (match := re.search(end, line))) == REFUSED[name]


# --- servers of their own


def test_the_dispatcher_rests_while_connections_wait_and_logs_the_end_of_it_at_the_stop(
    tmp_path: Path,
) -> None:
    with served(
        tmp_path,
        "",
        listener("slow", "ping", connection_rate=0.001),
        listener("denied", "ping", deny=["127.0.0.0/8"]),
    ) as server:
        clients = Clients(server)
        try:
            assert clients.is_admitted("slow")
            for _ in range(3):
                clients.connect("slow").sendall(b"hello\n")
            assert clients.is_admitted("denied") is None
            server.wait_for_line("slow: connections have to wait for connection_rate = 0.001")
            dispatcher = os_parent(server.worker_pids()[0])
            assert_rests(dispatcher)
        finally:
            clients.close()
        assert server.stop() == 0
        server.wait_for_line("slow: connections no longer have to wait for connection_rate = 0.001")
        server.wait_for_line("denied: no longer refusing connections for deny: 1 was refused")
