"""The metrics of programs and of HTTP responses."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dispatcher.test_ledger import series
from tests.helpers.http import PROGRAMS, Client, cgi_listener, write_programs
from tests.helpers.server import ServerProcess, wait_until

PAGE = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
POOL = '[pool]\nworkers = 1\ncontrol = "run/ctl"\n'
NAMES = {
    "cgi_program_queue_seconds", "cgi_program_start_seconds", "cgi_program_run_seconds",
    "http_response_seconds", "http_first_byte_seconds", "cgi_programs_waiting", "cgi_programs_failed",
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("metrics")
    root = write_programs(folder / "root", {**PROGRAMS, "fails.sh": f"{PROGRAMS['hello.sh']}; exit 3"})
    limited = cgi_listener("limited", root=root, max_programs=1)
    with ServerProcess(POOL + cgi_listener(root=root) + limited, folder) as running:
        yield running.wait_ready()


@pytest.mark.server
def test_responses_are_timed_by_class_and_programs_by_stage(server: ServerProcess) -> None:
    program = next(iter(PROGRAMS))
    for _ in range(2):
        with Client(server, "www") as client:
            assert client.get(f"/{program}").status == 200
    with Client(server, "www") as client:
        assert client.get("/none").status == 404
    with Client(server, "www") as client:
        assert client.send(b"nonsense\r\n\r\n").response().status == 400

    def count(name: str, **labels: str) -> int:
        found = series(server, name, listener="www", plugin="cgi", **labels)
        return found["count"] if found else 0

    wait_until(lambda: count("cgi_program_run_seconds") == 2, "both programs' ends")
    wait_until(lambda: count("http_response_seconds", status="4xx") == 2, "what was refused")
    assert count("http_response_seconds", status="2xx") == count("http_first_byte_seconds", status="2xx") == 2
    assert count("http_response_seconds", status="5xx") == 0
    assert count("cgi_program_start_seconds") == count("cgi_program_queue_seconds") == 2
    assert series(server, "cgi_program_run_seconds")["p99"] >= series(server, "cgi_program_run_seconds")["p50"] > 0


@pytest.mark.server
def test_programs_that_fail_and_those_that_wait_are_counted(server: ServerProcess) -> None:
    with Client(server, "limited") as client:
        assert client.get("/fails.sh").body == b"hello"
    wait_until(lambda: series(server, "cgi_programs_failed", listener="limited", how="status") == 1, "a failure")
    with Client(server, "limited") as first, Client(server, "limited") as second:
        first.request("/wait.sh")
        first.head()
        second.request("/hello.sh")
        wait_until(lambda: series(server, "cgi_programs_waiting", listener="limited") == 1, "a request that waits")
        first.sock.close()  # the program is ended, which is no failure
        assert second.head().startswith(b"HTTP/1.1 200")
    wait_until(lambda: series(server, "cgi_programs_waiting", listener="limited") == 0, "an empty queue")
    wait_until(lambda: series(server, "cgi_program_run_seconds", listener="limited")["count"] == 3, "all ends")
    assert series(server, "cgi_programs_failed", listener="limited", how="signal") == 0


def test_the_page_has_them() -> None:
    assert set(re.findall(r"^\| `((?:cgi|http)_\w+)` ", PAGE, re.MULTILINE)) == NAMES
