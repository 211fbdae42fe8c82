"""What a worker has freed is the system's again, once it has nothing to do."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolsrv.core.event_loop import EventLoop
from poolsrv.worker.spare_memory import SpareMemory
from tests.helpers.plugins import ask, listener, served
from tests.helpers.server import wait_until

MODULE = """
class Rush:
    # Needs 30 MB for a moment, and keeps a piece at the end of it.
    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        pieces = [bytes(60_000) for _ in range(500)]
        self.kept = pieces.pop()
        conn.send(b"done\\n")


class Threads:
    # As with Rush, in four threads at once.
    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        bytes(20_000_000)  # from now on, the C library keeps free memory up to twice as much at the end of a heap
        self.all = threading.Barrier(4)
        self.left = 4
        for _ in range(4):
            conn.worker.run_blocking(self.rush, done=lambda future: self.done(conn))

    def rush(self):
        self.all.wait()
        pieces = [b"x" * 60_000 for _ in range(150)]
        self.all.wait()

    def done(self, conn):
        self.left -= 1
        if not self.left:
            conn.send(b"done\\n")
"""


class Service:
    def __init__(self) -> None:
        self.connections: dict[int, object] = {}


def test_it_is_given_back_once_after_the_last_connection() -> None:
    loop, services = EventLoop(), [Service(), Service()]
    calls: list[int] = []
    memory = SpareMemory(loop, services, calls.append)  # type: ignore[arg-type]
    memory.look()
    assert calls == []  # nothing has happened
    loop.events = 7
    services[1].connections[1] = object()
    memory.look()
    assert calls == []
    services[1].connections.clear()
    memory.look()
    memory.look()
    assert calls == [0]
    loop.events = 8
    memory.look()
    assert calls == [0, 0]
    loop.close()


def anonymous(pid: int) -> int:
    """MiB."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Anonymous:")) >> 10


@pytest.mark.server
@pytest.mark.parametrize("name", ["rush", "threads"])
def test_what_a_rush_has_needed_is_given_back(tmp_path: Path, name: str) -> None:
    """Each thread would have a heap of its own, the end of which can't be given back."""
    with served(tmp_path, MODULE, listener(name)) as server:
        (worker,) = server.worker_pids()
        before = anonymous(worker)
        with server.connect(name) as sock:
            ask(sock, b"x")
            assert anonymous(worker) > before + 20
        wait_until(lambda: anonymous(worker) < before + 5, "memory that is given back")
