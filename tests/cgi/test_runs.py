"""Records of what the cgi plugin has run, on a running server: every way to run a program, reloads, deaths."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolsrv.cli.control_client import NoAnswer, ask, ask_for_runs
from poolsrv.ipc.runs import Run
from tests.helpers.http import cgi_listener, pool, write_programs
from tests.helpers.server import ServerProcess, receive_all, wait_until

pytestmark = pytest.mark.server

PROGRAMS = {
    "ok.sh": "printf 'Content-Type: text/plain\\n\\nok'",
    "exit.sh": "echo first >&2; echo last >&2; printf 'Content-Type: text/plain\\n\\nx'; exit 3",
    "signal.sh": "printf 'Content-Type: text/plain\\n\\nx'; kill -KILL $$",
    "empty.sh": "echo 'what went wrong' >&2",
    "hang.sh": "exec sleep 1000",
    "nph-x.sh": "printf 'HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n\\r\\n'; exit 5",
    "no.sh": "#!/no/such/interpreter\n",
    "warm.py": "#!/usr/bin/env python3\nprint('Content-Type: text/plain\\n\\nwarm')\nraise SystemExit(6)\n",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = write_programs(tmp_path_factory.mktemp("root"), PROGRAMS)
    config = pool(control="ctl") + cgi_listener(
        root=root, nph=["*/nph-*"], warm=["/warm.py"], mask=["X-Pin"], environment={"DB_PASSWORD": "s3"}
    )
    config += cgi_listener("timed", root=root, timeout=1.0)
    config += cgi_listener("line", protocol="line", root=root, arguments=True)
    config += cgi_listener("inetd", protocol="inetd", program=["/bin/sh", "-c", "cat >&2; exit 7"])
    with ServerProcess(config, tmp_path_factory.mktemp("server")) as running:
        yield running.wait_ready()


def listed(server: ServerProcess) -> list[Run]:
    try:
        return ask_for_runs(server.file)
    except NoAnswer:
        return []  # a pool is taking over


def the_run(server: ServerProcess, fits: Callable[[Run], bool]) -> Run:
    """The latest run that fits, complete, once it has been reported."""

    def found() -> list[Run]:
        return [run for run in listed(server) if fits(run)]

    wait_until(lambda: bool(found()), "a record of the run")
    (run,) = ask_for_runs(server.file, found()[-1].id)
    return run


def get(server: ServerProcess, path: str, *fields: str, listener: str = "www") -> int:
    """The status alone: the body may be cut off."""
    head = "\r\n".join([f"GET {path} HTTP/1.1", "Host: test", "Connection: close", *fields, "", ""])
    with server.connect(listener) as sock:
        sock.sendall(head.encode("latin-1"))
        return int(receive_all(sock).split()[1])


@pytest.mark.parametrize(
    ("path", "status", "returncode", "reason"),
    [
        ("/ok.sh", 200, 0, ""),
        ("/exit.sh", 200, 3, ""),
        ("/signal.sh", 200, -9, ""),
        ("/empty.sh", 502, 0, "502: the program printed nothing"),
        ("/hang.sh", 504, -15, "over its timeout"),
        ("/no.sh", 500, None, "can't be started: its interpreter /no/such/interpreter"),
    ],
)
def test_how_a_program_has_ended(
    server: ServerProcess, path: str, status: int, returncode: int | None, reason: str
) -> None:
    listener = "timed" if path == "/hang.sh" else "www"
    assert get(server, path, listener=listener) == status
    run = the_run(server, lambda run: run.program == path)
    assert (run.status, run.returncode, run.failed) == (status, returncode, path != "/ok.sh")
    assert run.reason.startswith(reason)
    assert bool(run.reason) is bool(reason)
    assert run.request == f"GET {path} HTTP/1.1"
    assert run.listener == listener
    assert run.client.startswith("127.0.0.1:")
    if returncode is not None:
        assert run.cpu is not None
        assert run.usage["minor_faults"] > 0
        assert run.pid


def test_the_environment_is_there_without_secrets_and_so_is_the_end_of_stderr(server: ServerProcess) -> None:
    get(server, "/exit.sh?token=abc&page=3", "Cookie: a=b", "X-Pin: 1234", "X-Other: seen\xff")
    run = the_run(server, lambda run: "page=3" in run.request)
    assert run.request == "GET /exit.sh?token=(masked)&page=3 HTTP/1.1"
    environment = run.environment
    assert [environment[name] for name in ("HTTP_COOKIE", "HTTP_X_PIN", "DB_PASSWORD")] == ["(masked)"] * 3
    assert environment["QUERY_STRING"] == "token=(masked)&page=3"
    assert environment["HTTP_X_OTHER"] == "seen\\xff"
    assert run.stderr == ["first", "last"]


def test_nph_and_warm_programs_and_those_of_line_and_inetd(server: ServerProcess) -> None:
    with server.connect("www") as sock:
        sock.sendall(b"GET /nph-x.sh HTTP/1.1\r\nHost: a\r\n\r\n")
        receive_all(sock)
    assert the_run(server, lambda run: run.program == "/nph-x.sh").returncode == 5
    wait_until(lambda: get(server, "/warm.py") == 200 and any(run.warm for run in listed(server)), "a warm run")
    warm = the_run(server, lambda run: run.warm)
    assert (warm.program, warm.returncode, warm.failed) == ("/warm.py", 6, True)
    with server.connect("line") as sock:
        sock.sendall(b"exit.sh some\t password=x\xff\r\n")
        receive_all(sock)
    line = the_run(server, lambda run: run.listener == "line")
    assert (line.returncode, line.request) == (3, "exit.sh some\t password=(masked)")
    assert line.command[1:] == ["some", "password=x\\xff"]
    with server.connect("inetd") as sock:
        sock.sendall(b"hello\n")
        sock.shutdown(1)
        receive_all(sock)
    inetd = the_run(server, lambda run: run.listener == "inetd")
    assert (inetd.returncode, inetd.stderr) == (7, ["hello"])


def test_records_survive_a_reload_a_crash_and_the_death_of_a_worker(server: ServerProcess) -> None:
    assert get(server, "/signal.sh") == 200
    run = the_run(server, lambda run: run.program == "/signal.sh")

    def is_there(generation: int) -> bool:
        try:
            status = ask(server.file)
            return status.server.generation >= generation and ask_for_runs(server.file, run.id) == [run]
        except NoAnswer:
            return False

    status = ask(server.file)
    os.kill(status.workers[0].pid, signal.SIGKILL)
    assert is_there(status.server.generation)
    os.kill(server.process.pid, signal.SIGHUP)
    wait_until(lambda: is_there(status.server.generation + 1), "the record in the next pool")
    os.kill(ask(server.file).server.dispatcher_pid, signal.SIGKILL)
    wait_until(lambda: is_there(status.server.generation + 2), "the record in the pool after the crash")


def test_what_runs_at_the_end_of_a_worker_is_recorded_and_no_failure(tmp_path: Path) -> None:
    root = write_programs(tmp_path / "root", {"wait.sh": "echo here; exec sleep 1000"})
    config = pool(control="ctl", graceful_timeout=0.0) + cgi_listener("line", protocol="line", root=root)
    with ServerProcess(config, tmp_path) as running:
        running.wait_ready()
        with running.connect("line") as sock:
            sock.sendall(b"wait.sh\r\n")
            assert sock.recv(10) == b"here\n"
            os.kill(ask(running.file).workers[0].pid, signal.SIGTERM)
            run = the_run(running, lambda run: run.program == "/wait.sh")
            assert (run.failed, run.reason) == (False, "ended with its worker")
