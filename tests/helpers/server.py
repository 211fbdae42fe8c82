"""A running server, clients with timeouts, and what /proc tells about processes."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from poolsrv.testing.logged_process import TIMEOUT, LoggedProcess, ServerFailed, descendants_of
from tests.helpers.server_mark import server_starts

__all__ = ["TIMEOUT", "ServerFailed", "descendants_of"]

_READY = re.compile(r" dispatcher\[(\d+)\] ready: ")


class ServerProcess:
    """``poolsrv --config FILE`` in a process of its own, started as a user would.

    A ``with`` statement closes it, also if it never becomes ready.

    :param config: the TOML text; it is written to ``folder/poolsrv.toml``.
    :param paths: folders for PYTHONPATH, with the plugins of a test (see distributions.py).
    :param descriptors: the limit of open descriptors.
    :param prefix: a program with arguments that starts the command that follows them.
    :param program: the server's program with its arguments; None: that of this tree.
    :param arguments: further arguments.
    :param command: what it is started with in place of ``--config FILE``, such as ``("run", "echo")``.
    """

    def __init__(
        self,
        config: str,
        folder: Path,
        *,
        paths: tuple[Path, ...] = (),
        descriptors: int | None = None,
        prefix: tuple[str, ...] = (),
        program: tuple[str, ...] | None = None,
        arguments: tuple[str, ...] = (),
        command: tuple[str, ...] = (),
    ) -> None:
        server_starts()
        self.folder = folder
        self.file = folder / "poolsrv.toml"
        self.file.write_text(config)
        environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, paths)), PYTHONDONTWRITEBYTECODE="1")
        limit = ["prlimit", f"--nofile={descriptors}:{descriptors}"] if descriptors else []
        start = [*limit, *prefix, *(program or (sys.executable, "-m", "poolsrv"))]
        line = [*start, *(command or ("--config", str(self.file))), *arguments]
        self._run = LoggedProcess(line, folder, environment)
        self.process = self._run.process
        self.lines = self._run.lines

    @property
    def log(self) -> str:
        return self._run.log

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_for_line(self, pattern: str, count: int = 1, after: int = 0) -> re.Match[str]:
        """Wait until ``count`` lines of the log match, from line ``after`` on; return the last match."""
        return self._run.wait_for_line(pattern, count=count, after=after)

    def wait_ready(self) -> Self:
        self.wait_for_line(r"\bready\b")
        return self

    def addresses(self, listener: str) -> list[str]:
        """The addresses that a listener is bound to, from the line with ``ready``."""
        return self._run.addresses(listener)

    def connect(self, listener: str, timeout: float = TIMEOUT) -> socket.socket:
        """A client's socket, connected to the first address of a listener.

        Its receive buffer is small. Otherwise the kernel would let it grow until one ``send`` of the server could be
        15 MB, and nothing would ever be congested.
        """
        address = self.addresses(listener)[0]
        if address.startswith("unix:"):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(timeout)
            sock.connect(address.removeprefix("unix:"))
            return sock
        host, _, port = address.rpartition(":")
        sock = socket.socket(socket.AF_INET6 if host.startswith("[") else socket.AF_INET)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 131072)
        sock.settimeout(timeout)
        try:
            sock.connect((host.strip("[]"), int(port)))
        except OSError:
            sock.close()
            raise
        return sock

    def exchange(self, listener: str, data: bytes, finish: bool = True) -> bytes:
        """Send, finish sending, and receive until the server closes."""
        with self.connect(listener) as sock:
            sock.sendall(data)
            if finish:
                sock.shutdown(socket.SHUT_WR)
            return receive_all(sock)

    @property
    def dispatcher_pid(self) -> int:
        """The dispatcher of the pool that was the last to serve."""
        pids = [match[1] for line in list(self.lines) if (match := _READY.search(line))]
        return int(pids[-1])

    def worker_pids(self) -> list[int]:
        """The pids of the workers that run now, without what the dispatcher has adopted from dead ones."""
        return [pid for pid in children_of(self.dispatcher_pid) if is_worker_of(pid, self.dispatcher_pid)]

    def reload(self) -> None:
        """Send HUP, and wait until the new pool serves and the old one no longer accepts."""
        after = len(self.lines)
        self.signal(signal.SIGHUP)
        self.wait_for_line(r"supervisor\[\d+\] generation \d+ \(pid \d+\) serves", after=after)
        self.wait_for_line(r" ready: ", after=after)
        self.wait_for_line(r" reload: stopping", after=after)

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        """Wait for the server's end, and return its exit code."""
        code = self.process.wait(TIMEOUT)
        self._run.join(TIMEOUT)
        return code

    def stop(self) -> int:
        """Send TERM, and return the exit code."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
        return self.wait()

    def close(self) -> None:
        """Kill the server and all its descendants, whatever has happened."""
        self._run.kill()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def receive_all(sock: socket.socket) -> bytes:
    """Receive until end of stream."""
    pieces = []
    while piece := sock.recv(65536):
        pieces.append(piece)
    return b"".join(pieces)


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """Receive this many bytes, or fewer at end of stream."""
    pieces = []
    while size and (piece := sock.recv(min(size, 65536))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


def receive_line(sock: socket.socket) -> bytes:
    """Receive one line with its end, byte by byte, so that nothing after it is taken."""
    line = b""
    while not line.endswith(b"\n") and (piece := sock.recv(1)):
        line += piece
    return line


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Poll for a condition without a handshake, such as the end of another process.

    The longer it takes, the longer are the pauses: to look takes CPU, from what is waited for too.
    """
    began = time.monotonic()
    while not condition():
        waited = time.monotonic() - began
        assert waited < TIMEOUT, f"waited in vain: {what}"
        time.sleep(min(max(0.002, waited / 10), 0.05))


def children_of(pid: int) -> list[int]:
    """The pids of living and dead children."""
    try:
        return sorted(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_worker_of(pid: int, dispatcher: int) -> bool:
    """Tell whether a child of the dispatcher has its command line or a worker's title, as no zombie has."""
    try:
        command, inherited = (Path(f"/proc/{each}/cmdline").read_bytes() for each in (pid, dispatcher))
    except (FileNotFoundError, ProcessLookupError):
        return False
    return command.startswith(b"poolsrv: worker ") or command == inherited != b""


def process_state(pid: int) -> str:
    """The state letter of proc_pid_stat(5), or ``""`` if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


def is_alive(pid: int) -> bool:
    return process_state(pid) not in ("", "Z", "X")


def open_descriptors(pid: int) -> list[str]:
    """The targets of the open descriptors of a process."""
    found = []
    for name in os.listdir(f"/proc/{pid}/fd"):
        try:
            found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
        except FileNotFoundError:
            pass  # the descriptor of the listing itself
    return sorted(found)


def context_switches(pid: int) -> int:
    """How often a process has gone to sleep by itself: with epoll, about once per iteration."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)[1])  # type: ignore[index]


def cpu_ticks(pid: int) -> int:
    """The CPU time of a process, in ticks of usually 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def assert_rests(pid: int, seconds: float = 0.6) -> None:
    """Wait until a process is idle: it wakes up a few times at most, and uses next to no CPU."""

    def rests() -> bool:
        ticks, switches = cpu_ticks(pid), context_switches(pid)
        time.sleep(seconds)
        return context_switches(pid) - switches <= 20 and cpu_ticks(pid) - ticks <= 3

    wait_until(rests, "a process that rests")


def free_port() -> int:
    """A port of 127.0.0.1 at which nobody listens.

    It is none of those that the kernel gives to whoever asks for any: another test's server or client would have it
    before the one that it is for.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = 10_000 + secrets.randbelow(lowest - 10_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def listens(port: int) -> bool:
    """Whether somebody listens at a port of 127.0.0.1."""
    try:
        socket.create_connection(("127.0.0.1", port), TIMEOUT).close()
    except ConnectionRefusedError:
        return False
    return True
