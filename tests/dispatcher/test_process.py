"""The dispatcher's process: reaping and replacing workers, stopping, and what is left behind; with real kills."""

from __future__ import annotations

import os
import signal
import socket
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.distributions import install
from tests.helpers.puppet import Client, address_of, config, connect_until, install_puppet
from tests.helpers.server import (
    ServerProcess,
    children_of,
    context_switches,
    cpu_ticks,
    is_alive,
    open_descriptors,
    receive_line,
    wait_until,
)

pytestmark = pytest.mark.server

Serve = Callable[..., ServerProcess]


def plugin(tmp_path: Path, body: str) -> Path:
    """Write a plugin ``p`` whose class has this body."""
    site = tmp_path / "site"
    text = "import os, signal, time\nfrom poolsrv import hookimpl\nclass P:\n"
    text += textwrap.indent(textwrap.dedent(body), "    ")
    text += "    @hookimpl\n    def on_readable(self, conn):\n        conn.send(conn.recv())\n"
    install(site, "poolsrv-p", {"p": "poolsrv_p:P"}, text)
    return site


P_CONFIG = '[pool]\n{pool}\n[listeners.p]\nbind = "127.0.0.1:0"\nhandler = "p"\n'


def is_whole(server: ServerProcess, size: int) -> bool:
    """Wait until all workers serve, and none has died since."""
    return server.log.count(" serves") - server.log.count("killed by") - server.log.count(") exited") == size


def is_whole_again(server: ServerProcess, size: int, deaths: int) -> bool:
    return server.log.count("killed by") == deaths and is_whole(server, size)


def is_pending(pid: int, number: signal.Signals) -> bool:
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("ShdPnd:\t")[2].split()[0], 16) >> (number - 1) & 1)


def stray_pid(path: Path) -> int:
    """Wait for the process that writes its pid into the file."""
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"), "a stray process")
    return int(path.read_text())


# --- how the kernel schedules it


@pytest.mark.parametrize(
    ("prefix", "dispatcher", "worker"),
    [
        ((), os.SCHED_BATCH, os.SCHED_OTHER),
        (("chrt", "--batch", "0"), os.SCHED_BATCH, os.SCHED_BATCH),
    ],
)
def test_the_dispatcher_does_not_interrupt_workers(
    serve: Serve, site: Path, prefix: tuple[str, ...], dispatcher: int, worker: int
) -> None:
    server = serve(config("workers = 2"), paths=(site,), prefix=prefix)
    assert os.sched_getscheduler(server.dispatcher_pid) == dispatcher
    assert [os.sched_getscheduler(pid) for pid in server.worker_pids()] == [worker, worker]
    assert os.sched_getscheduler(server.process.pid) == worker


# --- reaping and replacing


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with two workers, which tests end."""
    folder = tmp_path_factory.mktemp("pair")
    with ServerProcess(config("workers = 2"), folder, paths=(install_puppet(folder / "site"),)) as running:
        running.wait_ready().wait_for_line(r"worker \d \(pid \d+\) serves", count=2)
        yield running
        assert running.stop() == 0


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (f"kill {int(signal.SIGSEGV)}", "killed by SIGSEGV"),
        (f"kill {int(signal.SIGKILL)}", "killed by SIGKILL"),
        (f"kill {int(signal.SIGRTMIN) + 3}", f"killed by signal {int(signal.SIGRTMIN) + 3}"),
        ("exit 1", "exited 1"),
        ("exit 0", "exited 0"),
    ],
)
def test_a_worker_that_ends_is_reported_in_words_and_replaced(pair: ServerProcess, command: str, words: str) -> None:
    server, logged = pair, len(pair.lines)
    before = server.worker_pids()
    with Client(server) as client:
        pid = int(client.ask("pid"))
        assert client.ask(command) == ""
    server.wait_for_line(rf"worker \d \(pid {pid}\) {words}, 1 connection is lost", after=logged)
    server.wait_for_line(r"worker \d \(pid \d+\) serves", after=logged)
    after = server.worker_pids()
    assert len(after) == 2
    assert pid in before
    assert pid not in after


def test_on_child_exit_is_called_for_workers_in_the_dispatcher(serve: Serve, tmp_path: Path) -> None:
    """Once per instance, in a process that has never called on_worker_start. An exception is logged."""
    site = plugin(
        tmp_path,
        """
        started = False
        @hookimpl
        def on_worker_start(self, worker):
            self.started = True
        @hookimpl
        def on_child_exit(self, child, conn):
            told = (child.role, child.pid, child.returncode, conn, self.started, child.rusage.ru_maxrss > 0)
            with open("told", "a") as file:
                file.write(f"{os.getpid()} {told}\\n")
            raise RuntimeError("in the parent")
        """,
    )
    server = serve(
        P_CONFIG.format(pool="workers = 1") + '[listeners.q]\nbind = "127.0.0.1:0"\nhandler = "p"\n', paths=(site,)
    )
    (pid,) = server.worker_pids()
    os.kill(pid, signal.SIGKILL)
    server.wait_for_line(r"worker 0 \(pid \d+\) serves", count=2)
    line = f"{server.dispatcher_pid} ('worker', {pid}, -9, None, False, True)\n"
    assert (server.folder / "told").read_text() == line * 2
    server.wait_for_line("RuntimeError: in the parent", count=2)
    assert "plugin 'p' failed in on_child_exit" in server.log
    assert server.exchange("p", b"x") == b"x"


def test_workers_that_can_not_start_are_tried_with_growing_delays_then_the_server_exits_with_1(
    serve: Serve, tmp_path: Path
) -> None:
    site = plugin(tmp_path, "@hookimpl\ndef on_worker_start(self, worker):\n    raise RuntimeError('no database')\n")
    started = time.monotonic()
    server = serve(P_CONFIG.format(pool="workers = 1\nmax_boot_failures = 7"), paths=(site,), ready=False)
    assert server.wait() == 1
    assert server.lines[-1] == (
        "poolsrv: worker 0 could not start 7 times in a row: it exited 3 (the plugin's error is above)"
    )
    tries = [line for line in server.lines if "could not start" in line and "ERROR" in line]
    assert len(tries) == 7
    delays = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2]
    for number, (line, delay) in enumerate(zip(tries, delays, strict=False), 1):
        count = f", {number} times in a row" if number > 1 else ""
        assert f"(the plugin's error is above){count}: next try in {delay:.1f} s" in line
    assert "worker 0 could not start 7 times in a row: giving up" in tries[-1]
    assert time.monotonic() - started >= sum(delays)
    assert server.log.count("plugin 'p' failed in on_worker_start") == 7
    assert server.log.count("RuntimeError: no database") == 7
    assert " serves" not in server.log


@pytest.mark.parametrize(
    ("death", "words"), [("os._exit(9)", "exited 9"), ("os.kill(os.getpid(), 11)", "killed by SIGSEGV")]
)
def test_workers_that_die_while_starting_are_tried_with_growing_delays(
    serve: Serve, tmp_path: Path, death: str, words: str
) -> None:
    site = plugin(tmp_path, f"@hookimpl\ndef on_worker_start(self, worker):\n    {death}\n")
    server = serve(P_CONFIG.format(pool="workers = 1\nmax_boot_failures = 20"), paths=(site,), ready=False)
    third = server.wait_for_line("worker 0 could not start, 3 times in a row: next try in 0.4 s").string
    assert server.log.partition(third)[0].count(f"{words} while starting") == 3
    assert server.stop() == 0


def test_a_plugin_that_fails_to_start_only_at_first_is_waited_for(serve: Serve, tmp_path: Path) -> None:
    site = plugin(
        tmp_path,
        """
        @hookimpl
        def on_worker_start(self, worker):
            with open(f"tries{worker.slot}", "a+") as file:
                file.write("x")
                file.seek(0)
                if len(file.read()) < 3:
                    raise OSError("not yet")
        """,
    )
    server = serve(P_CONFIG.format(pool="workers = 2"), paths=(site,))
    assert server.log.count("could not start") == 4
    assert server.exchange("p", b"x") == b"x"
    assert server.stop() == 0


def test_a_pool_that_was_ready_never_gives_up(serve: Serve, tmp_path: Path) -> None:
    site = plugin(
        tmp_path,
        "@hookimpl\ndef on_worker_start(self, worker):\n    if os.path.exists('broken'):\n        raise OSError('x')\n",
    )
    server = serve(P_CONFIG.format(pool="workers = 2"), paths=(site,))
    (server.folder / "broken").touch()
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    server.wait_for_line("could not start.* 3 times in a row")
    assert server.exchange("p", b"x") == b"x"
    (server.folder / "broken").unlink()
    server.wait_for_line(r"worker 0 \(pid \d+\) serves", count=2)
    assert server.stop() == 0


def test_workers_that_exit_early_are_not_replaced_in_a_hot_loop(serve: Serve, tmp_path: Path) -> None:
    site = plugin(
        tmp_path, "@hookimpl\ndef on_worker_start(self, worker):\n    worker.call_later(0, lambda: os._exit(1))\n"
    )
    started = time.monotonic()
    server = serve(P_CONFIG.format(pool="workers = 1"), paths=(site,), ready=False)
    server.wait_for_line(r"exited 1", count=8)
    assert time.monotonic() - started >= 0.05 * sum(range(7))  # seconds: 0, 0.05, 0.1, ...
    assert "while starting" not in server.log  # each had said that it served
    assert "could not start" not in server.log
    assert server.stop() == 0


@pytest.mark.long
@pytest.mark.parametrize(("dispatch", "kills"), [("round-robin", 100), ("kernel", 16)])
def test_kill_9_of_each_worker_in_turn_under_load(serve: Serve, site: Path, dispatch: str, kills: int) -> None:
    """Only connections of the killed worker fail, all workers serve again each time, and nothing is left behind."""
    size = 8
    server = serve(config(f'workers = {size}\ndispatch = "{dispatch}"'), paths=(site,))
    address = address_of(server)
    wait_until(lambda: is_whole(server, size), "a whole pool")
    descriptors = len(open_descriptors(server.dispatcher_pid))
    killed: set[int] = set()
    faults: list[str] = []
    over = threading.Event()

    def load() -> None:
        """Make short connections, one after the other. One whose worker was killed may fail.

        Each pauses before its lines. So there is always a connection, and the pool still gets the CPU.
        """
        served = 0
        while not over.is_set():
            with socket.create_connection(address, 30) as sock:
                pid = 0
                try:
                    for _ in range(3):
                        over.wait(0.005)
                        sock.sendall(b"pid\n")
                        line = receive_line(sock)
                        if not line:
                            break
                        pid = int(line)
                        served += 1
                    else:
                        continue
                except ConnectionResetError:
                    pass
                except OSError as error:
                    faults.append(repr(error))
                    return
                # Where it was cut off before the first answer, some worker had taken it: one that was killed.
                if pid and pid not in killed:
                    faults.append(f"cut off by worker {pid}, which was not killed")
        if not served:
            faults.append("not served")

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for number in range(kills):
            (slot,) = [
                line for line in reversed(server.lines) if f"worker {number % size} (pid" in line and " serves" in line
            ][:1]
            pid = int(slot.partition("(pid ")[2].partition(")")[0])
            killed.add(pid)
            os.kill(pid, signal.SIGKILL)
            wait_until(partial(is_whole_again, server, size, number + 1), "the pool")
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert faults == []
    workers = children_of(server.dispatcher_pid)
    assert len(workers) == size
    assert all(map(is_alive, workers))  # no zombie
    wait_until(lambda: len(open_descriptors(server.dispatcher_pid)) == descriptors, "descriptors as at first")
    assert server.stop() == 0


# --- what is left behind


@pytest.mark.parametrize("how", ["kill", "stuck", "stopped", "in order"])
def test_the_dispatcher_ends_what_a_dead_worker_had_started(serve: Serve, site: Path, tmp_path: Path, how: str) -> None:
    """A program that ignores TERM, and a grandchild with a session of its own whose parents are gone."""
    server = serve(config("workers = 2\ngraceful_timeout = 0.0"), paths=(site,))
    with Client(server) as client:
        worker = int(client.ask("pid"))
        assert client.ask(f"orphan {tmp_path / 'stray'}") == "started"
        stray = stray_pid(tmp_path / "stray")
        with connect_until(server, worker) as other:
            program = int(other.ask("program"))
            assert is_alive(program)
            assert is_alive(stray)
            if how == "stuck":
                assert client.ask(f"block {tmp_path / 'never'}") == "blocks"
            elif how == "stopped":
                os.kill(worker, signal.SIGSTOP)
                server.wait_for_line("has been stopped")
            os.kill(worker, signal.SIGTERM if how == "in order" else signal.SIGKILL)
            wait_until(lambda: not is_alive(program) and not is_alive(stray), "the end of both")
    server.wait_for_line(r"worker \d \(pid \d+\) serves", count=3)
    wait_until(lambda: len(children_of(server.dispatcher_pid)) == 2, "two workers, and no zombie either")
    assert server.stop() == 0


def test_when_the_dispatcher_is_killed_workers_and_their_programs_end(serve: Serve, site: Path, tmp_path: Path) -> None:
    server = serve(config("workers = 3"), paths=(site,))
    workers = server.worker_pids()
    clients = [connect_until(server, pid) for pid in workers]
    programs = [int(client.ask("program")) for client in clients[:2]]
    assert clients[2].ask(f"orphan {tmp_path / 'stray'}") == "started"
    everybody = [*workers, *programs, stray_pid(tmp_path / "stray")]
    assert all(map(is_alive, everybody))
    os.kill(server.dispatcher_pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, everybody)), "the end of all")
    server.wait_for_line("the dispatcher is gone: ending")
    for client in clients:
        client.close()


def test_when_the_dispatcher_is_killed_a_stopped_worker_ends_too(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 2"), paths=(site,))
    workers = server.worker_pids()
    os.kill(workers[0], signal.SIGSTOP)
    server.wait_for_line("has been stopped")
    os.kill(server.dispatcher_pid, signal.SIGKILL)
    wait_until(lambda: not any(map(is_alive, workers)), "the end of all")


def test_a_worker_that_drains_just_when_the_dispatcher_dies_ends(serve: Serve, site: Path, tmp_path: Path) -> None:
    """It gets TERM, and while it takes what is in its channel it finds the channel's end."""
    server = serve(config("workers = 1"), paths=(site,))
    with Client(server) as client, Client(server) as other:
        worker = int(client.ask("pid"))
        program = int(other.ask("program"))
        assert client.ask(f"block {tmp_path / 'release'}") == "blocks"
        os.kill(worker, signal.SIGTERM)
        wait_until(lambda: not is_pending(worker, signal.SIGTERM), "TERM, delivered")
        dispatcher = server.dispatcher_pid
        os.kill(dispatcher, signal.SIGKILL)
        wait_until(lambda: not is_alive(dispatcher), "the dispatcher's end")
        (tmp_path / "release").touch()
        wait_until(lambda: not is_alive(worker) and not is_alive(program), "the end of both")
    assert "Traceback" not in server.log


def test_a_child_that_was_there_before_the_server_is_left_alone(serve: Serve, site: Path, tmp_path: Path) -> None:
    """A shell starts a program and then becomes the server with ``exec``."""
    shell = ("sh", "-c", f'sleep 3600 2>&- & echo $! >{tmp_path / "sleeper"}; exec "$@"', "sh")
    server = serve(config("workers = 1"), paths=(site,), prefix=shell)
    sleeper = stray_pid(tmp_path / "sleeper")
    os.kill(server.dispatcher_pid, signal.SIGKILL)  # after which the supervisor ends all that it has left
    server.wait_for_line(r"worker 0 \(pid \d+\) serves", count=2)
    assert server.stop() == 0
    assert is_alive(sleeper)
    os.kill(sleeper, signal.SIGKILL)


# --- stopping


def test_stop_while_workers_start(serve: Serve, tmp_path: Path) -> None:
    site = plugin(
        tmp_path,
        """
        @hookimpl
        def on_worker_start(self, worker):
            open(f"starting{worker.slot}", "w").close()
            while not os.path.exists("release"):
                time.sleep(0.005)
        """,
    )
    server = serve(P_CONFIG.format(pool="workers = 2"), paths=(site,), ready=False)
    wait_until(lambda: len(list(server.folder.glob("starting*"))) == 2, "workers that start")
    server.signal(signal.SIGTERM)
    server.wait_for_line("SIGTERM: stopping")
    (server.folder / "release").touch()
    assert server.wait() == 0
    assert "ERROR" not in server.log


def test_stop_at_once_while_workers_hang_in_their_start(serve: Serve, tmp_path: Path) -> None:
    site = plugin(
        tmp_path,
        "@hookimpl\ndef on_worker_start(self, worker):\n    open(f'starting', 'w').close()\n    time.sleep(3600)\n",
    )
    server = serve(P_CONFIG.format(pool="workers = 2"), paths=(site,), ready=False)
    wait_until((server.folder / "starting").exists, "a worker that starts")
    server.signal(signal.SIGTERM)
    server.wait_for_line("SIGTERM: stopping")
    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert server.log.count("does not end: killing it") == 2


def test_stop_before_ready_whenever_it_comes(serve: Serve, site: Path) -> None:
    """From the first line of the log on, TERM ends the server in order, whatever it is doing."""
    for _ in range(5):
        server = serve(config("workers = 3"), paths=(site,), ready=False)
        server.wait_for_line("serves")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
        assert "Traceback" not in server.log


def test_a_stopped_worker_does_not_hold_up_the_stop(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 2"), paths=(site,))
    os.kill(server.worker_pids()[0], signal.SIGSTOP)
    server.wait_for_line("has been stopped")
    assert server.stop() == 0
    assert "killing" not in server.log


def test_a_stuck_worker_is_killed_after_the_deadline_of_the_stop(serve: Serve, site: Path, tmp_path: Path) -> None:
    server = serve(config("workers = 2\ngraceful_timeout = 0.0"), paths=(site,))
    with Client(server) as client:
        assert client.ask(f"block {tmp_path / 'never'}") == "blocks"
        server.signal(signal.SIGTERM)
        server.wait_for_line("SIGTERM: stopping, 1 connection is open")
        server.signal(signal.SIGTERM)
        assert server.wait() == 0
    server.wait_for_line(r"worker \d \(pid \d+\) does not end: killing it")


# --- at rest


def test_an_idle_server_uses_no_cpu(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 4"), paths=(site,))
    clients = [Client(server) for _ in range(8)]
    for client in clients:
        assert client.ask("pid")
    pids = [server.pid, server.dispatcher_pid, *server.worker_pids()]

    def used() -> list[int]:
        return [count(pid) for pid in pids for count in (context_switches, cpu_ticks)]

    def rests() -> bool:
        before = used()
        time.sleep(1.5)
        return used() == before

    # The heartbeats that these events have caused may come first, but nothing that comes again and again.
    wait_until(rests, "a server that rests")
    for client in clients:
        client.close()
