"""Connections in the iteration in which they come: which of them the loop ever watches, and what is noticed."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from poolsrv import Connection, hookimpl
from poolsrv.core.event_loop import READ, EventLoop
from poolsrv.testing import Harness
from poolsrv.testing.clock import ClockedLoop
from poolsrv.worker.newcomers import FEWEST, MOST


class Client:
    """A client that has sent before it is served."""

    def __init__(self, harness: Harness, number: int) -> None:
        self._server_side, self.socket = socket.socketpair()
        self.socket.settimeout(5)
        self.socket.send(b"hello")
        self.fd = self._server_side.fileno()
        self._harness = harness
        self._number = number

    def open(self) -> None:
        self._harness._current.open(self._server_side, self._number, ("127.0.0.1", self._number))


class Handler:
    """Does what the test wants with the first bytes of a connection."""

    def __init__(self) -> None:
        self.first: Callable[[Connection], object] = lambda conn: None
        self.ends: list[str] = []
        self.received: list[bytes] = []

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        self.received.append(conn.recv())
        first, self.first = self.first, lambda conn: None
        first(conn)

    @hookimpl
    def on_connection_close(self, conn: Connection, reason: str) -> None:
        self.ends.append(reason)


class Setting:
    """A worker in this process, and a list of what its loop is told to watch."""

    def __init__(self) -> None:
        self.handler = Handler()
        self.harness = Harness(self.handler)
        self.loop = self.harness._current.loop
        self.watched: list[tuple[int, int]] = []
        self.clients: list[Client] = []

    def serve(self, first: Callable[[Connection], object] = lambda conn: None) -> Client:
        """A client with its first bytes, and with what the plugin does then."""
        client = Client(self.harness, len(self.clients) + 1)
        self.clients.append(client)
        self.handler.first = first
        client.open()
        return client

    def turn(self) -> None:
        self.loop.turn(0.0)

    def close(self) -> None:
        for client in self.clients:
            client.socket.close()
        self.harness.close()


@pytest.fixture
def setting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    one = Setting()

    def noted(loop: EventLoop, fd: int, interest: int, callback: Callable[[int], object]) -> None:
        one.watched.append((fd, interest))
        EventLoop.register(loop, fd, interest, callback)

    # Not in the loop, nor in its base: these may be compiled.
    monkeypatch.setattr(ClockedLoop, "register", noted, raising=False)
    yield one
    one.close()


def test_one_that_ends_at_once_is_never_watched(setting: Setting) -> None:
    client = setting.serve(lambda conn: conn.send(b"bye"))
    assert client.socket.recv(10) == b"bye"
    client.socket.close()
    setting.turn()
    assert setting.handler.received == [b"hello", b""]
    assert setting.handler.ends == ["eof"]
    assert setting.watched == []
    assert setting.harness.open_connections == 0


def test_one_that_stays_is_watched_from_the_end_of_the_iteration_on(setting: Setting) -> None:
    client = setting.serve()
    assert setting.watched == []
    setting.turn()
    assert setting.watched == [(client.fd, READ)]
    client.socket.send(b"more")
    setting.turn()
    assert setting.handler.received == [b"hello", b"more"]
    client.socket.close()
    setting.turn()
    assert setting.handler.ends == ["eof"]


def test_what_has_come_meanwhile_is_read_at_the_end_of_the_iteration(setting: Setting) -> None:
    client = setting.serve()
    client.socket.send(b"more")
    setting.turn()
    assert setting.handler.received == [b"hello", b"more"]
    assert setting.watched == [(client.fd, READ)]


def test_one_that_is_not_to_be_read_is_not_read_again(setting: Setting) -> None:
    kept: list[Connection] = []

    def pause(conn: Connection) -> None:
        conn.pause_reading()
        kept.append(conn)

    client = setting.serve(pause)
    client.socket.send(b"more")
    setting.turn()
    setting.turn()
    assert setting.handler.received == [b"hello"]
    assert setting.watched == [(client.fd, 0)]  # its end as such is noticed
    kept.pop().resume_reading()
    setting.turn()
    assert setting.handler.received == [b"hello", b"more"]


def test_one_that_is_resumed_in_the_same_iteration_is_watched_at_once(setting: Setting) -> None:
    def pause_and_resume(conn: Connection) -> None:
        conn.pause_reading()
        conn.resume_reading()

    client = setting.serve(pause_and_resume)
    assert setting.watched == [(client.fd, READ)]
    setting.turn()
    client.socket.close()
    setting.turn()
    assert setting.handler.ends == ["eof"]
    assert len(setting.watched) == 1


def test_one_that_the_plugin_closes_is_watched_only_while_it_lingers(setting: Setting) -> None:
    client = setting.serve(lambda conn: conn.close("done"))
    assert setting.watched == []
    setting.turn()
    assert setting.watched == [(client.fd, READ)]
    assert client.socket.recv(10) == b""
    client.socket.close()
    setting.turn()
    assert setting.handler.ends == ["done"]


def test_one_that_the_plugin_aborts_is_never_watched(setting: Setting) -> None:
    setting.serve(lambda conn: conn.abort("enough"))
    setting.turn()
    assert setting.handler.ends == ["enough"]
    assert setting.watched == []


def test_where_it_is_in_vain_it_is_tried_less_and_less_often(setting: Setting) -> None:
    newcomers = setting.harness._current.service.newcomers
    for expected in (FEWEST, 2 * FEWEST, 4 * FEWEST):
        before = len(setting.watched)
        setting.serve()
        assert len(setting.watched) == before  # tried
        setting.turn()
        for _ in range(expected):
            before = len(setting.watched)
            setting.serve()
            assert len(setting.watched) == before + 1  # watched at once
    setting.serve().socket.close()
    setting.turn()
    assert setting.handler.ends == ["eof"]
    setting.serve()
    setting.turn()
    assert newcomers._at_once == FEWEST
    newcomers._back_off = MOST
    newcomers._at_once = 0
    setting.serve()
    setting.turn()
    assert newcomers._at_once == MOST == newcomers._back_off
