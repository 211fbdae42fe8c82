"""A plugin that calls a library which blocks, in the worker's thread pool."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.helpers.plugins import ask, listener, served
from tests.helpers.server import TIMEOUT, ServerProcess, receive_all, receive_line

pytestmark = pytest.mark.server

PLUGINS = r"""
class Reads:
    # Answers with what is in a file: here a FIFO, whose reader blocks until there is a writer.
    @hookimpl
    def on_readable(self, conn):
        line = conn.recv_line()
        if line is not None:
            conn.pause_reading()  # one at a time
            conn.run_blocking(Path(line.decode().strip()).read_bytes, done=lambda future: self.answer(conn, future))

    def answer(self, conn, future):
        error = future.exception()
        conn.send(future.result() if error is None else error.strerror.encode() + b"\n")
        conn.resume_reading()
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerProcess]:
    with served(tmp_path, PLUGINS, listener("ping"), listener("reads")) as running:
        yield running


def write_where_read(fifos: Iterable[Path]) -> list[Path]:
    """Write its name into each FIFO that has a reader; these."""
    read = []
    for fifo in fifos:
        try:
            writer = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            continue
        with open(writer, "w") as file:
            file.write(f"{fifo.name}\n")
        read.append(fifo)
    return read


def test_others_are_served_meanwhile(server: ServerProcess, tmp_path: Path) -> None:
    fifos = [tmp_path / f"fifo{number}" for number in range(6)]  # more than there are threads
    for fifo in fifos:
        os.mkfifo(fifo)
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(server.connect("reads")) for _ in fifos]
        ping = stack.enter_context(server.connect("ping"))
        for sock, fifo in zip(socks, fifos, strict=True):
            sock.sendall(f"{fifo}\n/nowhere\n".encode())
        assert ask(ping, b"still here") == b"still here"
        waiting, deadline = dict(zip(fifos, socks, strict=True)), time.monotonic() + TIMEOUT
        while waiting:  # threads take them in no certain order
            for fifo in (read := write_where_read(waiting)):
                assert receive_line(waiting.pop(fifo)) == f"{fifo.name}\n".encode()
            assert read or time.monotonic() < deadline, f"nobody reads {waiting}"
            time.sleep(0.005)
        for sock in socks:
            # The next request had to wait, and was not lost.
            assert receive_line(sock) == b"No such file or directory\n"


def test_a_call_holds_the_connection_after_the_end_of_stream(server: ServerProcess, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content\n")
    assert server.exchange("reads", f"{tmp_path}/file\n".encode()) == b"content\n"


def test_the_server_ends_although_a_call_is_under_way(server: ServerProcess, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with server.connect("reads") as sock, server.connect("ping") as ping:
        sock.sendall(f"{fifo}\n".encode())
        assert ask(ping, b"x") == b"x"
        server.process.terminate()
        server.wait_for_line("stopping")
        server.process.terminate()
        with pytest.raises(ConnectionResetError):
            receive_all(sock)
    assert server.wait() == 0
