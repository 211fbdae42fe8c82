"""The permits of `max_programs`: they belong to a process, and are released when it is killed, whatever it did."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from poolsrv_cgi.programs.limiter import SharedSemaphore
from poolsrv_http.cells import SharedCells

from tests.helpers.http import PROGRAMS, Client, cgi_listener, pool, write_programs
from tests.helpers.server import ServerProcess, is_alive, wait_until


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_programs(tmp_path_factory.mktemp("root"), PROGRAMS)


def begun(server: ServerProcess) -> tuple[Client, int]:
    """A client whose program waits for its file, and the process id of the program."""
    client = Client(server)
    client.request("/wait.sh")
    assert client.head().startswith(b"HTTP/1.1 200")
    while client.take(1) != b"\n":
        pass  # the chunk's size
    line = b""
    while not line.endswith(b"\n"):
        line += client.take(1)
    return client, int(line)


@pytest.mark.server
def test_the_permits_of_a_draining_worker_that_is_killed_are_released(
    serve: Callable[..., ServerProcess], root: Path
) -> None:
    """Its successor has its slot in the pool by then."""
    server = serve(pool() + cgi_listener(root=root, max_programs=2, queue_size=0))

    def drained_and_killed() -> None:
        running = [begun(server) for _ in range(2)]
        worker = server.worker_pids()[0]
        os.kill(worker, signal.SIGTERM)
        wait_until(lambda: set(server.worker_pids()) - {worker}, "a successor")
        with Client(server) as client:
            assert client.get("/hello.sh").status == 503
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: not any(is_alive(pid) for _, pid in running), "the programs' end")
        wait_until(lambda: worker not in server.worker_pids(), "the worker's end")
        for client, _ in running:
            client.sock.close()

    for _ in range(3):
        drained_and_killed()
    again = [begun(server) for _ in range(2)]
    for client, pid in again:
        (root / f"go.{pid}").touch()
        client.sock.close()


class Process:
    """A process that inherits what was made before it, as a worker does, and does one thing after another."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._done, done = os.pipe()
        go, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                act()
                os.write(done, b".")
                os.read(go, 1)
            finally:
                os._exit(0)
        os.close(done)
        os.close(go)
        assert os.read(self._done, 1) == b"."

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self._done)
        os.close(self._go)


def test_a_cell_is_free_once_its_process_is_forgotten() -> None:
    cells = SharedCells()

    def hold(number: int) -> Callable[[], object]:
        def act() -> None:
            cells.open()
            cells.add(number)

        return act

    processes = [Process(hold(number)) for number in (1, 20, 300)]
    assert cells.total() == 321
    processes[1].kill()
    assert cells.forget(processes[1].pid) == 20
    assert cells.forget(processes[1].pid) == 0
    assert cells.total() == 301
    processes.append(Process(hold(4000)))
    assert cells.total() == 4301
    for process in (processes[0], *processes[2:]):
        process.kill()
        cells.forget(process.pid)
    assert cells.total() == 0


def test_what_a_killed_process_held_is_released_beside_its_successor() -> None:
    permits = SharedSemaphore(3)

    def hold(number: int) -> Callable[[], object]:
        def act() -> None:
            permits.open()
            assert [permits.acquire() for _ in range(number)] == [True] * number

        return act

    old = Process(hold(2))
    new = Process(hold(1))
    permits.open()
    assert not permits.acquire()
    old.kill()
    permits.worker_ended(old.pid)
    assert [permits.acquire() for _ in range(3)] == [True, True, False]
    new.kill()
    permits.worker_ended(new.pid)
    assert [permits.acquire() for _ in range(2)] == [True, False]
