"""TCP options of accepted sockets, and several servers on one port."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from poolsrv.config.model import ListenerConfig
from poolsrv.core.listening_sockets import ListeningSocket
from poolsrv.dispatcher.bind import bind
from poolsrv.net.addresses import parse
from tests.helpers.plugins import ask, listener, served
from tests.helpers.server import ServerProcess, receive_all

OPTIONS = """
class Options:
    # Says what is set on the accepted socket.
    @hookimpl
    def on_connection_init(self, conn):
        tcp = [socket.TCP_NODELAY, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
        if conn.peer[0].startswith("unix:"):
            tcp = []
        names = [(socket.SOL_SOCKET, socket.SO_KEEPALIVE), *((socket.IPPROTO_TCP, option) for option in tcp)]
        if tcp:
            names.append((socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
        conn.send(" ".join(str(conn._sock.getsockopt(*name)) for name in names).encode())
        conn.close()


class Who:
    # Says which worker answers.
    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            conn.send(b"%d\\n" % os.getpid())
"""


def options(server: ServerProcess, name: str) -> list[int]:
    """keepalive on; nodelay; idle, interval and count of keepalive; user timeout in milliseconds."""
    with server.connect(name) as sock:
        return [int(number) for number in receive_all(sock).split()]


@pytest.mark.server
def test_accepted_sockets_have_the_options_of_their_listener(tmp_path: Path) -> None:
    listeners = [
        listener("default", "options"),
        listener("six", "options", bind="[::1]:0"),
        listener("every", "options", bind=":0"),
        listener("own", "options", tcp_nodelay=False, keepalive=30, tcp_user_timeout=2.5),
        listener("short", "options", keepalive=2),
        listener("unix", "options", bind="unix:options.sock"),
    ]
    with served(tmp_path, OPTIONS, *listeners) as server:
        for name in ("default", "six", "every"):
            assert options(server, name) == [1, 1, 300, 100, 3, 0]
        assert options(server, "own") == [1, 0, 30, 10, 3, 2500]
        assert options(server, "short") == [1, 1, 2, 1, 3, 0]
        assert options(server, "unix") == [0]


@pytest.mark.server
def test_a_reload_changes_the_options_of_held_sockets(tmp_path: Path) -> None:
    with served(tmp_path, OPTIONS, listener("options", keepalive=30, tcp_user_timeout=2)) as server:
        address = server.addresses("options")
        assert options(server, "options") == [1, 1, 30, 10, 3, 2000]
        text = server.file.read_text()
        server.file.write_text(text.replace("keepalive = 30", "keepalive = 0").replace("tcp_user_timeout = 2", ""))
        server.reload()
        assert server.addresses("options") == address
        answer = options(server, "options")
        assert (answer[0], answer[-1]) == (0, 0)


def test_sockets_of_systemd_get_the_options_too(tmp_path: Path) -> None:
    config = ListenerConfig("web", (parse("systemd:web", tmp_path),), "echo", keepalive=30, tcp_nodelay=True)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        bind((config,), {"systemd:web#0": ListeningSocket("systemd:web#0", sock, "", None)})
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)


@pytest.mark.server
def test_servers_that_share_a_port(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with served(tmp_path / "one", OPTIONS, listener("who", reuse_port=True)) as one:
        address = one.addresses("who")[0]
        with served(tmp_path / "other", OPTIONS, listener("who", bind=address, reuse_port=True)) as other:
            answered: set[bytes] = set()
            while len(answered) < 2:  # the kernel chooses by the client's port
                with one.connect("who") as sock:
                    answered.add(ask(sock, b"who"))
            assert answered == {str(server.worker_pids()[0]).encode() for server in (one, other)}
            assert other.stop() == 0
        for _ in range(10):
            with one.connect("who") as sock:
                assert int(ask(sock, b"who")) in one.worker_pids()


@pytest.mark.server
def test_an_address_is_shared_only_once_a_reload_allows_it(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    with served(tmp_path / "one", OPTIONS, listener("who", reuse_port=False)) as one:
        host, _, port = one.addresses("who")[0].rpartition(":")
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            with pytest.raises(OSError, match="Address already in use"):
                sock.bind((host, int(port)))
        one.file.write_text(one.file.read_text().replace("reuse_port = false", "reuse_port = true"))
        one.reload()
        with served(tmp_path / "other", OPTIONS, listener("who", bind=f"{host}:{port}", reuse_port=True)) as other:
            assert other.addresses("who") == one.addresses("who")
