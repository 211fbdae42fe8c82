"""Relays: bytes moved from one stream to another, on whole servers."""

from __future__ import annotations

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.plugins import ask, listener, reset, served, turns
from tests.helpers.server import ServerProcess, receive_all, receive_exactly, receive_line

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("settled")]

PLUGINS = r"""
class Cat(Tells):
    # Through a program and back, both ways by relay.
    @hookimpl
    def on_connection_init(self, conn):
        child = conn.spawn(["cat"], stdin=PIPE, stdout=PIPE)
        conn.relay_to(child.stdin)
        child.stdout.relay_to(conn)


class Catshared(Tells):
    # The program writes to the connection itself, while its input is relayed from it.
    @hookimpl
    def on_connection_init(self, conn):
        child = conn.spawn(["cat"], stdin=PIPE, stdout=conn)
        conn.relay_to(child.stdin)


class Catlate(Tells):
    # The relay has begun when the program is given the connection.
    @hookimpl
    def on_connection_init(self, conn):
        first = conn.spawn(["cat"], stdin=PIPE)
        conn.relay_to(first.stdin, limit=5, done=lambda moved: self.second(conn, first))

    def second(self, conn, first):
        first.stdin.send_eof()
        up = conn.connect("unix:echo.sock", on_readable=lambda up: None)
        up.pause_reading()  # so that its end is not seen before the relay
        conn.relay_to(up)
        child = conn.spawn(["sh", "-c", "head -c 3000000 /dev/zero"], stdout=conn)
        conn.state = up, child

    @hookimpl
    def on_child_exit(self, child, conn):
        if conn is not None and conn.state is not None and child is conn.state[1]:
            conn.state[0].relay_to(conn)


class Limited(Tells):
    # "N" and a newline, then N bytes that go to an echo and back; what follows comes here.
    @hookimpl
    def on_readable(self, conn):
        line = conn.recv_line()
        if line is None:
            return
        if line == b"rest\n":
            conn.send(b"rest:" + conn.recv())
            return
        up = conn.connect("unix:echo.sock", on_readable=lambda up: conn.send(up.recv()))
        conn.relay_to(up, limit=int(line), done=lambda moved: self.done(conn, up, moved))

    def done(self, conn, up, moved):
        conn.send(b"moved %d;" % moved)
        up.send_eof()


class Peer(Tells):
    # A relay each way with the unix socket that a test listens on; its lines say what happened.
    @hookimpl
    def on_connection_init(self, conn):
        def moved(way):
            return lambda moved: conn.log.info("%s moved %d", way, moved)

        def closed(up, error):
            conn.log.info("upstream closed: %r", error)
            conn.close("upstream")

        up = conn.connect("unix:peer.sock", on_readable=lambda up: None, on_close=closed)
        conn.state = up
        conn.relay_to(up, done=moved("up"))
        up.relay_to(conn, done=moved("down"))
        for source, target in ((conn, up), (up, conn)):
            try:
                source.relay_to(target)
            except ValueError as error:
                conn.log.info("refused: %s", error)

    @hookimpl
    def on_readable(self, conn):
        conn.log.info("readable: %r %r", conn.recv(), conn.eof)


class Closes(Tells):
    # When it is told to go on, closes one of the sides of a relay whose source says nothing more.
    @hookimpl
    def on_readable(self, conn):
        what = conn.recv().decode()
        if conn.state is not None:
            self.act(*conn.state)
        if not what or conn.state is not None:
            return
        up = conn.connect("unix:peer.sock", on_readable=lambda up: None, on_close=lambda up, e: None)
        up.relay_to(conn, done=lambda moved: conn.log.info("%s: moved %d", what, moved))
        conn.state = what, conn, up

    def act(self, what, conn, up):
        if what == "target":
            conn.close("target")
        elif what == "source":
            up.close("source")
            conn.call_later(0.05, lambda: conn.close("source"))
        elif what == "aborted":
            up.abort()
            conn.call_later(0.05, lambda: conn.close("aborted"))
        else:
            raise RuntimeError(what)


class Tooclosed(Tells):
    # To and from what is closed already.
    @hookimpl
    def on_readable(self, conn):
        up = conn.connect("unix:echo.sock", on_readable=lambda up: None)
        up.abort()
        conn.call_later(0.05, lambda: self.relay(conn, up))

    def relay(self, conn, up):
        conn.unread(b"kept")
        conn.relay_to(up, done=lambda moved: conn.send(b"to %d;" % moved))
        up.relay_to(conn, done=lambda moved: conn.send(b"from %d;" % moved))
        conn.call_later(0.05, lambda: conn.send(conn.recv() + b"\n"))


class Raises(Tells):
    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        try:
            conn.relay_to(conn, limit=-1)
        except ValueError as error:
            conn.log.info("refused: %s", error)
        up = conn.connect("unix:echo.sock", on_readable=lambda up: None)
        conn.relay_to(up, limit=0, done=self.fail)

    def fail(self, moved):
        raise LookupError("in done")


class Self(Tells):
    # An echo at the kernel's speed.
    @hookimpl
    def on_connection_init(self, conn):
        conn.relay_to(conn)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("relay")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    plain = "ping cat catshared catlate limited peer closes tooclosed raises self"
    with served(folder, PLUGINS, *map(listener, plain.split()), listener("echo", bind="unix:echo.sock")) as running:
        yield running


@contextmanager
def upstream(folder: Path) -> Iterator[socket.socket]:
    """The socket that the plugins ``peer`` and ``closes`` connect to."""
    path = folder / "peer.sock"
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.bind(str(path))
        sock.listen()
        try:
            yield sock
        finally:
            path.unlink()


def accept(sock: socket.socket) -> socket.socket:
    connection, _ = sock.accept()
    connection.settimeout(30)
    return connection


def round_trip(server: ServerProcess, name: str, data: bytes) -> bytes:
    """What comes back of the data, to a client that sends and receives at the same time."""
    with server.connect(name) as sock:

        def send() -> None:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        try:
            return receive_all(sock)
        finally:
            sender.join()


@pytest.mark.parametrize("name", ["cat", "catshared", "self"])
@pytest.mark.parametrize("size", [0, 1, 5_000_000])
def test_everything_comes_through(server: ServerProcess, name: str, size: int) -> None:
    after = len(server.lines)
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert round_trip(server, name, data) == data
    server.wait_for_line(rf"\b{name} #.*closed: eof", after=after)


def test_output_stays_complete_when_a_program_gets_a_connection_that_is_being_relayed(server: ServerProcess) -> None:
    with server.connect("catlate") as sock:
        sock.sendall(b"12345" + b"abc")
        select.select([sock], [], [], 30)
        sock.sendall(b"def")
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == bytes(3_000_000) + b"abcdef"


@pytest.mark.parametrize("size", [0, 3, 300_000])
@pytest.mark.parametrize("together", [True, False])
def test_a_limit_is_kept_whatever_is_in_the_buffer(server: ServerProcess, size: int, together: bool) -> None:
    with server.connect("limited") as sock:
        data = b"y" * size
        if together:
            sock.sendall(b"%d\n%srest\nabc" % (size, data))
        else:
            sock.sendall(b"%d\n" % size)
            sock.sendall(data)
            select.select([sock], [], [], 30)
            sock.sendall(b"rest\nabc")
        expected = b"moved %d;rest:abc" % size
        # What has been relayed comes back by itself, before, between or after.
        answer = receive_exactly(sock, size + len(expected))
        assert answer.replace(b"y", b"") == expected
        assert answer.count(b"y") == size


def test_fewer_bytes_than_the_limit(server: ServerProcess) -> None:
    assert sorted(server.exchange("limited", b"10\nabc")) == sorted(b"abcmoved 3;")


def test_both_ways_between_sockets(server: ServerProcess, folder: Path) -> None:
    after = len(server.lines)
    with upstream(folder) as sock, server.connect("peer") as client, accept(sock) as peer:
        client.sendall(b"hello")
        assert receive_exactly(peer, 5) == b"hello"
        peer.sendall(b"world!")
        assert receive_exactly(client, 6) == b"world!"
        client.shutdown(socket.SHUT_WR)
        server.wait_for_line("up moved 5", after=after)
        server.wait_for_line("readable: b'' True", after=after)  # the caller with `done` decides what the end means
        peer.close()
        server.wait_for_line("down moved 6", after=after)
        server.wait_for_line("upstream closed: None", after=after)
        assert receive_all(client) == b""
    text = "\n".join(server.lines[after:])
    assert text.count("refused: what arrives on this stream is being relayed") == 2


def test_a_target_that_dies_ends_the_relay(server: ServerProcess, folder: Path) -> None:
    after = len(server.lines)
    with upstream(folder) as sock, server.connect("peer") as client:
        with accept(sock) as peer:
            client.sendall(b"hello")
            peer.recv(1, socket.MSG_PEEK)
        # It has closed with input unread: of a unix socket, that is a reset.
        server.wait_for_line("up moved 5", after=after)
        server.wait_for_line(r"upstream closed: (ConnectionReset|BrokenPipe)", after=after)
        assert receive_all(client) == b""


def test_a_source_that_dies_ends_the_relay(server: ServerProcess, folder: Path) -> None:
    after = len(server.lines)
    with upstream(folder) as sock, server.connect("peer") as client, accept(sock) as peer:
        client.sendall(b"hello")
        assert receive_exactly(peer, 5) == b"hello"
        reset(client)
        server.wait_for_line("up moved 5", after=after)
        server.wait_for_line("peer #.*closed: reset", after=after)
        server.wait_for_line("upstream closed: None", after=after)


def test_a_slow_target_slows_the_source_down(server: ServerProcess, folder: Path) -> None:
    with upstream(folder) as sock, server.connect("peer") as client, accept(sock) as peer:
        client.setblocking(False)
        sent, quiet = 0, 0
        while quiet < 20:  # until the server takes nothing more
            try:
                sent += client.send(bytes(65536))
                quiet = 0
            except BlockingIOError:
                quiet += not select.select([], [client], [], 0.02)[1]
            assert sent < 50_000_000
        assert turns(server) < 50
        client.setblocking(True)
        client.shutdown(socket.SHUT_WR)
        assert len(receive_exactly(peer, sent)) == sent


@pytest.mark.parametrize("what", ["target", "source", "aborted", "fault"])
def test_a_silent_relay_does_not_keep_its_sides_from_closing(server: ServerProcess, folder: Path, what: str) -> None:
    after = len(server.lines)
    with upstream(folder) as sock, server.connect("closes") as client:
        client.sendall(what.encode())
        with accept(sock) as peer:
            peer.sendall(b"before")
            assert receive_exactly(client, 6) == b"before"
            client.sendall(b"go on")
            assert receive_all(client) == b""
    server.wait_for_line(f"{what}: moved 6", after=after)
    reason = "plugin failed" if what == "fault" else what
    server.wait_for_line(f"closes #.*closed: {reason}$", after=after)


def test_a_relay_to_or_from_a_closed_stream_is_over_at_once(server: ServerProcess) -> None:
    with server.connect("tooclosed") as sock:
        sock.sendall(b"x")
        assert receive_line(sock) == b"to 0;from 0;keptx\n"


def test_a_fault_in_done_closes_the_connection(server: ServerProcess) -> None:
    after = len(server.lines)
    assert server.exchange("raises", b"x", finish=False) == b""
    server.wait_for_line("plugin 'raises' failed in done, connection #", after=after)
    server.wait_for_line("LookupError: in done", after=after)
    server.wait_for_line("refused: the limit of a relay can't be negative", after=after)
    with server.connect("ping") as sock:
        assert ask(sock, b"alive") == b"alive"
