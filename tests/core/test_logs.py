"""The log of a whole server whose reader is stuck or gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.puppet import install_puppet, wait_listening
from tests.helpers.server import receive_line


@contextmanager
def running(tmp_path: Path, stderr: int) -> Iterator[subprocess.Popen[bytes]]:
    site = install_puppet(tmp_path / "site")
    (tmp_path / "poolsrv.toml").write_text(
        '[pool]\nworkers = 2\n[listeners.puppet]\nbind = "unix:s"\nhandler = "puppet"\n'
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "poolsrv", "--config", "poolsrv.toml"],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(site)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )
    try:
        wait_listening(tmp_path / "s")
        yield process
    finally:
        process.kill()
        process.wait()


def ask(tmp_path: Path, question: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(tmp_path / "s"))
        sock.sendall(question)
        try:
            return receive_line(sock)
        except ConnectionResetError:
            return b""


def kill_workers(tmp_path: Path, times: int) -> None:
    """Each death is in the log, and so is the worker that follows."""
    for _ in range(times):
        assert ask(tmp_path, b"kill 9\n") == b""
        assert ask(tmp_path, b"pid\n")


def stop(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(30)


def stderr_pair(kind: str) -> tuple[int, int]:
    if kind == "pipe":
        return os.pipe()
    left, right = socket.socketpair()
    return left.detach(), right.detach()


def fill(fd: int, kind: str) -> None:
    """Write until it takes no more bytes."""
    os.set_blocking(fd, False)
    for size in (4096, 1):
        try:
            while True:
                os.write(fd, bytes(size))
        except BlockingIOError:
            pass
    os.set_blocking(fd, True)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_reader_that_is_gone_ends_nothing(tmp_path: Path, kind: str) -> None:
    reader, writer = stderr_pair(kind)
    with running(tmp_path, writer) as process:
        os.close(writer)
        os.close(reader)
        kill_workers(tmp_path, 3)
        assert stop(process) == 0


@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_a_reader_that_is_stuck_holds_up_nothing_and_is_told_what_it_missed(tmp_path: Path, kind: str) -> None:
    reader, writer = stderr_pair(kind)
    with running(tmp_path, writer) as process:
        assert ask(tmp_path, b"pid\n")
        fill(writer, kind)
        os.close(writer)
        kill_workers(tmp_path, 3)
        os.read(reader, 1 << 20)  # it reads again: the next line has room, and says how many were lost
        text = b""
        while b"are lost" not in text:
            kill_workers(tmp_path, 1)
            text += os.read(reader, 1 << 20)
        assert b"(lines that nobody has read in time, and are lost: " in text
        assert stop(process) == 0
    os.close(reader)


def test_the_starters_own_descriptor_stays_as_it_is(tmp_path: Path) -> None:
    """O_NONBLOCK on the terminal that the server shares with a shell would break the shell."""
    reader, writer = os.pipe()
    with running(tmp_path, writer) as process:
        assert ask(tmp_path, b"pid\n")
        assert os.get_blocking(writer)
        assert stop(process) == 0
    os.close(reader)
    os.close(writer)
