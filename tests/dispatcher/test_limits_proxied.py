"""Limits per source, allow and deny behind a proxy: they hold for the client that the proxy names."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.haproxy import HeaderProxy
from tests.helpers.plugins import ask, listener, served
from tests.helpers.server import TIMEOUT, ServerProcess, receive_all, receive_line, wait_until
from tests.worker.test_proxy_header import LOCAL, TRUSTED

pytestmark = pytest.mark.server

MODULE = """
class Puppet(Tells):
    @hookimpl
    def on_connection_init(self, conn):
        conn.log.info("here")
        conn.send(b"%d\\n" % os.getpid())

    @hookimpl
    def on_readable(self, conn):
        conn.send(conn.recv())

    @hookimpl
    def on_drain(self, conn):
        conn.close("drained")
"""
UNKNOWN = b"PROXY UNKNOWN\r\n"


def header(client: str) -> bytes:
    family = "TCP6" if ":" in client else "TCP4"
    server = "::1" if ":" in client else "198.51.100.1"
    return f"PROXY {family} {client} {server} 50000 443\r\n".encode()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with served(
        tmp_path_factory.mktemp("proxied"),
        MODULE,
        listener("source", "puppet", max_per_source=2, proxy_header_timeout=60.0, **TRUSTED),
        listener("pace", "puppet", rate_per_source=0.001, rate_per_source_burst=2, **TRUSTED),
        listener("access", "puppet", allow=["192.0.2.0/24", "2001:db8::/32"], deny=["192.0.2.7"], **TRUSTED),
        listener("behind", "puppet", max_per_source=3, deny=["127.0.0.7"], **TRUSTED),
        listener("local", "puppet", bind="unix:local.sock", proxy_protocol=True, max_per_source=1),
        pool="workers = 3\ngraceful_timeout = 60.0",
    ) as running:
        yield running


class Clients:
    """Connections of this test, closed at its end."""

    def __init__(self, server: ServerProcess) -> None:
        self._server = server
        self._open: list[socket.socket] = []

    def connect(self, name: str, first: bytes) -> socket.socket:
        sock = self._server.connect(name)
        self._open.append(sock)
        sock.sendall(first)
        return sock

    def is_admitted(self, name: str, first: bytes) -> int:
        """Return the worker's pid; 0 if the connection is refused, with a reset. Unix sockets have no resets."""
        try:
            line = receive_line(self.connect(name, first))
            return 0 if name == "local" and not line else int(line)
        except (ConnectionResetError, BrokenPipeError):
            return 0

    def close(self) -> None:
        for sock in self._open:
            sock.close()
        self._open.clear()


@pytest.fixture
def clients(server: ServerProcess) -> Iterator[Clients]:
    made = Clients(server)
    yield made
    made.close()


def test_a_clients_connections_are_counted_over_all_workers(server: ServerProcess, clients: Clients) -> None:
    after = len(server.lines)
    one = header("203.0.113.1")
    pids = [clients.is_admitted("source", one) for _ in range(2)]
    assert len(set(pids)) == 2
    assert [clients.is_admitted("source", one) for _ in range(3)] == [0, 0, 0]
    # No plugin was called for these, and others are not affected.
    server.wait_for_line("203.0.113.1:50000: here", count=2, after=after)
    assert len([line for line in server.lines[after:] if line.endswith("203.0.113.1:50000: here")]) == 2
    assert clients.is_admitted("source", header("203.0.113.2"))
    clients.close()
    wait_until(lambda: clients.is_admitted("source", one), "a place")
    server.wait_for_line(r"source: refusing connections for max_per_source = 2, first that of 203.0.113.1:50000")


def test_an_ipv6_network_is_one_client(clients: Clients) -> None:
    assert clients.is_admitted("source", header("2001:db8::1"))
    assert clients.is_admitted("source", header("2001:db8::2"))
    assert not clients.is_admitted("source", header("2001:db8::3"))
    assert clients.is_admitted("source", header("2001:db8:0:1::3"))


def test_a_client_is_too_fast(clients: Clients) -> None:
    assert [bool(clients.is_admitted("pace", header("203.0.113.3"))) for _ in range(4)] == [True, True, False, False]
    assert clients.is_admitted("pace", header("203.0.113.4"))


@pytest.mark.parametrize(
    ("client", "admitted"),
    [("192.0.2.1", True), ("192.0.2.7", False), ("198.51.100.9", False), ("2001:db8::7", True), ("2001:db9::7", False)],
)
def test_allow_and_deny_apply_to_the_client(clients: Clients, client: str, admitted: bool) -> None:
    assert bool(clients.is_admitted("access", header(client))) == admitted


@pytest.mark.parametrize("first", [LOCAL, UNKNOWN])
def test_what_the_proxy_opens_for_itself_is_admitted(clients: Clients, first: bytes) -> None:
    assert all(clients.is_admitted("source", first) for _ in range(5))
    assert clients.is_admitted("access", first)


def test_the_proxys_own_connections_and_unfinished_headers_do_not_count(clients: Clients) -> None:
    for _ in range(5):
        clients.connect("source", b"PROXY TCP4 203.0.113.5")
    assert all(clients.is_admitted("source", header(f"203.0.113.{number}")) for number in range(10, 20))
    assert clients.is_admitted("source", header("203.0.113.5"))


def test_over_a_unix_socket(clients: Clients) -> None:
    one = header("203.0.113.6")
    assert clients.is_admitted("local", one)
    assert not clients.is_admitted("local", one)
    assert clients.is_admitted("local", header("203.0.113.7"))


def test_what_the_client_sends_with_the_header_waits_for_the_answer(clients: Clients) -> None:
    sock = clients.connect("source", header("203.0.113.8") + b"hello")
    assert int(receive_line(sock))
    sock.shutdown(socket.SHUT_WR)
    assert receive_all(sock) == b"hello"


def test_what_a_dead_worker_had_no_longer_counts(server: ServerProcess, clients: Clients) -> None:
    after = len(server.lines)
    one = header("203.0.113.9")
    victim, _ = clients.is_admitted("source", one), clients.is_admitted("source", one)
    assert not clients.is_admitted("source", one)
    os.kill(victim, signal.SIGKILL)
    server.wait_for_line(rf"pid {victim}\) killed by SIGKILL", after=after)
    server.wait_for_line(r"\bserves$", after=after)
    assert clients.is_admitted("source", one)


def test_a_client_known_while_the_worker_drains_is_served_and_drained(server: ServerProcess, clients: Clients) -> None:
    """A header comes late: its worker takes nothing new, but goes on asking."""
    after = len(server.lines)
    late = [clients.connect("source", header(f"203.0.113.{number}")[:-1]) for number in range(100, 106)]
    pids = set(server.worker_pids())
    # All have been taken: each worker has served one that came after them.
    seen: set[int] = set()
    for number in range(110, 140):
        seen.add(clients.is_admitted("source", header(f"203.0.113.{number}")))
        if seen == pids:
            break
    assert seen == pids
    server.signal(signal.SIGHUP)
    server.wait_for_line(r"\bready\b", after=after)
    for sock in late:
        sock.sendall(b"\n")
        assert int(receive_line(sock)) in pids
        assert receive_all(sock) == b""


def test_a_real_haproxy(tmp_path: Any, server: ServerProcess) -> None:
    proxy = HeaderProxy(tmp_path, server, ("behind",))
    opened: list[socket.socket] = []

    def connect(client: str, option: str = "send-proxy") -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", proxy.ports["behind", option]), TIMEOUT, (client, 0))
        opened.append(sock)
        return sock

    def is_admitted(client: str, option: str = "send-proxy") -> bool:
        try:
            return bool(receive_line(connect(client, option)))
        except ConnectionResetError:
            return False

    try:
        assert [is_admitted("127.0.0.5") for _ in range(5)] == [True, True, True, False, False]
        assert is_admitted("127.0.0.6", "send-proxy-v2")
        assert not is_admitted("127.0.0.7", "send-proxy-v2")
        opened[0].close()
        wait_until(lambda: is_admitted("127.0.0.5", "send-proxy-v2"), "a place")
        assert ask(opened[-1], b"hello") == b"hello"
    finally:
        for sock in opened:
            sock.close()
        proxy.close()
