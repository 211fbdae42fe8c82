"""``idle_timeout``: what counts as idle, and what does not."""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterator

import pytest

from tests.helpers.plugins import ask, closed, listener, prompt_client, reset, served, turns
from tests.helpers.server import ServerProcess, receive_all, receive_exactly, wait_until

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("settled")]

TIMEOUT = 0.3  # seconds; what is to come must come later than that, but no test asks how much later

PLUGINS = r"""
class Idle(Tells):
    # Holds the connection in the way that the client asks for, and lets go of it for "release".
    @hookimpl
    def on_readable(self, conn):
        what = conn.recv().decode()
        conn.send(what.encode())
        if what == "hold":
            conn.hold()
        elif what == "program":
            conn.state = conn.spawn(["sleep", "1000"])
        elif what == "stream":
            conn.state = conn.connect("unix:silent.sock", on_readable=lambda stream: stream.recv())
        elif what == "relay":
            conn.relay_to(conn)
        elif what == "blocking":
            conn.state = threading.Event()
            conn.run_blocking(conn.state.wait, 30)
        elif what == "big":
            conn.send(bytes(15_000_000))
        elif what == "closing":
            # What is kept, and a program that would hold it.
            conn.send(bytes(15_000_000))
            conn.spawn(["sleep", "1000"])
            conn.close("closing")


class Silent(Tells):
    @hookimpl
    def on_readable(self, conn):
        conn.recv()
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with served(
        tmp_path_factory.mktemp("idle"),
        PLUGINS,
        listener("ping"),
        listener("idle", idle_timeout=TIMEOUT),
        listener("never", "idle", idle_timeout=0),
        listener("silent", bind="unix:silent.sock"),
    ) as running:
        yield running


def test_a_silent_connection_is_closed_in_order(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("idle") as sock:
        assert receive_all(sock) == b""
    assert closed(server, "idle", after) == "idle timeout"


def stays_open_while_it_speaks(server: ServerProcess) -> bool:
    """Speak for three times the timeout; False where this machine had no time for a word in time."""
    with server.connect("idle") as sock:
        began = last = time.monotonic()
        while last - began < 3 * TIMEOUT:
            try:
                if ask(sock, b"x") != b"x":
                    return False
            except ConnectionError:
                return False
            now = time.monotonic()
            if now - last > TIMEOUT / 2:
                return False
            last = now
            select.select([sock], [], [], TIMEOUT / 10)
    return True


def test_bytes_from_the_client_count(server: ServerProcess) -> None:
    wait_until(lambda: stays_open_while_it_speaks(server), "a connection that speaks and stays open")


@pytest.mark.parametrize("what", ["hold", "program", "stream", "relay", "blocking"])
def test_what_holds_a_connection_keeps_it_from_being_idle(server: ServerProcess, what: str) -> None:
    with prompt_client(server, "idle", what.encode(), TIMEOUT) as sock, server.connect("idle") as other:
        assert receive_exactly(sock, len(what)) == what.encode()
        assert receive_all(other) == b""  # the other one has been idle too long meanwhile
        with server.connect("idle") as another:
            assert receive_all(another) == b""
        sock.sendall(b"still here")
        assert receive_exactly(sock, 10) == b"still here"
        reset(sock)


def test_a_reader_that_makes_no_progress_is_idle(server: ServerProcess) -> None:
    after = len(server.lines)
    with prompt_client(server, "idle", b"big", TIMEOUT) as sock:
        assert closed(server, "idle", after, sock) == "idle timeout"
        with pytest.raises(ConnectionResetError):
            receive_all(sock)  # aborted: it must not take what has come for everything


def test_a_closed_connection_is_not_held_and_so_may_be_idle(server: ServerProcess) -> None:
    after = len(server.lines)
    with prompt_client(server, "idle", b"closing", TIMEOUT) as sock:
        assert closed(server, "idle", after, sock) == "idle timeout"
        with pytest.raises(ConnectionResetError):
            receive_all(sock)


def test_0_is_never(server: ServerProcess) -> None:
    with server.connect("never") as sock:
        turns(server)
        turns(server)  # 0.4 seconds
        assert ask(sock, b"x") == b"x"


def test_the_sweep_does_not_spin(server: ServerProcess) -> None:
    socks: list[socket.socket] = [server.connect("idle") for _ in range(20)]
    try:
        assert turns(server) < 100
    finally:
        for sock in socks:
            sock.close()
