"""A deny list in front of echo: a further plugin that refuses, and that others come after."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.helpers.plugins import closed, listener, served, settle
from tests.helpers.server import ServerProcess, receive_all

pytestmark = pytest.mark.server

PLUGINS = r"""
import ipaddress


class Denies:
    class Options(msgspec.Struct):
        networks: list[str]

    def __init__(self, options):
        self.networks = [ipaddress.ip_network(network) for network in options.networks]

    @hookimpl
    def on_connection_init(self, conn):
        if any(ipaddress.ip_address(conn.peer[0]) in network for network in self.networks):
            conn.abort("denied")
            return True

    @hookimpl
    def on_connection_close(self, conn, reason):
        conn.log.info("closed: %s", reason)


class Counts:
    @hookimpl
    def on_connection_init(self, conn):
        conn.log.info("passed")
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    table = '[listeners.guarded.denies]\nnetworks = ["127.0.0.2/31", "10.0.0.0/8"]\n'
    with served(
        tmp_path_factory.mktemp("denylist"),
        PLUGINS,
        listener("ping"),
        listener("guarded", "echo", bind=":0", plugins=["denies", "counts"]) + table,
    ) as running:
        yield running
        settle(running)


def exchange(server: ServerProcess, source: str) -> bytes:
    port = int(server.addresses("guarded")[0].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 30, source_address=(source, 0)) as sock:
        sock.sendall(b"hello")  # is told of a reset that has come already, and then nothing else is
        with suppress(OSError):  # it was refused before
            sock.shutdown(socket.SHUT_WR)
        return receive_all(sock)


def test_others_are_let_through(server: ServerProcess) -> None:
    after = len(server.lines)
    assert exchange(server, "127.0.0.1") == b"hello"
    server.wait_for_line(r"guarded #\d+ 127\.0\.0\.1:\d+: passed", after=after)
    assert closed(server, "guarded", after) == "eof"


@pytest.mark.parametrize("source", ["127.0.0.2", "127.0.0.3"])
def test_a_client_on_the_list_is_refused(server: ServerProcess, source: str) -> None:
    after = len(server.lines)
    with pytest.raises(ConnectionResetError):
        exchange(server, source)
    assert closed(server, "guarded", after) == "denied"
    assert not any("passed" in line for line in server.lines[after:])
