"""Workers that are added, removed, recycled and killed while the pool serves."""

from __future__ import annotations

import logging
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from poolsrv.core import cgroups
from poolsrv.core.guarded_loop import GuardedLoop
from poolsrv.dispatcher import worker_manager
from poolsrv.dispatcher.worker_manager import MOST_UNREAD, WorkerManager
from poolsrv.dispatcher.worker_slot import WorkerSlot
from poolsrv.ipc.worker_channel import SERVING
from tests.helpers.puppet import Client, config, connect_until
from tests.helpers.server import ServerProcess, is_alive, wait_until

Serve = Callable[..., ServerProcess]


def slots_that_answer(server: ServerProcess, listener: str = "puppet", tries: int = 12) -> set[str]:
    found = set()
    for _ in range(tries):
        with Client(server, listener) as client:
            found.add(client.ask("slot"))
    return found


# --- more and fewer


@pytest.mark.server
def test_ttin_adds_a_worker_and_ttou_drains_the_last(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    server.signal(signal.SIGTTIN)
    server.wait_for_line("SIGTTIN: 2 workers")
    server.wait_for_line(r"worker 1 \(pid \d+\) serves")
    assert slots_that_answer(server) == {"0", "1"}
    with Client(server) as one, Client(server) as two:
        client = one if one.ask("slot") == "1" else two
        pid = int(client.ask("pid"))
        server.signal(signal.SIGTTOU)
        server.wait_for_line("SIGTTOU: 1 worker$")
        assert slots_that_answer(server) == {"0"}
        assert client.ask("pid") == str(pid)  # it drains, and is not cut
        client.tell("close")
        assert client.answer() == ""
    server.wait_for_line(rf"worker 1 \(pid {pid}\) exited 0")
    assert len(server.worker_pids()) == 1
    assert server.stop() == 0
    assert "ERROR" not in server.log


@pytest.mark.server
def test_the_last_worker_stays(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 2"), paths=(site,))
    for _ in range(2):
        server.signal(signal.SIGTTOU)
        server.wait_for_line("SIGTTOU: (1 worker$|no worker is removed)")
    server.signal(signal.SIGTTOU)
    server.wait_for_line("SIGTTOU: no worker is removed: the listeners need 1")
    assert slots_that_answer(server) == {"0"}


@pytest.mark.server
def test_as_many_workers_as_a_listener_needs_stay(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 2", "workers = 2"), paths=(site,))
    server.signal(signal.SIGTTOU)
    server.wait_for_line("SIGTTOU: no worker is removed: the listeners need 2")
    assert len(server.worker_pids()) == 2


@pytest.mark.server
def test_a_listener_with_workers_of_its_own_gets_no_further_one(serve: Serve, site: Path) -> None:
    text = config("workers = 1", "workers = 1") + '[listeners.all]\nbind = "127.0.0.1:0"\nhandler = "puppet"\n'
    server = serve(text, paths=(site,))
    server.signal(signal.SIGTTIN)
    server.wait_for_line(r"worker 1 \(pid \d+\) serves")
    assert slots_that_answer(server) == {"0"}
    assert slots_that_answer(server, "all") == {"0", "1"}


@pytest.mark.server
def test_without_descriptors_no_worker_is_added(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,), descriptors=70)
    for count in range(1, 20):
        server.signal(signal.SIGTTIN)
        if "no worker" in server.wait_for_line("SIGTTIN: .*", count=count).group():
            break
    server.wait_for_line("SIGTTIN: no worker is added to the .*: there is no room for its descriptors")
    assert "0" in slots_that_answer(server)
    assert server.stop() == 0


@pytest.mark.server
def test_a_reload_restores_the_number_of_the_config(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    server.signal(signal.SIGTTIN)
    server.wait_for_line(r"worker 1 \(pid \d+\) serves")
    server.reload()
    assert len(server.worker_pids()) == 1


# --- replaced without a gap


@pytest.mark.server
def test_the_only_worker_is_replaced_without_a_gap(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    (first,) = server.worker_pids()
    with Client(server) as client:
        assert client.ask("pid") == str(first)
        os.kill(first, signal.SIGTERM)
        server.wait_for_line(r"worker 0 \(pid \d+\) serves", count=2)  # while the first one has not ended
        with Client(server) as other:
            assert other.ask("pid") != str(first)
        assert client.ask("pid") == str(first)
        client.tell("close")
        assert client.answer() == ""
    server.wait_for_line(rf"worker 0 \(pid {first}\) exited 0")
    wait_until(lambda: len(server.worker_pids()) == 1, "one worker")
    assert server.stop() == 0


@pytest.mark.server
def test_a_worker_drains_and_is_replaced_after_its_number_of_connections(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1\nrecycle_after_connections = 20"), paths=(site,))
    with Client(server) as client:
        first = client.ask("pid")
        count = 1
        while True:
            with Client(server) as other:
                if other.ask("pid") != first:
                    break
            count += 1
        assert 18 <= count <= 60  # it is told once a report says so
        server.wait_for_line(rf"worker 0 \(pid {first}\) has had \d+ connections: recycling it")
        assert client.ask("pid") == first
    server.wait_for_line(rf"worker 0 \(pid {first}\) exited 0")
    assert server.stop() == 0
    assert "lost" not in server.log


@pytest.mark.server
def test_a_worker_with_too_much_memory_drains_and_is_replaced(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 2\nmax_worker_memory = 100_000_000"), paths=(site,))
    with Client(server) as client:
        big = client.ask("pid")
        assert client.ask("grow 150") == "150"
        server.wait_for_line(
            rf"worker \d \(pid {big}\) has \d+ MiB of memory, more than max_worker_memory: recycling it"
        )
        assert client.ask("pid") == big
        client.tell("close")
        assert client.answer() == ""
    server.wait_for_line(rf"\(pid {big}\) exited 0")
    wait_until(lambda: len(server.worker_pids()) == 2, "two workers")
    assert server.log.count("recycling") == 1
    assert server.stop() == 0


@pytest.mark.server
def test_a_draining_worker_that_gets_stuck_is_killed_and_delays_no_one(
    serve: Serve, site: Path, tmp_path: Path
) -> None:
    server = serve(config("workers = 2\ngraceful_timeout = 0.0"), paths=(site,))
    last = int(server.wait_for_line(r"worker 1 \(pid (\d+)\) serves").group(1))
    with connect_until(server, last) as client:
        assert client.ask(f"block {tmp_path}/never") == "blocks"
        server.signal(signal.SIGTTOU)
        server.wait_for_line("SIGTTOU: 1 worker$")
        assert slots_that_answer(server) == {"0"}
        server.wait_for_line(rf"worker 1 \(pid {last}\) does not end: killing it")
    wait_until(lambda: not is_alive(last), "its end")
    assert server.stop() == 0


# --- out of memory


@pytest.mark.parametrize(
    ("membership", "file"),
    [
        ("4:memory:/a\n0::/b\n", "memory/a/memory.oom_control"),
        ("3:cpu,memory:/a\n0::/\n", "memory/a/memory.oom_control"),
        ("0::/a/b\n", "a/b/memory.events"),
        ("1:name=systemd:/x\n0::/a\n", "unified/a/memory.events"),
    ],
)
def test_kills_by_the_kernel_are_found_in_either_version_of_cgroups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, membership: str, file: str
) -> None:
    proc, root = tmp_path / "cgroup", tmp_path / "fs"
    proc.write_text(membership)
    events = root / file
    events.parent.mkdir(parents=True)
    events.write_text("low 0\noom_kill 3\n")
    found = cgroups._find(proc, root)
    assert found == events
    monkeypatch.setattr(cgroups, "_find", lambda: found)
    counter = cgroups.OomCounter()
    assert not counter.has_killed()
    events.write_text("low 0\noom_kill 4\n")
    assert counter.has_killed()
    assert not counter.has_killed()


def test_without_cgroups_nothing_is_claimed(tmp_path: Path) -> None:
    assert cgroups._find(tmp_path / "none", tmp_path) is None


@pytest.mark.server
def test_a_worker_that_the_kernel_kills_out_of_memory_is_logged_as_such(serve: Serve, site: Path) -> None:
    """In a memory cgroup of its own; skipped where none can be made."""
    version1 = Path("/sys/fs/cgroup/memory")
    group = (version1 if version1.is_dir() else Path("/sys/fs/cgroup")) / f"poolsrv-test-{os.getpid()}"
    try:
        group.mkdir()
    except OSError:
        pytest.skip("memory cgroups can't be made here")
    try:
        limit = group / ("memory.limit_in_bytes" if version1.is_dir() else "memory.max")
        if not limit.exists():
            pytest.skip("the memory controller is not to be had here")
        limit.write_text("150000000")
        enter = ("sh", "-c", f'echo $$ >{group}/cgroup.procs; exec "$@"', "sh")
        server = serve(config("workers = 1"), paths=(site,), prefix=enter)
        with Client(server) as client:
            assert client.ask("grow 400") == ""
        server.wait_for_line(
            r"worker 0 \(pid \d+\) killed by SIGKILL by the kernel, out of memory, 1 connection is lost"
        )
        again = int(server.wait_for_line(r"worker 0 \(pid (\d+)\) serves", count=2).group(1))
        os.kill(again, signal.SIGKILL)
        server.wait_for_line(r"worker 0 \(pid \d+\) killed by SIGKILL$")
        assert server.stop() == 0
    finally:
        wait_until(lambda: not (group / "cgroup.procs").read_text(), "a cgroup that is empty")
        group.rmdir()


def test_the_last_reports_of_a_worker_have_an_end() -> None:
    """A copy of it may go on reporting on its channel."""

    class Manager(WorkerManager):
        def __init__(self) -> None:
            self.read = 0

        def _on_report(self, slot: WorkerSlot, mask: int = 0) -> bool:
            self.read += 1
            assert self.read <= MOST_UNREAD
            return True

    manager = Manager()
    manager._read_last_reports(WorkerSlot(0))
    assert manager.read == MOST_UNREAD


def test_a_worker_that_has_been_reaped_gets_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last reports may say that it is to be recycled, or break the books: by then its pid may be another's."""
    signals: list[tuple[int, int]] = []
    slot = WorkerSlot(0)
    slot.pid, slot.state, slot.given, slot.recycle_at = 1 << 30, SERVING, 0, 5
    dispatcher = Mock()

    def on_report(reporting: WorkerSlot) -> bool:
        reporting.given += 5
        dispatcher.kill_worker(reporting)
        return bool(reporting.given < 10)

    def clear(ended: WorkerSlot) -> int:
        ended.pid = 0
        return 0

    dispatcher.on_report.side_effect, dispatcher.worker_ended.side_effect = on_report, clear
    for part in ("WorkerProcess", "HangWatchdog", "ToldOnce"):
        monkeypatch.setattr(worker_manager, part, Mock())
    monkeypatch.setattr(os, "kill", lambda pid, number: signals.append((pid, number)))
    loop = GuardedLoop(logging.getLogger("poolsrv.pool"))
    listener = Mock(hooks=Mock(plugins=[]), config=Mock(first_worker=0, workers=1, exclusive=False))
    pool = Mock(hang_timeout=0, max_worker_memory=0, graceful_timeout=1)
    try:
        manager = WorkerManager(
            Mock(listeners=[listener], config=Mock(pool=pool)),
            loop,
            dispatcher,
            [slot],
            [],
            on_ready=Mock(),
            on_boot_failed=Mock(),
            claim=Mock(),
            released=Mock(),
            close_inherited=Mock(),
            connect=Mock(),
        )
        manager.by_pid[slot.pid] = slot
        manager._worker_ended(slot, 9, resource.getrusage(resource.RUSAGE_SELF))
    finally:
        loop.close()
    assert slot.given == 10
    assert not signals
    assert manager._to_start.count(slot) == 2  # at first, and again
