"""A plugin that does what its clients say, one line at a time, and clients for it.

Each line is a command with its arguments; the answer is one line. So a test can make a worker block, die, or start
programs when the test wants it.
"""

from __future__ import annotations

import select
import socket
from contextlib import suppress
from pathlib import Path

from tests.helpers.distributions import install
from tests.helpers.server import TIMEOUT, ServerProcess, process_state, receive_line, wait_until

PUPPET = '''
import os
import subprocess
import sys
import time

from poolsrv import hookimpl

# The hardest to get rid of: in a session of its own, double-forked, and ignoring TERM.
STRAY = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) > 1:
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    open(sys.argv[1], "a").write(f"{os.getpid()}\\\\n")
    os.close(1)
else:
    os.write(1, b"%d\\\\n" % os.getpid())
while True:
    time.sleep(3600)
"""


class Puppet:
    @hookimpl
    def on_worker_start(self, worker):
        self.worker = worker
        if os.path.exists("broken"):
            raise OSError("broken")

    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            command, *arguments = line.decode().split()
            answer = getattr(self, command)(conn, *arguments)
            if answer is not None:
                conn.send(f"{answer}\\n".encode())

    def pid(self, conn):
        return os.getpid()

    def slot(self, conn):
        return self.worker.slot

    def grow(self, conn, megabytes):
        """Use that much memory, then answer."""
        self.ballast = b"x" * (int(megabytes) << 20)
        return megabytes

    def close(self, conn):
        conn.close()

    def block(self, conn, path):
        """Block until the file exists. Answer before that."""
        conn.send(b"blocks\\n")
        while not os.path.exists(path):
            time.sleep(0.005)
        return "unblocked"

    def block_until_asked(self, conn, path):
        """Block until the file grows in which this worker dumps its stack."""
        size = os.stat(path).st_size
        while os.stat(path).st_size == size:
            time.sleep(0.005)
        return "asked"

    def block_in_timer(self, conn, path):
        """Block until the file exists. Answer once that has begun: no connection is taken any more."""
        def block():
            conn.send(b"blocks\\n")
            while not os.path.exists(path):
                time.sleep(0.005)
        self.worker.call_later(0.0, block)
        return None

    def exit(self, conn, code):
        os._exit(int(code))

    def kill(self, conn, number):
        os.kill(os.getpid(), int(number))

    def program(self, conn, *argv):
        """Start a program whose output is the answer."""
        conn.spawn([sys.executable, "-c", STRAY, *argv], stdout=conn)

    def orphan(self, conn, path):
        """Start a program that leaves its group, session, parent and connection, and writes its pid to the file."""
        conn.spawn([sys.executable, "-c", STRAY, path])
        return "started"

    def status(self, conn, *fields):
        """Answer with /proc/self/status and more, as a spawned program sees them."""
        conn.spawn(["/bin/sh", "-c", "ls -l /proc/self/fd; cat /proc/self/status /proc/self/stat"], stdout=conn)
'''


def install_puppet(site: Path) -> Path:
    """Install the plugin ``puppet`` into a directory for PYTHONPATH; return the directory."""
    install(site, "poolsrv-puppet", {"puppet": "poolsrv_puppet:Puppet"}, PUPPET)
    return site


def config(pool: str = "workers = 2", listener: str = "", name: str = "puppet") -> str:
    """A config with one listener of puppets."""
    return f'[pool]\n{pool}\n[listeners.{name}]\nbind = "127.0.0.1:0"\nhandler = "puppet"\n{listener}\n'


class Client:
    """One connection to a puppet."""

    def __init__(self, server: ServerProcess, listener: str = "puppet") -> None:
        self.socket = server.connect(listener)

    def tell(self, command: str) -> None:
        """Send a command, without waiting."""
        self.socket.sendall(f"{command}\n".encode())

    def answer(self) -> str:
        """The next answer; ``""`` if the connection has ended, by end of stream or a reset."""
        try:
            return receive_line(self.socket).decode().rstrip("\n")
        except ConnectionResetError:
            return ""

    def ask(self, command: str) -> str:
        """Send a command, and return its answer."""
        self.tell(command)
        return self.answer()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect_until(server: ServerProcess, pid: int, listener: str = "puppet") -> Client:
    """A connection that the worker with this pid serves."""
    others = []
    try:
        for _ in range(200):
            client = Client(server, listener)
            if client.ask("pid") == str(pid):
                return client
            others.append(client)
    finally:
        for other in others:
            other.close()
    raise AssertionError(f"worker {pid} got no connection")


def wait_listening(path: Path) -> None:
    """Wait until a process listens on a unix socket: the file exists a moment earlier."""

    def is_so() -> bool:
        with socket.socket(socket.AF_UNIX) as sock:
            return sock.connect_ex(str(path)) == 0

    wait_until(is_so, f"a server on {path}")


def wait_passed_on(server: ServerProcess, listener: str = "puppet") -> None:
    """Wait until the dispatcher has accepted and passed on all connections, and sleeps again."""
    local = f":{address_of(server, listener)[1]:04X}"

    def is_so() -> bool:
        for line in Path("/proc/net/tcp").read_text().splitlines():
            _, address, _, state, queues, *_ = line.split()
            if address.endswith(local) and state == "0A" and int(queues.partition(":")[2], 16):
                return False
        return process_state(server.dispatcher_pid) == "S"

    wait_until(is_so, "a dispatcher that has passed them on")


class Crowd:
    """Many clients that connect at once, and send one question each.

    :param leave: each client closes as soon as it has its answer.
    """

    def __init__(self, address: tuple[str, int], size: int, question: bytes = b"pid\n", leave: bool = False) -> None:
        self._question = question
        self._leave = leave
        self.answers: dict[int, bytes] = {}  # by descriptor, as far as they have arrived
        self.sockets: dict[int, socket.socket] = {}
        self._epoll = select.epoll()
        for _ in range(size):
            sock = socket.socket()
            sock.setblocking(False)
            self.sockets[sock.fileno()] = sock
            try:
                sock.connect(address)
            except BlockingIOError:
                pass
            self._epoll.register(sock.fileno(), select.EPOLLOUT)

    def run(self, count: int | None = None) -> list[bytes]:
        """Wait until all clients, or ``count``, are answered. An answer is ``b""`` if the client was cut off."""
        wanted = len(self.sockets) if count is None else count
        while sum(answer.endswith(b"\n") or answer == b"" for answer in self.answers.values()) < wanted:
            events = self._epoll.poll(TIMEOUT)
            assert events, f"{len(self.answers)} of {wanted} answers, then nothing"
            for fd, mask in events:
                self._step(fd, mask)
        return list(self.answers.values())

    def _step(self, fd: int, mask: int) -> None:
        sock = self.sockets[fd]
        try:
            if mask & select.EPOLLOUT:
                sock.send(self._question)
                self._epoll.modify(fd, select.EPOLLIN)
                return
            piece = sock.recv(100)
        except OSError:
            piece = b""
        self.answers[fd] = self.answers.get(fd, b"") + piece if piece else b""
        if not piece or piece.endswith(b"\n"):
            self._epoll.unregister(fd)
            if self._leave:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()
        self._epoll.close()

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def address_of(server: ServerProcess, listener: str = "puppet") -> tuple[str, int]:
    """The TCP address of a listener."""
    host, _, port = server.addresses(listener)[0].rpartition(":")
    return host, int(port)
