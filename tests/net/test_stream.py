"""Reading, writing and closing, as a plugin and its client see them, on whole servers."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator

import pytest

from poolsrv.net.stream import LINGER_LOOK
from tests.helpers.plugins import ask, closed, listener, nothing_to_read, reset, served, turns
from tests.helpers.server import ServerProcess, receive_all, receive_exactly, receive_line, wait_until

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("settled")]

PLUGINS = r"""
import fcntl, termios


class Pieces(Tells):
    # Everything that is there, in pieces of at most 4 bytes.
    @hookimpl
    def on_readable(self, conn):
        while piece := conn.recv(4):
            conn.send(piece + b"|")
        conn.send(b"%r" % conn.recv() + (b"eof" if conn.eof else b""))


class Lines(Tells):
    @hookimpl
    def on_connection_init(self, conn):
        conn.state = []

    @hookimpl
    def on_readable(self, conn):
        conn.state.append(conn.eof)
        try:
            while (line := conn.recv_line(10)) is not None:
                conn.send(b"<%s>" % line)
        except LineTooLong as error:
            conn.send(b"%d %s" % (error.limit, conn.recv()))
            conn.close("too long")
        if conn.eof:
            conn.send(b" %d" % conn.state.count(True))


class Longlines(Tells):
    @hookimpl
    def on_readable(self, conn):
        line = conn.recv_line(1 << 20)
        if line is not None:
            conn.send(b"%d" % len(line))


class Calls(Tells):
    # Answers each call with its number and what is in the buffer.
    @hookimpl
    def on_connection_init(self, conn):
        conn.state = 0

    @hookimpl
    def on_readable(self, conn):
        conn.state += 1
        conn.send(b"%d %s\n" % (conn.state, conn.peek()))
        data = conn.recv()
        if data.endswith(b"look"):
            conn.unread(data)
        elif data.endswith(b"half"):
            conn.unread(bytearray(data[-2:]))
            conn.resume_reading()
            conn.resume_reading()


class Paused(Tells):
    paused = []
    half_close = "finish"

    @hookimpl
    def on_readable(self, conn):
        data = conn.recv()
        if data == b"resume":
            while self.paused:
                self.paused.pop().resume_reading()
        conn.send(data or b"eof")
        if data == b"pause":
            conn.pause_reading()
            self.paused.append(conn)


class Pausedabort(Paused):
    half_close = "abort"


class Bulk(Tells):
    # Begins to read once 200,000 bytes are there; after the first call it does what the listener's name says.
    @hookimpl
    def on_connection_init(self, conn):
        conn._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        conn.state = []
        conn.pause_reading()
        self.look(conn)

    def look(self, conn):
        if int.from_bytes(fcntl.ioctl(conn._fd, termios.FIONREAD, bytes(4)), sys.byteorder) < 200000:
            conn.call_later(0.005, lambda: self.look(conn))
        else:
            conn.resume_reading()

    @hookimpl
    def on_readable(self, conn):
        conn.state.append(len(conn.recv()))
        if len(conn.state) == 1:
            conn.call_later(0, lambda: (conn.send(b"%r\n" % conn.state), conn.close("told")))
            if conn.listener == "bulkpaused":
                conn.pause_reading()
            elif conn.listener == "bulkfails":
                raise RuntimeError("enough")


class Held(Tells):
    # Goes on after the end of stream, until it has said what it has to say.
    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        if conn.eof:
            conn.hold()
            conn.call_later(0.05, lambda: self.finish(conn))

    def finish(self, conn):
        conn.send(b"still here")
        conn.release()


class Heldforever(Tells):
    @hookimpl
    def on_connection_init(self, conn):
        conn.hold()

    @hookimpl
    def on_readable(self, conn):
        conn.send(conn.recv() or b"eof")


class Ticker(Tells):
    # Sends for ever.
    @hookimpl
    def on_connection_init(self, conn):
        conn.hold()
        self.tick(conn)

    @hookimpl
    def on_readable(self, conn):
        conn.recv()

    def tick(self, conn):
        conn.send(b"tick")
        conn.call_later(0.01, lambda: self.tick(conn))


class Mutates(Tells):
    # Changes the object after it has been given to send.
    @hookimpl
    def on_readable(self, conn):
        kind = conn.recv()
        content = bytearray(bytes(range(250)) * 20000)
        if kind == b"memoryview":
            conn.send(memoryview(content))
        elif kind == b"words":
            conn.send(memoryview(content).cast("H"))
        else:
            conn.send(content)
        content[:] = bytes(len(content))
        content.clear()
        conn.send(b"")
        conn.close()


class Congests(Tells):
    @hookimpl
    def on_connection_init(self, conn):
        conn.state = []

    @hookimpl
    def on_readable(self, conn):
        data = conn.recv()
        if data != b"fill":
            conn.log.info("read %s at %r", data.decode(), conn.state)
            return
        # The marks are in bytes kept: first fill the kernel's buffers.
        while not conn.unsent:
            conn.send(bytes(65536))
        conn.send(bytes(262144 - conn.unsent))
        conn.state.append((conn.unsent, conn.congested))
        conn.send(b"x")
        conn.state.append((conn.unsent, conn.congested))
        conn.log.info("filled %d", conn.bytes_out + conn.unsent)

    @hookimpl
    def on_writable(self, conn):
        conn.state.append(("writable", conn.unsent < 65536, conn.congested))


class Sendseof(Tells):
    @hookimpl
    def on_connection_init(self, conn):
        conn.send(bytes(5000000))
        conn.send_eof()
        conn.send_eof()

    @hookimpl
    def on_readable(self, conn):
        data = conn.recv()
        if data:
            conn.log.info("after its own end: %s", data.decode())


class Sendsafter(Tells):
    @hookimpl
    def on_readable(self, conn):
        conn.send_eof()
        conn.send(b"more")


class Big(Tells):
    @hookimpl
    def on_readable(self, conn):
        conn.send(bytes(20_000_000))
        conn.close("all said")
        conn.send(b"not sent")


class Goodbye(Tells):
    @hookimpl
    def on_readable(self, conn):
        if conn.recv(1) == b"a":
            conn.abort("no more")
        else:
            conn.send(b"bye")
            conn.close("no more")
        # A closed connection is inert.
        conn.unread(b"again")
        conn.send(b"more")
        conn.send_eof()
        conn.close("another reason")
        conn.pause_reading()
        conn.resume_reading()
        try:
            conn.spawn(["true"])
        except OSError as error:
            conn.log.info("inert: %r %r %r %s", conn.recv(), conn.peek(), conn.recv_line(), error.strerror)


class Hoards:
    # Looks, and takes nothing.
    @hookimpl
    def on_readable(self, conn):
        conn.log.info("%d in the buffer", len(conn.peek()))
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    plain = "pieces lines longlines calls paused pausedabort held ticker mutates congests sendseof sendsafter goodbye"
    with served(
        tmp_path_factory.mktemp("stream"),
        PLUGINS,
        *map(listener, plain.split()),
        listener("ping"),
        *(listener(name, "bulk") for name in ("bulk", "bulkpaused", "bulkfails")),
        listener("heldforever", idle_timeout=0),
        listener("hoards", idle_timeout=0),
        listener("unixpaused", "paused", "unix:paused.sock", idle_timeout=0),
        listener("unixticker", "ticker", "unix:ticker.sock"),
        listener("unixgoodbye", "goodbye", "unix:goodbye.sock"),
        listener("big", max_unsent=32_000_000),
        listener("little", "big", max_unsent=1_000_000),
        listener("heldabort", "held", half_close="abort"),
        listener("bigabort", "big", half_close="abort", max_unsent=32_000_000),
    ) as running:
        yield running


def buffered(server: ServerProcess, after: int) -> list[int]:
    return [int(size) for size in re.findall(r"(\d+) in the buffer", "\n".join(server.lines[after:]))]


# -- reading


def test_recv_takes_at_most_its_limit_and_is_empty_when_nothing_is_there(server: ServerProcess) -> None:
    with server.connect("pieces") as sock:
        sock.sendall(b"abcdefghij")
        assert receive_exactly(sock, 16) == b"abcd|efgh|ij|b''"
        sock.sendall(b"1234")
        assert receive_exactly(sock, 8) == b"1234|b''"
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b"b''eof"


TEXT = b"ab\r\n\ncd\n456789abc\nlast"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 100])
def test_lines_are_the_same_however_they_arrive(server: ServerProcess, size: int) -> None:
    with server.connect("lines") as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(TEXT), size):
            sock.sendall(TEXT[start : start + size])
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b"<ab\r\n><\n><cd\n><456789abc\n><last> 1"


def test_the_last_line_has_come_when_the_end_of_stream_has(server: ServerProcess) -> None:
    with server.connect("lines") as sock:
        assert ask(sock, b"1") == b"<1"
        sock.sendall(b"last")
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b"><last> 1"


def test_end_of_stream_is_told_once_without_bytes_too(server: ServerProcess) -> None:
    assert server.exchange("lines", b"") == b" 1"
    assert server.exchange("lines", b"a\n") == b"<a\n> 1"


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"123456789\n", b"<123456789\n> 1"),
        (b"123456789", b"<123456789> 1"),
        (b"1234567890\n", b"10 1234567890\n"),
        (b"a\n1234567890", b"<a\n>10 1234567890"),
    ],
)
def test_a_line_that_is_too_long_stays_in_the_buffer(server: ServerProcess, sent: bytes, answer: bytes) -> None:
    assert server.exchange("lines", sent) == answer


def test_a_line_may_be_longer_than_what_is_read_ahead(server: ServerProcess) -> None:
    assert server.exchange("longlines", b"x" * 1_000_000 + b"\n") == b"1000001"


def test_bytes_given_back_cause_no_call_by_themselves(server: ServerProcess) -> None:
    with server.connect("calls") as sock:
        sock.sendall(b"look")
        assert receive_line(sock) == b"1 look\n"
        sock.sendall(b"here")
        assert receive_line(sock) == b"2 lookhere\n"
        sock.sendall(b"look")
        assert receive_line(sock) == b"3 look\n"
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b"4 look\n"


def test_resume_reading_calls_once_for_what_is_in_the_buffer(server: ServerProcess) -> None:
    with server.connect("calls") as sock:
        sock.sendall(b"half")
        assert receive_line(sock) == b"1 half\n"
        assert receive_line(sock) == b"2 lf\n"
        assert ask(sock, b"x") == b"3 x"


@pytest.mark.parametrize(
    ("name", "pieces"), [("bulk", b"[65536, 65536, 65536, 3392]"), ("bulkpaused", b"[65536]"), ("bulkfails", b"")]
)
def test_after_a_full_read_it_is_read_on_while_the_plugin_wants_more(
    server: ServerProcess, name: str, pieces: bytes
) -> None:
    with server.connect(name) as sock:
        sock.sendall(bytes(200_000))
        assert receive_line(sock).rstrip(b"\n") == pieces


def test_nothing_is_read_while_paused(server: ServerProcess) -> None:
    with server.connect("paused") as sock, server.connect("paused") as other:
        sock.sendall(b"pause")
        assert receive_exactly(sock, 5) == b"pause"
        sock.sendall(b"more")
        other.sendall(b"turn")
        assert receive_exactly(other, 4) == b"turn"
        assert nothing_to_read(sock)
        other.sendall(b"resume")
        assert receive_exactly(other, 6) == b"resume"
        assert receive_exactly(sock, 4) == b"more"


@pytest.mark.parametrize("name", ["paused", "unixpaused"])
def test_a_reset_ends_the_connection_while_paused_too(server: ServerProcess, name: str) -> None:
    after = len(server.lines)
    with server.connect(name) as sock:
        sock.sendall(b"pause")
        if name == "paused":
            assert receive_exactly(sock, 5) == b"pause"
            reset(sock)
        else:
            # Of a unix socket a reset is a close with input in it.
            sock.recv(1, socket.MSG_PEEK)
    assert closed(server, name, after) == "reset"


@pytest.mark.parametrize("name", ["ticker", "unixticker"])
def test_sending_to_a_client_that_is_gone_is_a_reset_and_no_fault(server: ServerProcess, name: str) -> None:
    after = len(server.lines)
    with server.connect(name) as sock:
        assert receive_exactly(sock, 8) == b"ticktick"
    assert closed(server, name, after) == "reset"
    assert not any("failed in" in line for line in server.lines[after:])


# -- a client that has finished sending


def test_finish_goes_on_writing_after_the_end_of_stream(server: ServerProcess) -> None:
    assert server.exchange("held", b"x") == b"still here"


def test_abort_ends_the_connection_at_the_end_of_stream(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("heldabort") as sock:
        sock.sendall(b"x")
        sock.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError):
            receive_all(sock)
    assert closed(server, "heldabort", after) == "client closed"


def test_abort_ends_the_connection_while_paused_too(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("pausedabort") as sock:
        sock.sendall(b"pause")
        assert receive_exactly(sock, 5) == b"pause"
        sock.shutdown(socket.SHUT_WR)
        assert closed(server, "pausedabort", after) == "client closed"


def test_abort_does_not_cut_off_an_answer_that_is_complete(server: ServerProcess) -> None:
    assert server.exchange("pausedabort", b"hello") == b"helloeof"


def test_abort_ends_the_connection_while_its_last_bytes_are_kept(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("bigabort") as sock:
        sock.sendall(b"x")
        assert receive_exactly(sock, 1) == b"\0"
        sock.shutdown(socket.SHUT_WR)
        # close() was called before: what is kept is still written.
        assert len(receive_all(sock)) == 20_000_000 - 1
    assert closed(server, "bigabort", after) == "all said"


# -- states in which nothing is to be done


def test_nobody_spins_after_the_end_of_stream(server: ServerProcess) -> None:
    with server.connect("heldforever") as sock:
        sock.shutdown(socket.SHUT_WR)
        assert receive_exactly(sock, 3) == b"eof"
        assert turns(server) < 50
        reset(sock)


@pytest.mark.parametrize("name", ["paused", "unixpaused"])
def test_nobody_spins_when_a_paused_client_has_closed(server: ServerProcess, name: str) -> None:
    after = len(server.lines)
    with server.connect(name) as sock, server.connect(name) as other:
        sock.sendall(b"pause")
        assert receive_exactly(sock, 5) == b"pause"
        sock.sendall(b"more")
        sock.close()
        assert turns(server) < 50
        other.sendall(b"resume")
        assert receive_exactly(other, 6) == b"resume"
        # What it had sent is read, then its end; then writing fails.
        assert closed(server, name, after) in ("reset", "eof")


def test_nobody_spins_when_the_buffer_is_full(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("hoards") as sock:
        sock.setblocking(False)
        while max(buffered(server, after), default=0) < 262144:
            try:
                sock.send(bytes(65536))
            except BlockingIOError:
                pass  # the server has yet to read, or to say that it has
        assert turns(server) < 50
        sizes = buffered(server, after)
        assert 262144 <= max(sizes) < 262144 + 65536
        reset(sock)


def test_nobody_spins_while_congested(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("congests") as sock:
        sock.sendall(b"fill")
        server.wait_for_line("filled", after=after)
        sock.sendall(b"more")
        assert turns(server) < 50
        reset(sock)


def test_nobody_spins_while_lingering(server: ServerProcess) -> None:
    with server.connect("goodbye") as sock:
        sock.sendall(b"x")
        assert receive_all(sock) == b"bye"
        assert turns(server) < 50


# -- writing


@pytest.mark.parametrize("kind", [b"memoryview", b"words", b"bytearray"])
def test_what_is_sent_is_what_it_was_when_send_was_called(server: ServerProcess, kind: bytes) -> None:
    with server.connect("mutates") as sock:
        sock.sendall(kind)
        assert receive_all(sock) == bytes(range(250)) * 20000


def test_a_client_that_does_not_read_is_aborted_past_max_unsent(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("little") as sock:
        sock.sendall(b"x")
        assert closed(server, "little", after) == "max_unsent exceeded"
        with pytest.raises(ConnectionResetError):
            receive_all(sock)


def test_congestion_begins_above_one_mark_and_ends_below_the_other(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("congests") as sock:
        sock.sendall(b"fill")
        sent = int(server.wait_for_line(r"filled (\d+)", after=after).group(1))
        sock.sendall(b"more")  # not read while congested
        assert len(receive_exactly(sock, sent)) == sent
        at = server.wait_for_line(r"read more at (.*)", after=after).group(1)
    assert at == "[(262144, False), (262145, True), ('writable', True, False)]"


def test_send_eof_comes_after_what_is_kept_and_receiving_goes_on(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("sendseof") as sock:
        assert len(receive_all(sock)) == 5_000_000
        sock.sendall(b"hello")
        server.wait_for_line("after its own end: hello", after=after)
    assert closed(server, "sendseof", after) == "eof"


def test_send_after_send_eof_is_an_error_of_the_plugin(server: ServerProcess) -> None:
    after = len(server.lines)
    assert server.exchange("sendsafter", b"x") == b""
    server.wait_for_line("plugin 'sendsafter' failed in on_readable", after=after)
    server.wait_for_line(r"ValueError: send\(\) after send_eof\(\)", after=after)


# -- closing


def test_close_writes_what_is_kept_to_a_slow_reader(server: ServerProcess) -> None:
    after = len(server.lines)
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(30)
        host, _, port = server.addresses("big")[0].rpartition(":")
        sock.connect((host, int(port)))
        sock.sendall(b"x")
        received = 0
        while piece := sock.recv(100_000):
            received += len(piece)
        assert received == 20_000_000
    assert closed(server, "big", after) == "all said"


def still_sends(server: ServerProcess, name: str) -> bool:
    """Send on after the server has closed; False where this machine was too slow to go on all the time."""
    pauses = []
    with server.connect(name) as sock, server.connect("ping") as other:
        try:
            for _ in range(100):
                began = time.monotonic()
                sock.sendall(bytes(10_000))
                ask(other, b"turn")  # the server has seen it, and would have answered with a reset
                pauses.append(time.monotonic() - began)
            assert receive_all(sock) == b"bye"
        except ConnectionError:
            if max([*pauses, time.monotonic() - began]) < LINGER_LOOK / 2:
                raise
            return False
    return True


@pytest.mark.parametrize("name", ["goodbye", "unixgoodbye"])
def test_a_client_that_still_sends_gets_the_last_answer(server: ServerProcess, name: str) -> None:
    wait_until(lambda: still_sends(server, name), "a client that goes on sending")


def test_a_closed_connection_is_inert(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("goodbye") as sock:
        sock.sendall(b"xyz")
        assert receive_all(sock) == b"bye"
    assert server.wait_for_line("inert: (.*)", after=after).group(1) == "b'' b'' None the connection is closed"
    assert closed(server, "goodbye", after) == "no more"


def test_abort_sends_a_reset(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("goodbye") as sock:
        sock.sendall(b"abc")
        with pytest.raises(ConnectionResetError):
            receive_all(sock)
    assert closed(server, "goodbye", after) == "no more"


def test_a_client_that_never_closes_is_let_go(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("goodbye") as sock:
        sock.sendall(b"x")
        assert receive_all(sock) == b"bye"
        assert closed(server, "goodbye", after) == "no more"  # after the two seconds of lingering
