"""The plugins of the chaos run: one that keeps a journal, one that serves lines, and one that does harm."""

from __future__ import annotations

import os
import time

import msgspec

from poolsrv import Connection, Worker, hookimpl

_journal = -1  # of this worker, for all its listeners
_ballast: list[bytes] = []


class Journal:
    """Notes for each connection which process has it: what the dispatcher and the clients say is compared with this."""

    class Options(msgspec.Struct):
        """:ivar path: the file; each line is one write."""

        path: str

    def __init__(self, options: Options) -> None:
        self._path = options.path

    @hookimpl
    def on_worker_start(self, worker: Worker) -> None:
        global _journal
        if _journal < 0:
            _journal = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    @hookimpl
    def on_connection_init(self, conn: Connection) -> None:
        _note(f"open {conn.id} {conn.listener} {conn.peer[0]}:{conn.peer[1]}")

    @hookimpl
    def on_connection_close(self, conn: Connection, reason: str) -> None:
        _note(f"close {conn.id} {conn.listener} {reason}")


def _note(text: str) -> None:
    os.write(_journal, f"{time.monotonic():.6f} {os.getpid()} {text}\n".encode())


class Lines:
    """Answers each line in capitals, after this worker's pid."""

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        while (line := conn.recv_line()) is not None:
            conn.send(b"%d %s" % (os.getpid(), line.upper()))


class Imp:
    """Does to its worker what a client says, one word a line."""

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        while (line := conn.recv_line()) is not None:
            word, _, argument = line.decode().strip().partition(" ")
            conn.send(b"%d\n" % os.getpid())
            getattr(self, word)(conn, argument)

    def fail(self, conn: Connection, argument: str) -> None:
        """Raise, in a hook."""
        raise RuntimeError("an imp")

    def fail_later(self, conn: Connection, argument: str) -> None:
        """Raise, in a callback."""
        conn.call_later(0.01, _fail)

    def block(self, conn: Connection, seconds: str) -> None:
        """Hold up the whole worker."""
        time.sleep(float(seconds))
        conn.send(b"done\n")

    def leave(self, conn: Connection, status: str) -> None:
        """End the worker from inside. The journal says so, for a client may not learn the pid."""
        _note(f"exit {status} {conn.listener}")
        os._exit(int(status))

    def fork(self, conn: Connection, argument: str) -> None:
        """Let a copy of the worker come back to the server, which must end it."""
        if os.fork():
            conn.send(b"done\n")

    def open(self, conn: Connection, count: str) -> None:
        """Hold descriptors for a second."""
        held = [os.open(os.devnull, os.O_RDONLY) for _ in range(int(count))]
        conn.worker.call_later(1.0, lambda: _close(held))
        conn.send(b"done\n")

    def grow(self, conn: Connection, megabytes: str) -> None:
        """Use memory for good, as a leak does."""
        _ballast.append(os.urandom(1 << 20) * int(megabytes))
        conn.send(b"done\n")


def _fail() -> None:
    raise RuntimeError("an imp, later")


def _close(held: list[int]) -> None:
    for descriptor in held:
        os.close(descriptor)
