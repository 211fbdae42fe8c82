"""The control socket of a server, and the command that asks it."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.helpers.command_line import invoke
from tests.helpers.server import TIMEOUT, ServerProcess, receive_line

POOL = '[pool]\nworkers = 2\ngraceful_timeout = 5.0\ncontrol = "run/ctl"\n'
PUPPET = '[listeners.puppet]\nbind = "127.0.0.1:0"\nhandler = "puppet"\n'
ECHO = '[listeners.hello]\nbind = "127.0.0.1:0"\nhandler = "echo"\n'


def dial(server: ServerProcess) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(TIMEOUT)
    sock.connect(str(server.folder / "run" / "ctl"))
    return sock


def query(server: ServerProcess, question: bytes = b"status\n") -> Any:
    with dial(server) as sock:
        sock.sendall(question)
        return json.loads(receive_line_of(sock))


def receive_line_of(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n") and (piece := sock.recv(65536)):
        line += piece
    return line


def command(
    config: Path, *arguments: str, name: str = "status", **environment: str
) -> subprocess.CompletedProcess[str]:
    return invoke(name, "--config", config, *arguments, cwd=Path(), **environment)


def ask_puppet(sock: socket.socket, line: bytes) -> bytes:
    sock.sendall(line + b"\n")
    return receive_line(sock).rstrip(b"\n")


@contextmanager
def echo_server(folder: Path) -> Iterator[ServerProcess]:
    """A server that echoes, with a control socket."""
    with ServerProcess(POOL + ECHO, folder) as server:
        yield server.wait_ready()
