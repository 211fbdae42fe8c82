"""Start a server, find out when it serves, stop it and every process that it leaves behind."""

import ctypes
import os
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import proc
from .environment import say

PR_SET_CHILD_SUBREAPER = 36
START_TIMEOUT = 15.0
STOP_TIMEOUT = 5.0
# Seconds between ready and the load. The classic pool stays one connection behind for good if the next one comes before
# its worker has taken the one that tested whether it serves. Only the bursts are to show that.
SETTLE = 0.1


class NotAvailable(Exception):
    """This peer can't run here; the text says why."""


@dataclass
class Launch:
    """How to run a peer once."""

    commands: list[list[str]]  # usually one; a web server beside a FastCGI server makes two
    ready_line: bool = False  # it logs `ready` on standard error; otherwise it is ready when a connection succeeds
    tls: bool = False  # the server speaks TLS
    send: str = ""  # what a client sends to have the program run, with one program per connection


@dataclass(frozen=True)
class Peer:
    """A server to measure. `launch` gets a directory of its own and a free port."""

    name: str
    launch: Callable[[Path, int], Launch]
    programs: frozenset[str] = frozenset()  # Debian programs that it needs
    module: str = ""  # module that it needs in bench/.venv
    hides_cpu: bool = False  # it ignores SIGCHLD, so the kernel discards its programs' CPU times


@dataclass(frozen=True)
class Cores:
    """The CPUs for the server and those for the load."""

    server: frozenset[int]
    load: frozenset[int]


def prepare_process() -> None:
    """Make this process fit to run servers: none outlives it, and none lacks descriptors."""
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # so that servers are stopped
    # Orphans of a server become children of this process, so that their CPU time counts and none stays behind.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # servers and load inherit it


def cpus(text: str) -> frozenset[int]:
    """The CPUs of a list such as 0,2-3, without those that this process may not use.

    :raises ArgumentTypeError: it is not such a list.
    """
    chosen: set[int] = set()
    try:
        for part in text.split(","):
            first, _, last = part.partition("-")
            chosen.update(range(int(first), int(last or first) + 1))
    except ValueError:
        raise ArgumentTypeError(f"{text!r} is not a list of CPUs, expected one such as 0,2-3") from None
    allowed = os.sched_getaffinity(0)
    if not chosen & allowed:
        say(f"CPU {text} can't be used here: server and load may share one, which distorts the figures")
        return frozenset(allowed)
    return frozenset(chosen & allowed)


def free_port() -> int:
    """A port that nothing listens on, below the range for outgoing connections."""
    start = 15000 + os.getpid() % 5000
    for port in range(start, start + 10000):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise NotAvailable("no free port")


def on_cores(cores: frozenset[int]) -> Callable[[], None]:
    """For Popen's preexec_fn, which is safe here, as this process has no threads."""

    def pin() -> None:
        os.sched_setaffinity(0, cores)

    return pin


class Server:
    """A running peer, as a context manager."""

    def __init__(self, peer: Peer, cores: Cores) -> None:
        self.peer = peer
        self.cores = cores
        self.port = free_port()
        self.processes: list[subprocess.Popen[bytes]] = []
        self.others: set[int] = set()  # our children that are not part of the server: the load
        self.directory = Path(tempfile.mkdtemp(prefix="bench-"))
        self.directory.chmod(0o755)  # some servers give up root and must still enter it
        self.log = self.directory / "stderr"

    def __enter__(self) -> "Server":
        try:
            self.launch = self.peer.launch(self.directory, self.port)
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._stop()

    def _start(self) -> None:
        begun = time.monotonic()
        with self.log.open("wb") as log:
            for command in self.launch.commands:
                process = subprocess.Popen(
                    command,
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    preexec_fn=on_cores(self.cores.server),
                )
                self.processes.append(process)
        is_ready = self._said_ready if self.launch.ready_line else self._answers
        while not is_ready():
            for process in self.processes:
                if process.poll() is not None:
                    raise NotAvailable(f"ended with status {process.returncode}: {self.complaint()}")
            if time.monotonic() - begun > START_TIMEOUT:
                raise NotAvailable(f"does not serve after {START_TIMEOUT:.0f} s: {self.complaint()}")
            time.sleep(0.002)
        time.sleep(SETTLE)

    def _said_ready(self) -> bool:
        return any("ready" in line for line in self.log.read_text(errors="replace").splitlines())

    def _answers(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True

    def complaint(self) -> str:
        """The last line that the server printed."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        text = lines[-1] if lines else "it printed nothing"
        return text.replace(str(self.directory) + "/", "")

    def pids(self) -> list[int]:
        """The roots of the server's process tree: what was started, and orphans that are now our children."""
        mine = os.getpid()
        orphans = [pid for pid, stat in proc.processes().items() if stat.parent == mine and pid not in self.others]
        started = [process.pid for process in self.processes]
        return started + [pid for pid in orphans if pid not in started]

    def cpu_seconds(self) -> float:
        """CPU time of the whole server so far, including programs that have ended."""
        return proc.cpu_seconds(self.pids())

    def memory(self) -> proc.Memory:
        """Memory of the whole server."""
        return proc.tree_memory(self.pids())

    def _stop(self) -> None:
        everyone = set(proc.tree(process.pid for process in self.processes))
        for process in self.processes:
            process.terminate()
        deadline = time.monotonic() + STOP_TIMEOUT
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                say(f"  {self.peer.name} did not end within {STOP_TIMEOUT:.0f} s of SIGTERM and is killed")
                for pid in everyone:  # by number, as they were found below it
                    _kill(pid)
                process.wait()
        # The rest of its process group, and orphans with sessions of their own, which are now our children.
        for process in self.processes:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for _ in range(100):
            orphans = [pid for pid in self.pids() if pid not in {process.pid for process in self.processes}]
            if not orphans:
                break
            for pid in orphans:
                _kill(pid)
                os.waitpid(pid, 0)
        shutil.rmtree(self.directory, ignore_errors=True)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def seconds_until_ready(command: list[str], cwd: Path, cores: Cores, line: bool) -> float:
    """Seconds from the start of a command to its line with `ready` on standard error, or to its end."""
    begun = time.monotonic()
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=on_cores(cores.server),
    )
    assert process.stderr is not None
    text = b""
    try:
        while True:
            if not select.select([process.stderr], [], [], START_TIMEOUT)[0]:
                raise NotAvailable(f"no output for {START_TIMEOUT:.0f} s; it printed: {text[-300:]!r}")
            part = os.read(process.stderr.fileno(), 65536)
            text += part
            if line and b"ready" in text:
                return time.monotonic() - begun
            if not part:
                if process.wait() or line:
                    raise NotAvailable(text.decode(errors="replace").strip().splitlines()[-1] if text else "it ended")
                return time.monotonic() - begun
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stderr.close()
