"""`log_connections`: the line at the end of each connection."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dispatcher.test_ledger import series
from tests.helpers.http import Client, cgi_listener, pool, write_programs
from tests.helpers.server import ServerProcess, receive_line, wait_until

pytestmark = pytest.mark.server

KEYS = "log_connections = true"
PROGRAMS = {
    "fail.sh": "echo hello; exit 3",
    "wait.sh": "echo $$; read line; echo $line",
    "page.sh": "printf 'Content-Type: text/plain\\n\\n'; echo page",
    "sleep.sh": "echo $$; exec sleep 1000",
    "stay.sh": "printf 'Content-Type: text/plain\\nContent-Length: 1\\n\\n%%'; exec >&- 2>&-"
    "; while ! [ -e go ]; do sleep 0.05; done",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_programs(tmp_path_factory.mktemp("root"), PROGRAMS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[ServerProcess]:
    config = pool(control="run/ctl") + '[log]\nformat = "json"\n'
    config += f'[listeners.echo]\nbind = "127.0.0.1:0"\nhandler = "echo"\n{KEYS}\n'
    config += '[listeners.silent]\nbind = "127.0.0.1:0"\nhandler = "echo"\n'
    fail, wait = [str(root / "fail.sh")], [str(root / "wait.sh")]
    config += cgi_listener("fail", keys=KEYS, protocol="inetd", program=fail)
    config += cgi_listener("wait", keys=KEYS, protocol="inetd", program=wait, max_programs=1)
    config += cgi_listener("line", keys=KEYS, protocol="line", root=root)
    config += cgi_listener("www", keys=KEYS, root=root)
    with ServerProcess(config, tmp_path_factory.mktemp("server")) as running:
        running.wait_for_line(" ready: |ready: ")
        yield running


def records(server: ServerProcess, listener: str, message: str = "closed after") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in list(server.lines) if line.startswith("{")]
    return [line for line in lines if line.get("listener") == listener and message in line["message"]]


def record(server: ServerProcess, listener: str, message: str = "closed after") -> dict[str, Any]:
    """The latest line of a listener, of which there is one."""
    wait_until(lambda: records(server, listener, message), "the line")
    (found,) = records(server, listener, message)
    return found


def test_a_connection_is_logged_with_its_bytes_and_duration(server: ServerProcess) -> None:
    assert server.exchange("silent", b"hello") == b"hello"
    assert server.exchange("echo", b"hello") == b"hello"
    found = record(server, "echo")
    assert (found["level"], found["logger"], found["bytes_in"], found["bytes_out"]) == (
        "info", "poolsrv.connection", 5, 5,
    )  # fmt: skip
    assert 0 <= found["duration"] < 60
    assert f"closed after {found['duration']:.3f} s, 5 bytes in, 5 out" in found["message"]
    assert "programs" not in found
    assert records(server, "silent") == []


def test_a_program_is_logged_with_how_it_ended_and_what_it_used(server: ServerProcess, root: Path) -> None:
    assert server.exchange("fail", b"") == b"hello\n"
    found = record(server, "fail")
    (program,) = found["programs"]
    assert (program["name"], program["exit"], program["queued"]) == (str(root / "fail.sh"), 3, 0)
    assert program["cpu"] >= 0
    assert found["reason"] == "program ended"
    assert f"; {root / 'fail.sh'}[{program['pid']}] exited 3, {program['cpu']:.3f} s of CPU" in found["message"]


def test_the_time_that_a_program_has_waited_is_logged(server: ServerProcess) -> None:
    with server.connect("wait") as first, server.connect("wait") as second:
        pid = int(receive_line(first))
        wait_until(lambda: series(server, "cgi_programs_waiting", listener="wait") == 1, "the second one in the queue")
        first.sendall(b"done\n")
        assert receive_line(first) == b"done\n"
        assert int(receive_line(second)) != pid
        second.sendall(b"done\n")
        assert receive_line(second) == b"done\n"
    wait_until(lambda: len(records(server, "wait")) == 2, "two lines")
    one, other = sorted(records(server, "wait"), key=lambda found: found["programs"][0]["queued"])
    assert one["programs"][0]["queued"] == 0 < other["programs"][0]["queued"]
    assert "queued" not in one["message"]
    assert f", queued {other['programs'][0]['queued']:.3f} s" in other["message"]


def test_a_program_that_is_killed_is_logged_so(server: ServerProcess) -> None:
    with server.connect("line") as sock:
        sock.sendall(b"sleep.sh\n")
        os.kill(int(receive_line(sock)), 9)
        assert sock.recv(1) == b""
    found = record(server, "line")
    assert found["programs"][0]["exit"] == -9
    assert "sleep.sh[" in found["message"]
    assert "killed by SIGKILL" in found["message"]


def test_of_many_programs_the_latest_are_logged(server: ServerProcess) -> None:
    with Client(server) as client:
        for _ in range(6):
            assert client.get("/page.sh").body == b"page\n"
    found = record(server, "www")
    assert [program["name"] for program in found["programs"]] == ["/page.sh"] * 4
    assert "; 6 programs, the latest:; /page.sh[" in found["message"]


def test_a_program_that_runs_on_is_logged_again_at_its_end(server: ServerProcess, root: Path) -> None:
    before = len(records(server, "www"))
    with Client(server) as client:
        assert client.get("/stay.sh").body == b"%"
    wait_until(lambda: len(records(server, "www")) > before, "the connection's line")
    found = records(server, "www")[-1]
    pid = found["programs"][0]["pid"]
    assert found["programs"] == [{"name": "/stay.sh", "pid": pid}]
    assert f"; /stay.sh[{pid}] runs on" in found["message"]
    (root / "go").touch()
    late = record(server, "www", "after its end")
    assert late["connection"] == found["connection"]
    assert f"after its end, /stay.sh[{pid}] exited 0" in late["message"]
