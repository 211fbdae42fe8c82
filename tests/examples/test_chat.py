"""A chat: all clients meet in one worker (``workers = 1`` on the listener), and speak in lines."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest

from tests.helpers.plugins import ask, listener, reset, served
from tests.helpers.server import ServerProcess, receive_line

pytestmark = pytest.mark.server

PLUGINS = r"""
class Chat:
    def __init__(self):
        self.members = {}

    @hookimpl
    def on_connection_init(self, conn):
        conn.send(b"Your name?\n")

    @hookimpl
    def on_readable(self, conn):
        try:
            while (line := conn.recv_line(80)) is not None:
                self.says(conn, line.rstrip(b"\r\n"))
        except LineTooLong:
            conn.send(b"Too long.\n")
            conn.close("too long")

    def says(self, conn, text):
        if conn.state is None:
            conn.state = text
            self.members[conn.id] = conn
            self.tell_all(b"* %s is here" % text)
        else:
            self.tell_all(b"%s: %s" % (conn.state, text))

    def tell_all(self, text):
        for member in self.members.values():
            if member.congested:
                member.abort("too slow")  # a client that does not read must not fill the memory
            else:
                member.send(text + b"\n")

    @hookimpl
    def on_connection_close(self, conn, reason):
        if self.members.pop(conn.id, None) is not None:
            self.tell_all(b"* %s has left (%s)" % (conn.state, reason.encode()))

    @hookimpl
    def on_drain(self, conn):
        conn.send(b"* good night\n")
        conn.close("good night")
"""


@pytest.fixture
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with served(
        tmp_path_factory.mktemp("chat"), PLUGINS, listener("chat", workers=1), listener("echo"), pool="workers = 3"
    ) as running:
        yield running


def test_all_meet_in_one_worker(server: ServerProcess) -> None:
    names = [b"ann", b"bob", b"cyd", b"dan"]
    socks = []
    try:
        for name in names:
            sock = server.connect("chat")
            socks.append(sock)
            assert receive_line(sock) == b"Your name?\n"
            assert ask(sock, name) == b"* %s is here" % name
        for position, sock in enumerate(socks):
            for name in names[position + 1 :]:
                assert receive_line(sock) == b"* %s is here\n" % name
        socks[2].sendall(b"good mor")
        socks[1].sendall(b"hello\r\nall\n")
        socks[1].sendall(b"!\n")
        for sock in socks:
            assert [receive_line(sock) for _ in range(3)] == [b"bob: hello\n", b"bob: all\n", b"bob: !\n"]
        socks[2].sendall(b"ning\n")
        for sock in socks:
            assert receive_line(sock) == b"cyd: good morning\n"
        socks[3].close()
        reset(socks[0])
        assert sorted(receive_line(socks[1]) for _ in range(2)) == [
            b"* ann has left (reset)\n",
            b"* dan has left (eof)\n",
        ]
    finally:
        for sock in socks:
            sock.close()


def test_a_line_that_is_too_long_ends_that_connection(server: ServerProcess) -> None:
    with server.connect("chat") as sock:
        sock.sendall(b"x" * 80)
        assert [receive_line(sock) for _ in range(3)] == [b"Your name?\n", b"Too long.\n", b""]


def test_a_client_that_does_not_read_is_aborted(server: ServerProcess) -> None:
    with server.connect("chat") as slow, server.connect("chat") as busy:
        for sock, name in ((slow, b"slow"), (busy, b"busy")):
            receive_line(sock)
            assert ask(sock, name) == b"* %s is here" % name
        file = busy.makefile("rb", buffering=1 << 20)
        with file:
            lines = b"".join(b"%078d\n" % number for number in range(500))
            while True:
                busy.sendall(lines)
                answers = [file.readline() for _ in range(500)]
                if any(answer.startswith(b"* slow has left (too slow)") for answer in answers):
                    break


def test_a_client_that_others_wrote(server: ServerProcess) -> None:
    host, _, port = server.addresses("chat")[0].rpartition(":")
    answer = subprocess.run(
        ["nc", "-N", host, port], input=b"eve\nhello\nlast words", capture_output=True, timeout=30, check=True
    ).stdout
    assert answer == b"Your name?\n* eve is here\neve: hello\neve: last words\n"


def test_at_the_end_everyone_is_told(server: ServerProcess) -> None:
    with server.connect("chat") as sock:
        receive_line(sock)
        assert ask(sock, b"ann") == b"* ann is here"
        server.process.terminate()
        assert [receive_line(sock) for _ in range(2)] == [b"* good night\n", b""]
    assert server.wait() == 0
