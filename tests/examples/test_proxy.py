"""A TCP proxy, written in two ways: with relays, and with send, congested and pause_reading."""

from __future__ import annotations

import select
import socket
import subprocess
import threading
from collections.abc import Iterator

import pytest

from tests.helpers.plugins import listener, reset, served, settle, turns
from tests.helpers.server import ServerProcess, receive_all, receive_exactly, wait_until

pytestmark = pytest.mark.server

PLUGINS = r"""
class Relays(Tells):
    # Both ways at the kernel's speed; the end of one direction ends only that one.
    class Options(msgspec.Struct):
        to: str

    def __init__(self, options):
        self.to = options.to

    @hookimpl
    def on_connection_init(self, conn):
        def closed(upstream, error):
            conn.close() if error is None else conn.abort(str(error))

        upstream = conn.connect(self.to, on_readable=lambda upstream: None, on_close=closed)
        conn.relay_to(upstream)
        upstream.relay_to(conn)


class Copies(Tells):
    # The same by hand: while one side is congested the other is paused.
    class Options(msgspec.Struct):
        to: str

    def __init__(self, options):
        self.to = options.to

    @hookimpl
    def on_connection_init(self, conn):
        conn.state = conn.connect(
            self.to,
            on_readable=lambda upstream: self.move(upstream, conn),
            on_writable=lambda upstream: conn.resume_reading(),
            on_close=lambda upstream, error: conn.close() if error is None else conn.abort(str(error)),
        )

    def move(self, source, target):
        target.send(source.recv())
        if source.eof:
            target.send_eof()
        elif target.congested:
            source.pause_reading()

    @hookimpl
    def on_readable(self, conn):
        self.move(conn, conn.state)

    @hookimpl
    def on_writable(self, conn):
        conn.state.resume_reading()
"""


@pytest.fixture(scope="module")
def upstream() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.settimeout(30)
        yield sock


@pytest.fixture(params=["relays", "copies"])
def way(request: pytest.FixtureRequest) -> str:
    """The listener that is asked, which is named like its plugin."""
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def shared_proxy(tmp_path_factory: pytest.TempPathFactory, upstream: socket.socket) -> Iterator[ServerProcess]:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # it does not listen
        listeners = [listener("ping")]
        for plugin in ("relays", "copies"):
            for name, target in ((plugin, upstream), (f"{plugin}-to-nobody", nobody)):
                table = f'[listeners.{name}.{plugin}]\nto = "127.0.0.1:{target.getsockname()[1]}"\n'
                listeners.append(listener(name, plugin) + table)
        with served(tmp_path_factory.mktemp("proxy"), PLUGINS, *listeners) as server:
            yield server


@pytest.fixture
def proxy(shared_proxy: ServerProcess) -> Iterator[ServerProcess]:
    yield shared_proxy
    settle(shared_proxy)


def accept(upstream: socket.socket) -> socket.socket:
    sock, _ = upstream.accept()
    sock.settimeout(30)
    return sock


def send(sock: socket.socket, data: bytes) -> threading.Thread:
    """Send, and finish sending, from a thread."""

    def run() -> None:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_both_directions_at_once_and_whole(proxy: ServerProcess, way: str, upstream: socket.socket) -> None:
    there, back = bytes(range(256)) * 20_000, bytes(range(255, -1, -1)) * 20_000
    with proxy.connect(way) as client, accept(upstream) as server:
        received: list[bytes] = []
        threads = [
            send(client, there),
            send(server, back),
            threading.Thread(target=lambda: received.append(receive_all(server))),
        ]
        threads[2].start()
        assert receive_all(client) == back
        for thread in threads:
            thread.join()
    assert received == [there]


@pytest.mark.parametrize("first", ["client", "server"])
def test_each_direction_may_finish_first(proxy: ServerProcess, way: str, upstream: socket.socket, first: str) -> None:
    with proxy.connect(way) as client, accept(upstream) as server:
        one, other = (client, server) if first == "client" else (server, client)
        one.sendall(b"question")
        one.shutdown(socket.SHUT_WR)
        assert receive_all(other) == b"question"
        other.sendall(b"answer")
        assert receive_exactly(one, 6) == b"answer"
        other.sendall(b", and more")
        other.shutdown(socket.SHUT_WR)
        assert receive_all(one) == b", and more"


@pytest.mark.parametrize("slow", ["client", "server"])
def test_backpressure_reaches_the_sender(proxy: ServerProcess, way: str, upstream: socket.socket, slow: str) -> None:
    with proxy.connect(way) as client, accept(upstream) as server:
        sender, reader = (server, client) if slow == "client" else (client, server)
        sender.setblocking(False)
        sent, quiet = 0, 0
        while quiet < 20:  # until nothing more is taken
            try:
                sent += sender.send(bytes(65536))
                quiet = 0
            except BlockingIOError:
                quiet += not select.select([], [sender], [], 0.02)[1]
            assert sent < 50_000_000
        wait_until(lambda: turns(proxy) < 50, "a proxy that rests")
        sender.setblocking(True)
        sender.shutdown(socket.SHUT_WR)
        assert len(receive_all(reader)) == sent


def test_a_reset_of_the_client_reaches_the_server(proxy: ServerProcess, way: str, upstream: socket.socket) -> None:
    with proxy.connect(way) as client, accept(upstream) as server:
        client.sendall(b"x")
        assert receive_exactly(server, 1) == b"x"
        reset(client)
        with pytest.raises(ConnectionResetError):
            receive_all(server)


def test_a_reset_of_the_server_reaches_the_client(proxy: ServerProcess, way: str, upstream: socket.socket) -> None:
    with proxy.connect(way) as client, accept(upstream) as server:
        client.sendall(b"x")
        assert receive_exactly(server, 1) == b"x"
        reset(server)
        with pytest.raises(ConnectionResetError):
            receive_all(client)


def test_a_server_that_is_not_there(proxy: ServerProcess, way: str) -> None:
    with pytest.raises(ConnectionResetError), proxy.connect(f"{way}-to-nobody") as client:
        receive_all(client)


def test_clients_and_servers_that_others_wrote(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("socat")
    table = '[listeners.proxy.relays]\nto = "unix:server.sock"\n'
    with (
        served(folder, PLUGINS, listener("proxy", "relays") + table) as server,
        subprocess.Popen(
            ["socat", "-d", "-d", f"UNIX-LISTEN:{folder}/server.sock", "SYSTEM:sort"], stderr=subprocess.PIPE, text=True
        ) as upstream,
    ):
        assert upstream.stderr is not None
        assert any("listening on" in line for line in upstream.stderr)
        host, _, port = server.addresses("proxy")[0].rpartition(":")
        answer = subprocess.run(
            ["socat", "-t", "30", "-", f"TCP:{host}:{port}"], input=b"c\na\nb\n", capture_output=True, timeout=30
        )
        assert answer.stdout == b"a\nb\nc\n"
        upstream.communicate()
