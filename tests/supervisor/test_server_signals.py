"""Signals to a whole server and to its workers, and what it inherits from its parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.distributions import install
from tests.helpers.puppet import Client, config, connect_until, wait_listening
from tests.helpers.server import ServerProcess, is_alive, process_state, receive_line, wait_until
from tests.helpers.server_mark import server_starts

Serve = Callable[..., ServerProcess]
STOPS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def refuses(server: ServerProcess) -> bool:
    try:
        server.connect("puppet").close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    return False


# --- stopping


@pytest.mark.server
@STOPS
def test_open_connections_finish_and_new_ones_are_refused(serve: Serve, site: Path, number: signal.Signals) -> None:
    server = serve(config(), paths=(site,))
    with Client(server) as client:
        assert client.ask("pid")
        server.signal(number)
        server.wait_for_line(rf"{number.name}: stopping, 1 connection is open")
        wait_until(lambda: refuses(server), "a listener that is closed")
        assert client.ask("pid")
        client.tell("close")
        assert client.answer() == ""
    assert server.wait() == 0
    assert server.lines[-1].endswith("stopped")


@pytest.mark.server
def test_a_connection_that_does_not_end_is_ended_at_the_deadline(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 2\ngraceful_timeout = 0.3"), paths=(site,))
    with Client(server) as client:
        assert client.ask("pid")
        server.signal(signal.SIGTERM)
        assert client.answer() == ""
        assert server.wait() == 0
    assert "killing" not in server.log


@pytest.mark.server
@STOPS
def test_a_second_signal_ends_at_once(serve: Serve, site: Path, number: signal.Signals) -> None:
    server = serve(config("workers = 2\ngraceful_timeout = 1000.0"), paths=(site,))
    with Client(server) as client, Client(server) as other:
        assert client.ask("pid")
        program = int(other.ask("program"))
        server.signal(signal.SIGTERM)
        server.wait_for_line("stopping")
        assert client.ask("pid")
        server.signal(number)
        assert client.answer() == ""
        assert server.wait() == 0
        assert not is_alive(program)
    assert f"{number.name}: ending at once" in server.log
    assert "killing" not in server.log


@pytest.mark.server
def test_a_signal_to_the_whole_process_group_stops_in_order_too(serve: Serve, site: Path) -> None:
    """As a shell's ``kill %1`` and systemd send it: workers get TERM twice."""
    server = serve(config(), paths=(site,))
    with Client(server) as client:
        assert client.ask("pid")
        os.killpg(server.pid, signal.SIGTERM)
        server.wait_for_line("stopping")
        for _ in range(3):
            for pid in server.worker_pids():
                with suppress(ProcessLookupError):  # a worker that had nothing to finish has ended by now
                    os.kill(pid, signal.SIGTERM)
            assert client.ask("pid")
        client.tell("close")
        assert client.answer() == ""
    assert server.wait() == 0


@pytest.mark.server
def test_many_signals_that_stop_are_no_more_than_two(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 3"), paths=(site,))
    with Client(server) as client:
        assert client.ask("pid")
        while server.process.poll() is None:
            server.signal(signal.SIGTERM)
            server.signal(signal.SIGINT)
    assert server.wait() == 0
    assert "Traceback" not in server.log


@pytest.mark.server
def test_handlers_of_signals_stay_until_the_process_is_gone(serve: Serve, site: Path) -> None:
    """Otherwise a late signal kills a process that ends in order, or prints a traceback: see "The end" in
    core/signals.py.

    A zombie still shows them, so it must not be reaped before they have been read.
    """
    server = serve(config("workers = 1"), paths=(site,))
    dispatcher = server.dispatcher_pid
    server.signal(signal.SIGSTOP)
    os.kill(dispatcher, signal.SIGTERM)
    wait_until(lambda: process_state(dispatcher) == "Z", "the dispatcher's end")
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1} <= caught(dispatcher)
    server.signal(signal.SIGCONT)
    server.wait_for_line(" ready: ", count=2)
    server.signal(signal.SIGTERM)
    os.waitid(os.P_PID, server.pid, os.WEXITED | os.WNOWAIT)
    assert {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGUSR1} <= caught(server.pid)
    assert server.wait() == 0


def caught(pid: int) -> set[int]:
    """The signals that a process handles (proc_pid_status(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    mask = int(status.partition("SigCgt:")[2].split()[0], 16)
    return {number for number in signal.valid_signals() if mask >> (number - 1) & 1}


# --- the other signals


@pytest.mark.server
def test_a_flood_of_chld_hides_no_other_signal(serve: Serve, site: Path) -> None:
    server = serve(config(), paths=(site,))
    both = (server.pid, server.dispatcher_pid)
    for pid in both:
        os.kill(pid, signal.SIGSTOP)
        for _ in range(5000):
            os.kill(pid, signal.SIGCHLD)
        os.kill(pid, signal.SIGCONT)
    with Client(server) as client:
        victim = int(client.ask("pid"))
        for number in range(5000):
            for pid in both:
                os.kill(pid, signal.SIGCHLD)
            if number == 2500:
                os.kill(victim, signal.SIGKILL)
                server.signal(signal.SIGHUP)
    server.wait_for_line(r"\) killed by SIGKILL")
    server.wait_for_line(r"generation 2 \(pid \d+\) serves")
    assert server.stop() == 0


@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_workers_ignore_what_a_terminal_sends_to_all(serve: Serve, site: Path, number: signal.Signals) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    with Client(server) as client:
        pid = client.ask("pid")
        for _ in range(3):
            os.kill(int(pid), number)
            assert client.ask("pid") == pid
    assert server.worker_pids() == [int(pid)]


@pytest.mark.server
def test_term_to_one_worker_drains_it_and_it_is_replaced(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 2"), paths=(site,))
    first, second = server.worker_pids()
    with connect_until(server, first) as client:
        os.kill(first, signal.SIGTERM)
        # its next answer shows that it has seen the signal; after its report it gets no connections
        assert client.ask("pid") == str(first)
        with connect_until(server, second) as other:
            assert other.ask("pid") == str(second)
        assert client.ask("pid") == str(first)
        client.tell("close")
        assert client.answer() == ""
    server.wait_for_line(rf"worker \d \(pid {first}\) exited 0")
    server.wait_for_line("serves", count=3)
    assert len(server.worker_pids()) == 2
    assert "ERROR" not in server.log
    assert server.stop() == 0


@pytest.mark.server
def test_what_is_in_the_channel_of_a_worker_that_drains_is_served(serve: Serve, site: Path, tmp_path: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    release = tmp_path / "release"
    with Client(server) as blocker:
        pid = int(blocker.ask("pid"))
        assert blocker.ask(f"block {release}") == "blocks"
        clients = [Client(server) for _ in range(30)]
        os.kill(pid, signal.SIGTERM)
        release.touch()
        assert blocker.answer() == "unblocked"
        blocker.tell("close")
        for client in clients:
            assert client.ask("pid")
            client.tell("close")
            assert client.answer() == ""
            client.close()
    server.wait_for_line(rf"\(pid {pid}\) exited 0")
    assert server.stop() == 0


@pytest.mark.server
def test_a_worker_that_drains_alone_ends_what_is_open_at_the_deadline(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1\ngraceful_timeout = 0.2"), paths=(site,))
    with Client(server) as client:
        pid = int(client.ask("pid"))
        os.kill(pid, signal.SIGTERM)
        assert client.answer() == ""
    server.wait_for_line(rf"\(pid {pid}\) exited 0")
    assert server.stop() == 0


@pytest.mark.server
def test_a_worker_that_drains_alone_and_then_hangs_is_killed(serve: Serve, tmp_path: Path) -> None:
    """Five seconds after graceful_timeout, while no process waits for the server to stop."""
    module = """
        import time
        from poolsrv import hookimpl
        class Hangs:
            @hookimpl
            def on_readable(self, conn):
                conn.send(conn.recv())
            @hookimpl
            def on_worker_stop(self, worker):
                while True:
                    time.sleep(3600)
    """
    install(tmp_path / "site", "poolsrv-hangs", {"hangs": "poolsrv_hangs:Hangs"}, module)
    text = config("workers = 1\ngraceful_timeout = 0.0").replace('handler = "puppet"', 'handler = "hangs"')
    server = serve(text, paths=(tmp_path / "site",))
    (pid,) = server.worker_pids()
    os.kill(pid, signal.SIGTERM)
    server.wait_for_line(rf"worker 0 \(pid {pid}\) does not end: killing it")
    server.wait_for_line("serves", count=2)


# --- how it was started


@pytest.mark.server
def test_a_server_that_was_started_with_signals_blocked_or_ignored_handles_them(serve: Serve, site: Path) -> None:
    """A shell without job control starts background jobs with INT ignored; others block signals, and nohup HUP."""
    deaf = (
        sys.executable,
        "-c",
        "import os, signal, sys\n"
        "for number in (signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, signal.SIGTERM):\n"
        "    signal.signal(number, signal.SIG_IGN)\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())\n"
        "os.execv(sys.argv[1], sys.argv[1:])",
    )
    server = serve(config(), paths=(site,), prefix=deaf)
    server.signal(signal.SIGHUP)
    server.wait_for_line(r"generation 1 \(pid \d+\) has left")
    server.wait_for_line(" ready: ", count=2)
    after = len(server.lines)
    with Client(server) as client:
        os.kill(int(client.ask("pid")), signal.SIGKILL)
    server.wait_for_line(r"worker \d .* serves", after=after)
    with Client(server) as client:
        status = client.ask("status")
        while not status.startswith("SigQ"):
            status = client.answer()
        masks = dict(client.answer().split(":\t") for _ in range(5))
    internal = 0b11 << 31  # 32 and 33 are glibc's own, which its posix_spawn ignores
    assert {int(masks[name], 16) & ~internal for name in ("SigBlk", "SigIgn", "SigCgt")} == {0}
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGTERM)
    server.wait_for_line(r"worker \d .* serves", count=3, after=after)
    server.signal(signal.SIGINT)
    assert server.wait() == 0


@pytest.mark.server
def test_programs_do_not_inherit_the_servers_inherited_descriptors(serve: Serve, site: Path, tmp_path: Path) -> None:
    shell = ("sh", "-c", f'exec 7<>{tmp_path / "lock"} 8</dev/zero; exec "$@"', "sh")
    server = serve(config("workers = 1"), paths=(site,), prefix=shell)
    sock = server.connect("puppet")
    sock.sendall(b"status\n")
    listing = []
    while not (line := receive_line(sock)).startswith(b"Name:"):
        listing.append(line.decode())
    sock.close()
    numbers = [line.split(" -> ")[0].split()[-1] for line in listing if " -> " in line]
    assert numbers == ["0", "1", "2", "3"]  # ls has opened the last one to list them
    assert not any("lock" in line or "zero" in line for line in listing)


@pytest.mark.server
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_server_without_standard_descriptors_serves(site: Path, tmp_path: Path, closed: str) -> None:
    path = tmp_path / "run.sock"
    (tmp_path / "poolsrv.toml").write_text(
        f'[pool]\nworkers = 2\n[listeners.puppet]\nbind = "unix:{path}"\nhandler = "puppet"\n'
    )
    server_starts()
    process = subprocess.Popen(
        ["sh", "-c", f'exec "$@" {closed}', "sh", sys.executable, "-m", "poolsrv", "--config", "poolsrv.toml"],
        cwd=tmp_path,
        env=dict(os.environ, PYTHONPATH=str(site)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_listening(path)
        for _ in range(4):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(30)
                sock.connect(str(path))
                sock.sendall(b"pid\n")
                assert receive_line(sock)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
