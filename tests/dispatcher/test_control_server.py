"""The control socket, with real servers."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poolsrv.core.event_loop import EventLoop
from poolsrv.dispatcher import control_server, stats_collector
from poolsrv.dispatcher.control_server import LONGEST_QUESTION, MOST_CLIENTS, ControlServer
from poolsrv.ipc.stats import PROTOCOL, Answer
from tests.helpers.control import (
    ECHO,
    POOL,
    PUPPET,
    ask_puppet,
    command,
    dial,
    echo_server,
    query,
    receive_line_of,
)
from tests.helpers.http import cgi_listener, write_programs
from tests.helpers.server import TIMEOUT, ServerProcess, receive_all, receive_line, wait_until

Serve = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with echo_server(tmp_path_factory.mktemp("echo")) as server:
        yield server


@pytest.mark.server
def test_the_stats_are_those_of_the_server(serve: Serve, site: Path) -> None:
    server = serve(POOL + PUPPET + "max_connections = 7\n" + ECHO, paths=(site,))
    with server.connect("puppet") as first, server.connect("puppet") as second:
        pids = sorted(int(ask_puppet(sock, b"pid")) for sock in (first, second))
        seen: set[str] = set()

        def all_rates_have_risen() -> bool:
            # They are those of the latest seconds, so they fall again.
            totals = query(server)["status"]["totals"]
            seen.update(name for name in ("accepted_rate", "bytes_in_rate") if totals[name] > 0)
            return len(seen) == 2

        wait_until(all_rates_have_risen, "rates")
        program = int(ask_puppet(first, b"program"))
        wait_until(lambda: query(server)["status"]["totals"]["programs"] == 1, "a program")

        def all_have_said() -> bool:
            return all(worker["bytes_in"] >= len(b"pid\n") for worker in query(server)["status"]["workers"])

        wait_until(all_have_said, "what workers have said last")
        answer = query(server)
        found = answer["status"]
        assert answer["protocol"] == 1
        assert found["server"]["pid"] == server.pid
        assert found["server"]["dispatcher_pid"] == server.dispatcher_pid
        assert found["server"]["config"] == str(server.file)
        assert (found["server"]["generation"], found["server"]["state"]) == (1, "serving")
        assert found["server"]["version"] == status_version()
        assert 0 < found["server"]["uptime"] < 1000
        workers = found["workers"]
        assert [worker["slot"] for worker in workers] == [0, 1]
        assert sorted(worker["pid"] for worker in workers) == pids == server.worker_pids()
        for worker in workers:
            assert (worker["state"], worker["open"], worker["accepted"], worker["restarts"]) == ("serving", 1, 1, 0)
            assert worker["memory"] > 1 << 20
        puppet, hello = found["listeners"]
        assert (puppet["name"], puppet["handler"], puppet["open"], puppet["accepted"]) == ("puppet", "puppet", 2, 2)
        assert (puppet["max_connections"], puppet["queued"], puppet["waiting"]) == (7, 0, 0)
        assert puppet["addresses"] == server.addresses("puppet")
        assert hello["open"] == 0
        (running,) = found["programs"]
        assert (running["pid"], running["worker_pid"] in pids) == (program, True)
        assert running["command"].startswith(f"{sys.executable} -c")
        assert found["totals"]["open"] == 2


def status_version() -> str:
    result = subprocess.run([sys.executable, "-m", "poolsrv", "--version"], capture_output=True, text=True, check=True)
    return result.stdout.split()[1]


@pytest.mark.server
def test_it_answers_while_workers_hang_or_are_stopped_or_die(serve: Serve, site: Path, tmp_path: Path) -> None:
    server = serve(POOL + PUPPET, paths=(site,))
    with server.connect("puppet") as first, server.connect("puppet") as second:
        assert ask_puppet(first, b"block " + os.fsencode(tmp_path / "go")) == b"blocks"
        stopped = int(ask_puppet(second, b"pid"))
        os.kill(stopped, signal.SIGSTOP)
        server.wait_for_line("has been stopped by a signal")
        states = {worker["pid"]: worker["state"] for worker in query(server)["status"]["workers"]}
        assert states[stopped] == "stopped"
        assert sorted(states.values()) == ["serving", "stopped"]
        os.kill(stopped, signal.SIGKILL)
        server.wait_for_line("killed by SIGKILL, 1 connection is lost")
        server.wait_for_line(r"worker . \(pid \d+\) serves", count=3)
        assert sorted(worker["restarts"] for worker in query(server)["status"]["workers"]) == [0, 1]
        (tmp_path / "go").touch()
        assert receive_line(first) == b"unblocked\n"


@pytest.mark.server
def test_refusals_are_in_the_stats(serve: Serve) -> None:
    server = serve(POOL + ECHO + 'deny = ["127.0.0.1"]\n')
    with pytest.raises(ConnectionResetError), server.connect("hello") as sock:
        receive_all(sock)
    wait_until(lambda: query(server)["status"]["listeners"][0]["refusals"], "a refusal")
    found = query(server)["status"]
    (reason, number), *_ = found["listeners"][0]["refusals"].items()
    assert number == 1
    (refusal,) = found["recent_refusals"]
    assert (refusal["listener"], refusal["reason"]) == ("hello", reason)
    assert refusal["peer"].startswith("127.0.0.1")
    assert f"({reason} 1)" in command(server.file).stdout


@pytest.mark.server
def test_waiting_connections_are_in_the_stats(serve: Serve, site: Path) -> None:
    server = serve(POOL + PUPPET + "max_connections = 1\n", paths=(site,))
    with server.connect("puppet") as first:
        assert ask_puppet(first, b"pid")
        with server.connect("puppet"):

            def waits() -> bool:
                (puppet,) = query(server)["status"]["listeners"]
                return (puppet["queued"], puppet["paused"], puppet["open"]) == (1, True, 1)

            wait_until(waits, "a client in the kernel's queue")


@pytest.mark.server
@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (b"status\n", {"protocol", "status"}),
        (b" status \r\n", {"protocol", "status"}),
        (b'{"request": "status", "more": 1}\n', {"protocol", "status"}),
        (b"stats\n", {"protocol", "error"}),
        (b"\n", {"protocol", "error"}),
        (b"\xff\n", {"protocol", "error"}),
        (b"{\n", {"protocol", "error"}),
        (b"{}\n", {"protocol", "error"}),
        (b'{"request": 3}\n', {"protocol", "error"}),
    ],
)
def test_a_question_has_an_answer(echo: ServerProcess, question: bytes, answer: set[str]) -> None:
    assert set(query(echo, question)) == answer


@pytest.mark.server
def test_several_questions_on_one_connection(echo: ServerProcess) -> None:
    with dial(echo) as sock:
        sock.sendall(b"a\nb\nstatus")
        sock.shutdown(socket.SHUT_WR)
        answers = [json.loads(line) for line in receive_all(sock).splitlines()]
    assert [set(answer) - {"protocol"} for answer in answers] == [{"error"}, {"error"}, {"status"}]


@pytest.mark.server
def test_a_client_with_too_long_a_question_is_disconnected(echo: ServerProcess) -> None:
    with dial(echo) as sock:
        sock.sendall(b"x" * (LONGEST_QUESTION + 1))
        assert receive_all(sock) == b""


@pytest.mark.server
def test_clients_that_read_nothing_delay_no_one(echo: ServerProcess) -> None:
    slow = [dial(echo) for _ in range(MOST_CLIENTS)]
    try:
        for sock in slow[1:]:
            try:
                sock.settimeout(0.2)
                sock.sendall(b"status\n" * 100_000)
            except TimeoutError:
                pass
        assert echo.exchange("hello", b"hello") == b"hello"
        with dial(echo) as waiting:
            waiting.sendall(b"status\n")
            slow.pop().close()  # there is room for one again
            assert "status" in json.loads(receive_line_of(waiting))
    finally:
        for sock in slow:
            sock.close()


@pytest.mark.server
def test_only_the_owner_may_ask(echo: ServerProcess) -> None:
    assert stat.S_IMODE((echo.folder / "run" / "ctl").stat().st_mode) == 0o600
    assert stat.S_IMODE((echo.folder / "run").stat().st_mode) == 0o700
    if os.geteuid() != 0:
        return
    # Neither the file's mode allows it nor, if that has been changed, the check of the client's user.
    (echo.folder / "run" / "ctl").chmod(0o666)
    script = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX); os.chdir(sys.argv[1]); os.setuid(65534)\n"
        "s.connect('ctl')\ntry:\n    s.sendall(b'status\\n'); data = s.recv(1)\nexcept OSError: data = b''\n"
        "sys.exit(bool(data))"
    )
    try:
        (echo.folder / "run").chmod(0o755)
        subprocess.run([sys.executable, "-c", script, str(echo.folder / "run")], check=True, timeout=TIMEOUT)
    finally:
        (echo.folder / "run").chmod(0o700)
        (echo.folder / "run" / "ctl").chmod(0o600)


# --- over reloads, and at the end


@pytest.mark.server
def test_a_reload_keeps_the_socket_and_is_in_the_stats(serve: Serve, site: Path) -> None:
    # The old pool has to drain for as long as this looks at it.
    server = serve(POOL.replace("graceful_timeout = 5.0", "graceful_timeout = 60.0") + PUPPET, paths=(site,))
    path = server.folder / "run" / "ctl"
    inode = path.stat().st_ino
    with server.connect("puppet") as sock:
        assert ask_puppet(sock, b"pid")
        server.reload()
        wait_until(lambda: query(server)["status"]["server"]["leaving"], "a pool that drains")
        found = query(server)["status"]["server"]
        assert found["generation"] == 2
        assert [pool["generation"] for pool in found["leaving"]] == [1]
        assert found["last_reload"]["ok"] is True
        assert "generation 1 (pid " in command(server.file).stdout
    wait_until(lambda: not query(server)["status"]["server"]["leaving"], "its end")
    server.file.write_text(POOL + PUPPET.replace("puppet", "nonsense"))
    server.signal(signal.SIGHUP)
    wait_until(lambda: not query(server)["status"]["server"]["last_reload"]["ok"], "a reload that fails")
    found = query(server)["status"]["server"]
    assert found["generation"] == 2
    assert 'no plugin "nonsense"' in found["last_reload"]["errors"][0]
    assert path.stat().st_ino == inode
    # What is wrong with the rest of the file does not matter.
    result = command(server.file)
    assert result.returncode == 0
    assert "last reload: " in result.stdout
    assert 'no plugin "nonsense"' in result.stdout
    assert server.stop() == 0
    assert not path.exists()


@pytest.mark.server
def test_the_socket_is_removed_when_the_config_drops_it(serve: Serve) -> None:
    server = serve(POOL + ECHO)
    server.file.write_text(POOL.replace('control = "run/ctl"', "") + ECHO)
    server.reload()
    wait_until(lambda: not (server.folder / "run" / "ctl").exists(), "a socket that is removed")
    assert server.stop() == 0


@pytest.mark.server
def test_a_stale_socket_is_replaced_and_a_living_servers_is_not(serve: Serve) -> None:
    server = serve(POOL + ECHO)
    other = serve(POOL.replace("run/ctl", str(server.folder / "run" / "ctl")) + ECHO, ready=False)
    assert other.wait() == 1
    path = server.folder / "run" / "ctl"
    assert other.lines == [f"poolsrv: pool.control: can't listen on unix:{path}: another process listens there"]
    server.process.kill()
    server.wait()
    assert path.exists()
    again = serve(POOL.replace("run/ctl", str(path)) + ECHO)
    again.wait_for_line("replacing the stale socket file")
    assert again.stop() == 0


@pytest.mark.server
def test_a_worker_holds_no_copy_of_it(serve: Serve) -> None:
    server = serve(POOL + ECHO)
    with dial(server) as sock:
        sock.sendall(b"x\n")
        assert receive_line_of(sock)
        pid = int(server.wait_for_line(r"worker 0 \(pid (\d+)\) serves")[1])
        os.kill(pid, signal.SIGKILL)  # the next one is forked with a client there
        server.wait_for_line(r"worker 0 \(pid \d+\) serves", count=2)
        assert server.stop() == 0
        assert sock.recv(1) == b""


# --- parts, and what it costs


@pytest.mark.server
def test_no_control_socket_costs_nothing(serve: Serve) -> None:
    server = serve(POOL.replace('control = "run/ctl"', "") + ECHO)
    assert not (server.folder / "run").exists()
    assert server.stop() == 0


@pytest.mark.server
def test_programs_are_listed_with_their_worker(serve: Serve, tmp_path: Path) -> None:
    root = write_programs(tmp_path / "root", {"wait.sh": "sleep 60"})
    text = POOL + cgi_listener("raw", protocol="line", root=root)
    server = serve(text)
    with server.connect("raw") as sock:
        sock.sendall(b"wait.sh\n")
        wait_until(lambda: query(server)["status"]["programs"], "a program")
        # Until it executes its file, it has the worker's command.
        row = re.compile(r"^ *\d+ +\d +.* /bin/sh /", re.MULTILINE)
        wait_until(lambda: row.search(command(server.file).stdout), "its command")


def test_without_descriptors_it_does_not_spin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(control_server, "STARVED_PAUSE", 0.05)

    class Starved(socket.socket):
        calls = 0

        def accept(self) -> Any:
            Starved.calls += 1
            raise OSError(errno.EMFILE, "Too many open files")

    loop = EventLoop()
    with Starved(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as client:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        server = ControlServer(loop, listening, {})
        server.open()
        client.connect(str(tmp_path / "s"))
        loop.turn(1.0)
        assert Starved.calls == 1
        assert loop.wait(0) == []
        while Starved.calls == 1:
            loop.turn(1.0)  # after the pause it tries again
        server.close()
    loop.close()


def test_a_rate_over_a_moment_is_no_burst() -> None:
    samples = deque([stats_collector._Sample(10.0, 5)])
    assert stats_collector._rates(samples, stats_collector._Sample(10.01, 7))("accepted") == 2.0
    assert stats_collector._rates(samples, stats_collector._Sample(14.0, 9))("accepted") == 1.0
    assert stats_collector._rates(None, stats_collector._Sample(14.0, 9))("accepted") == 0.0


def test_a_worker_that_asks_all_the_time_leaves_the_dispatcher_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the worker should by itself: however many questions it sends at once."""
    monkeypatch.setattr(control_server, "PAUSE_SHARE", 1e9)  # so that each pause is the longest
    monkeypatch.setattr(control_server, "LONGEST_PAUSE", 0.3)
    loop, asked, marks = EventLoop(), [], []

    def answer() -> Answer:
        asked.append(1)
        return Answer(PROTOCOL)

    server = ControlServer(loop, None, {"status": answer})
    with server.connect() as worker:
        server.answer_workers()
        worker.sendall(b"status\n" * 3)
        loop.call_later(0.1, lambda: marks.append(1))
        while not marks:
            loop.turn()
        assert len(asked) == 1
        while len(asked) < 3:
            loop.turn()
        assert worker.recv(65536).count(b"\n") == 3
    server.close_inherited()
    loop.close()
