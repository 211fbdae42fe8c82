"""A server that runs plugins which a test has written: small, real, in a distribution of their own."""

from __future__ import annotations

import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from poolsrv.core.toml import toml
from tests.helpers.distributions import install
from tests.helpers.server import ServerProcess, receive_line

# Shared by the plugins of most tests: Tells logs how each of its connections ended.
IMPORTS = """
import errno, logging, os, socket, subprocess, sys, threading, time
from pathlib import Path
import msgspec
from poolsrv import PIPE, Child, Connection, LineTooLong, Stream, Worker, hookimpl


class Tells:
    @hookimpl
    def on_connection_close(self, conn, reason):
        conn.log.info("closed: %s", reason)


class Ping:
    # Sends each line back. "turns" gets the number of iterations of the worker's loop in 0.2 seconds. "alone" gets a
    # line in the log, as soon as there is no other connection.
    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            if line == b"turns\\n":
                loop = conn.worker._loop
                before = loop.turns
                conn.call_later(0.2, lambda: conn.send(b"%d\\n" % (loop.turns - before)))
            elif line == b"alone\\n":
                self.wait(conn)
            else:
                conn.send(line)

    def wait(self, conn):
        if sum(len(service.connections) for service in conn._host._owner._services) > 1:
            conn.call_later(0.005, lambda: self.wait(conn))
        else:
            conn.log.info("alone")


"""
_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)


def listener(name: str, handler: str | None = None, bind: str = "127.0.0.1:0", **keys: object) -> str:
    """A listener's table of a config."""
    lines = [f"{key} = {toml(value)}" for key, value in keys.items()]
    return "\n".join([f"[listeners.{name}]", f'bind = "{bind}"', f'handler = "{handler or name}"', *lines, ""])


@contextmanager
def served(folder: Path, module: str, *listeners: str, pool: str = "workers = 1") -> Iterator[ServerProcess]:
    """Run a server in ``folder``. Each class of the module is a plugin, with its name in lower case."""
    site = folder / "site"
    text = IMPORTS + module
    names = _CLASS.findall(text)
    install(site, "under-test", {name.lower(): f"under_test:{name}" for name in names}, text)
    with ServerProcess(f"[pool]\n{pool}\n" + "".join(listeners), folder, paths=(site,)) as server:
        yield server.wait_ready()


def reset(sock: socket.socket) -> None:
    """Close so that the peer sees a reset."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def prompt_client(
    server: ServerProcess, listener: str, data: bytes, seconds: float, finish: bool = False
) -> socket.socket:
    """A client that has sent the data within this time. If the machine was too slow, another client tries again.

    :param finish: whether it has also finished sending.
    """
    for _ in range(100):
        began = time.monotonic()
        sock = server.connect(listener)
        with suppress(OSError):
            sock.sendall(data)
            if finish:
                sock.shutdown(socket.SHUT_WR)
            if time.monotonic() - began < seconds:
                return sock
        sock.close()
    raise AssertionError(f"{data[:100]!r} was too late a hundred times")


def prompt_program(server: ServerProcess, listener: str, data: bytes = b"") -> tuple[socket.socket, bytes]:
    """A client whose program has said something before its listener's timeout, and what: a line. If the machine was too
    slow, another client tries again.
    """
    for _ in range(30):
        sock = server.connect(listener)
        sock.sendall(data)
        with suppress(ConnectionResetError):
            if line := receive_line(sock):
                return sock, line
        sock.close()
    raise AssertionError("the program was too late thirty times")


def ask(sock: socket.socket, line: bytes) -> bytes:
    """Send a line, and return the answer without its end."""
    sock.sendall(line + b"\n")
    return receive_line(sock).rstrip(b"\n")


def nothing_to_read(sock: socket.socket) -> bool:
    """Whether neither bytes nor the end of stream have arrived."""
    return not select.select([sock], [], [], 0)[0]


def turns(server: ServerProcess) -> int:
    """The number of iterations of the worker's loop in 0.2 seconds; a loop that spins makes some 100,000."""
    with server.connect("ping") as sock:
        return int(ask(sock, b"turns"))


def settle(server: ServerProcess) -> None:
    """Wait until the server has closed all other connections and logged that, so that the next test does not see it."""
    with server.connect("ping") as sock:
        sock.sendall(b"alone\n")
        server.wait_for_line(rf"ping #\d+ 127\.0\.0\.1:{sock.getsockname()[1]}: alone")


def closed(server: ServerProcess, listener: str, after: int, sock: socket.socket | None = None) -> str:
    """Why the first connection of a listener was closed, according to the log from line ``after`` on.

    :param sock: the client; None: any. One of `prompt_client` may have had others before it.
    """
    peer = r"\S+" if sock is None else rf"127\.0\.0\.1:{sock.getsockname()[1]}:"
    return server.wait_for_line(rf"\b{listener} #\d+ {peer} closed: (.*)", after=after).group(1)
