"""``first_byte_timeout`` and ``connection_lifetime``: who is closed and how, and that waiting costs nothing."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from poolsrv.core.event_loop import EventLoop
from poolsrv.worker.deadlines import Deadlines
from tests.dispatcher.test_limits import os_parent
from tests.helpers.certificates import NEW_KEY
from tests.helpers.plugins import ask, closed, listener, prompt_client, served, settle
from tests.helpers.server import ServerProcess, context_switches, receive_all, receive_exactly, wait_until
from tests.worker.test_tls import tls

TIMEOUT = 0.5  # seconds; what is to come must come later than that, but no test asks how much later

PLUGINS = r"""
class Says(Tells):
    # Speaks first, and echoes.
    @hookimpl
    def on_connection_init(self, conn):
        conn.send(b"hello\n")

    @hookimpl
    def on_readable(self, conn):
        conn.send(conn.recv())


class Paused(Says):
    @hookimpl
    def on_connection_init(self, conn):
        conn.pause_reading()
        conn.call_later(1.0, lambda: conn.send(b"resumed\n"))
        conn.call_later(1.0, conn.resume_reading)


class Program(Tells):
    # The program reads the connection itself.
    @hookimpl
    def on_connection_init(self, conn):
        conn.spawn(["cat"], stdin=conn, stdout=conn)

    @hookimpl
    def on_child_exit(self, child, conn):
        conn.close("program ended")


class Drains(Tells):
    # Has a last word, and takes the client's only then.
    @hookimpl
    def on_connection_init(self, conn):
        conn.send(b"%d" % conn.draining)
        conn.pause_reading()

    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            conn.send(b"%d" % conn.draining + line)
            if line == b"bye\n":
                conn.close("finished")

    @hookimpl
    def on_drain(self, conn):
        conn.send(b"last orders\n")
        conn.resume_reading()


class Heavy(Tells):
    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        conn.send(bytes(15_000_000))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    certificate = tmp_path_factory.mktemp("certificate")
    openssl = ["openssl", "req", "-x509", *NEW_KEY, "-subj", "/CN=localhost", "-keyout", "server.key"]
    subprocess.run([*openssl, "-out", "server.pem"], cwd=certificate, check=True, capture_output=True)
    first: dict[str, Any] = {"first_byte_timeout": TIMEOUT}
    life: dict[str, Any] = {"connection_lifetime": TIMEOUT}
    # Both over TLS; a client that does not finish the handshake.
    secret = "".join(
        tls(certificate, "ping", name, "handshake_timeout = 0").replace("\n", f"\n{key} = {TIMEOUT}\n", 1)
        for name, key in (("secret", "first_byte_timeout"), ("secretlife", "connection_lifetime"))
    )
    with served(
        tmp_path_factory.mktemp("deadlines"),
        PLUGINS,
        listener("ping"),
        listener("first", "says", **first),
        listener("paused", **first),
        listener("program", **first),
        listener("life", "says", **life),
        listener("drains", **life),
        listener("heavy", **life),
        secret,
        pool="workers = 1\ngraceful_timeout = 2.0",
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def quiet(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        settle(request.getfixturevalue("server"))


# --- the first byte


@pytest.mark.server
def test_a_silent_client_is_closed_gracefully(server: ServerProcess) -> None:
    after = len(server.lines)
    began = time.monotonic()
    with server.connect("first") as sock:
        assert receive_all(sock) == b"hello\n"
        assert time.monotonic() - began >= TIMEOUT * 0.9
    assert closed(server, "first", after) == "first byte timeout"


@pytest.mark.server
def test_one_byte_is_enough(server: ServerProcess) -> None:
    with prompt_client(server, "first", b"x", TIMEOUT) as sock:
        assert receive_exactly(sock, 7) == b"hello\nx"
        with server.connect("first") as other:
            assert receive_all(other) == b"hello\n"
        sock.sendall(b"y")
        assert receive_exactly(sock, 1) == b"y"


@pytest.mark.server
def test_while_the_plugin_does_not_read_the_client_is_not_late(server: ServerProcess) -> None:
    with server.connect("paused") as sock, server.connect("first") as other:
        sock.sendall(b"x")
        assert receive_all(other) == b"hello\n"
        assert receive_exactly(sock, 9) == b"resumed\nx"


@pytest.mark.server
def test_a_client_that_speaks_to_a_program_is_not_late(server: ServerProcess) -> None:
    with server.connect("program") as sock, server.connect("first") as other:
        assert receive_all(other) == b"hello\n"
        sock.sendall(b"hello")
        assert receive_exactly(sock, 5) == b"hello"


@pytest.mark.server
def test_an_unfinished_handshake_is_no_first_byte(server: ServerProcess) -> None:
    with prompt_client(server, "secret", b"\x16\x03\x01\x02\x00", TIMEOUT) as sock:  # the beginning of a TLS record
        assert receive_all(sock) == b""


@pytest.mark.server
def test_the_lifetime_of_an_unfinished_handshake(server: ServerProcess) -> None:
    with server.connect("secretlife") as sock:
        assert receive_all(sock) == b""


# --- the whole life


@pytest.mark.server
def test_after_its_lifetime_a_connection_is_closed_in_order(server: ServerProcess) -> None:
    after = len(server.lines)
    with prompt_client(server, "life", b"x", TIMEOUT) as sock:
        assert receive_all(sock) == b"hello\nx"
        with suppress(OSError):  # on a busy machine it has been let go already
            sock.shutdown(socket.SHUT_WR)
        assert closed(server, "life", after, sock) == "connection lifetime"


@pytest.mark.server
def test_a_busy_connection_is_closed_too(server: ServerProcess) -> None:
    with server.connect("life") as sock:
        sock.settimeout(TIMEOUT / 10)
        deadline = time.monotonic() + 30
        end = False
        while not end:
            assert time.monotonic() < deadline
            try:
                sock.sendall(b"x")
                end = not sock.recv(100)
            except TimeoutError:
                pass
            except (ConnectionResetError, BrokenPipeError):
                end = True  # what was sent after the end


@pytest.mark.server
def test_a_plugin_that_knows_what_is_begun_may_finish_it(server: ServerProcess) -> None:
    after = len(server.lines)
    with prompt_client(server, "drains", b"after\nbye\n", TIMEOUT, finish=True) as sock:
        assert receive_all(sock) == b"0last orders\n1after\n1bye\n"
        assert closed(server, "drains", after, sock) == "finished"


@pytest.mark.server
def test_a_client_that_does_not_finish_is_aborted(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("drains") as sock, pytest.raises(ConnectionResetError):
        receive_all(sock)
    assert closed(server, "drains", after) == "connection lifetime"


@pytest.mark.server
def test_a_client_that_does_not_read_the_rest_is_aborted(server: ServerProcess) -> None:
    after = len(server.lines)
    with prompt_client(server, "heavy", b"x", TIMEOUT) as sock:
        assert closed(server, "heavy", after, sock) == "connection lifetime"
        with pytest.raises(ConnectionResetError):
            receive_all(sock)


# --- what it costs


@pytest.mark.server
def test_many_silent_connections_wake_nobody_up(tmp_path: Any) -> None:
    text = listener("hold", "ping", first_byte_timeout=600, connection_lifetime=900, max_per_source=10_000)
    with served(tmp_path, "", text) as server:
        socks: list[socket.socket] = []
        try:
            for _ in range(400):
                socks.append(server.connect("hold"))
                if len(socks) % 2:
                    assert ask(socks[-1], b"hello") == b"hello"
            (worker,) = server.worker_pids()
            processes = [worker, os_parent(worker), server.pid]

            def sleeps() -> bool:
                before = [context_switches(pid) for pid in processes]
                time.sleep(0.7)
                return [context_switches(pid) for pid in processes] == before

            # A last heartbeat may come, but nothing that comes again and again.
            wait_until(sleeps, "a server that sleeps")
        finally:
            for sock in socks:
                sock.close()


class Clock:
    """Deadlines of 10 seconds with a given clock, and how often its timer wakes it up."""

    def __init__(self, loop: EventLoop) -> None:
        self.loop = loop
        self.loop.now = 100.0
        self.missed: list[int] = []
        self.satisfied: set[int] = set()
        self.deadlines = Deadlines[int](
            loop, 10.0, lambda number: number not in self.satisfied, lambda number: self.missed.append(number)
        )

    def add(self, number: int) -> int:
        self.deadlines.add(number)
        return number

    def next_timer(self) -> float | None:
        timers = [timer.due for _, _, timer in self.loop._timers if timer.callback is not None]
        assert len(timers) <= 1
        return timers[0] if timers else None

    def to(self, now: float) -> None:
        self.loop.now = now
        self.loop.dispatch([])


@pytest.fixture
def clock() -> Iterator[Clock]:
    loop = EventLoop()
    yield Clock(loop)
    loop.close()


def test_deadlines_come_in_order_with_one_timer(clock: Clock) -> None:
    for number in range(5):
        clock.loop.now = 100.0 + number
        clock.add(number)
    assert clock.next_timer() == 110.0
    clock.to(110.0)
    assert clock.missed == [0]
    assert clock.next_timer() == 111.0
    clock.to(112.5)
    assert clock.missed == [0, 1, 2]
    clock.to(200.0)
    assert clock.missed == [0, 1, 2, 3, 4]
    assert clock.next_timer() is None


def test_what_does_not_matter_any_more_wakes_nobody(clock: Clock) -> None:
    for number in range(1000):
        clock.loop.now = 100.0 + number / 1000
        clock.add(number)
    clock.satisfied.update(range(1, 999))
    clock.to(110.0)
    assert clock.missed == [0]
    assert clock.next_timer() == 110.999
    clock.to(111.0)
    assert clock.missed == [0, 999]


def test_what_is_discarded_is_forgotten(clock: Clock) -> None:
    first, second = clock.add(1), clock.add(2)
    assert first in clock.deadlines
    clock.deadlines.discard(first)
    clock.deadlines.discard(first)
    assert first not in clock.deadlines
    clock.to(110.0)
    assert clock.missed == [2]
    assert second not in clock.deadlines
