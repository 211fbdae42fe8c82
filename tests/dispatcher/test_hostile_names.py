"""Names and questions that are not UTF-8, of processes, files and clients: nothing ends, every output shows them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from poolsrv.core import systemd, text
from poolsrv.dispatcher.control_server import LONGEST_QUESTION
from tests.helpers.control import POOL, PUPPET, ask_puppet, dial, echo_server, query, receive_line_of
from tests.helpers.plugins import listener, served
from tests.helpers.server import TIMEOUT, ServerProcess, receive_all, receive_line

ZOMBIE = """
import ctypes


class Zombies:
    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        pid = os.fork()
        if pid == 0:
            ctypes.CDLL(None).prctl(15, b"caf\\xe9")  # PR_SET_NAME
            os._exit(0)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        conn.send(b"%d\\n" % pid)
"""


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with echo_server(tmp_path_factory.mktemp("echo")) as server:
        yield server


def strict(line: bytes) -> Any:
    """Read JSON strictly: no bytes that are not UTF-8, no lone surrogates."""
    found = json.loads(line.decode())
    json.dumps(found, ensure_ascii=False).encode()
    return found


@pytest.mark.server
@pytest.mark.parametrize(
    "question",
    [
        b"[" * 1022,
        b'{"request": ' + b"[" * 1000,
        b'{"a":' * 200,
        b'{"request": "\\ud800"}',
        b'{"request": "\xff"}',
        b'{"request": ["status"]}',
        b'{"request": null}',
        b'["request"]',
        b"\0" * 100,
        b"\xed\xb3\xa9",
        b"x" * (LONGEST_QUESTION - 1),
        b"\x1b[2J",
    ],
)
def test_a_question_costs_at_most_its_connection(echo: ServerProcess, question: bytes) -> None:
    dispatcher = echo.dispatcher_pid
    with dial(echo) as sock:
        sock.sendall(question + b"\n")
        answer = receive_line_of(sock)
    if answer:
        assert "error" in strict(answer)
    assert query(echo)["status"]["server"]["dispatcher_pid"] == dispatcher
    assert echo.exchange("hello", b"still here") == b"still here"


@pytest.mark.server
@pytest.mark.parametrize("question", [b"\n", b"x\n"])
def test_many_questions_at_once_are_answered_one_after_the_other(echo: ServerProcess, question: bytes) -> None:
    number = (LONGEST_QUESTION - 1) // len(question)
    with dial(echo) as sock:
        sock.sendall(question * number)
        sock.shutdown(socket.SHUT_WR)
        answers = receive_all(sock).splitlines()
    assert len(answers) == number
    assert query(echo)["status"]["server"]["restarts"] == 0


@pytest.mark.server
def test_a_question_without_an_end_and_an_answer_that_nobody_reads(echo: ServerProcess) -> None:
    with dial(echo) as sock:
        sock.sendall(b"stat")
    with dial(echo) as sock:
        sock.sendall(b"status\n" * 100)
    assert query(echo)["status"]["server"]["restarts"] == 0


@pytest.mark.server
def test_a_process_may_have_any_name(tmp_path: Path) -> None:
    with served(tmp_path, ZOMBIE, listener("zombies"), pool='workers = 1\ncontrol = "run/ctl"') as server:
        with server.connect("zombies") as sock:
            sock.sendall(b"go\n")
            pid = int(receive_line(sock))
            with dial(server) as asking:
                asking.sendall(b"status\n")
                programs = strict(receive_line_of(asking))["status"]["programs"]
            assert [program["command"] for program in programs if program["pid"] == pid] == ["[caf\\xe9]"]
            shown = poolsrv("status", "--config", str(server.file))
            assert (shown.returncode, shown.stderr) == (0, b"")
            assert b"[caf\\xe9]" in shown.stdout
        assert server.stop() == 0


PEER = """
class Peer:
    @hookimpl
    def on_connection_init(self, conn):
        conn.send(f"{conn.peer} {conn.local}\\n".encode())
        conn.log.info("here")
        conn.close()
"""


@pytest.mark.server
@pytest.mark.parametrize("name", [None, b"client", b"\0abstract", b"caf\xe9\n\x1b[2J"])
def test_the_name_of_a_unix_clients_socket_is_ignored(tmp_path: Path, name: bytes | None) -> None:
    with served(tmp_path, PEER, listener("peer", bind="unix:s")) as server:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            if name is not None:
                sock.bind(name if name[:1] == b"\0" else os.fsencode(tmp_path) + b"/" + name)
            sock.connect(str(tmp_path / "s"))
            assert receive_line(sock).decode() == f"('unix:', 0) ('unix:{tmp_path}/s', 0)\n"
        server.wait_for_line(r"peer #1 unix:: here|peer #1 unix: here")


# --- a config whose path is not UTF-8


def poolsrv(*arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "poolsrv", *arguments],
        capture_output=True,
        timeout=TIMEOUT,
        env=dict(os.environ, **environment),
    )


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    folder = tmp_path / os.fsdecode(b"caf\xe9 \x1b[1m")
    folder.mkdir()
    return folder


@pytest.mark.server
def test_a_server_whose_path_is_not_utf_8_serves_answers_and_reloads(odd: Path, site: Path) -> None:
    pool = POOL.replace("[pool]\n", '[pool]\npidfile = "p.pid"\n')
    with ServerProcess(pool + PUPPET, odd, paths=(site,)) as server:
        serves_answers_and_reloads(server.wait_ready(), pool, site)
        assert server.stop() == 0


def serves_answers_and_reloads(server: ServerProcess, pool: str, site: Path) -> None:
    with server.connect("puppet") as sock:
        assert ask_puppet(sock, b"pid")
    with dial(server) as asking:
        asking.sendall(b"status\n")
        found = strict(receive_line_of(asking))["status"]
    assert found["server"]["config"] == text.encodable(str(server.file))
    for arguments in (("status",), ("status", "--json"), ("check",), ("reload",)):
        done = poolsrv(*arguments, "--config", os.fsencode(server.file), PYTHONPATH=str(site))
        assert (done.returncode, done.stderr) == (0, b""), arguments
        done.stdout.decode()
    server.file.write_text(pool + PUPPET.replace("puppet", "nonsense"))
    done = poolsrv("reload", "--config", os.fsencode(server.file))
    assert done.returncode == 1
    assert b"caf\\xe9" in done.stderr
    with dial(server) as asking:
        asking.sendall(b"status\n")
        found = strict(receive_line_of(asking))["status"]
    assert "caf\\xe9" in found["server"]["last_reload"]["errors"][0]
    assert found["server"]["restarts"] == 0


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_errors_of_a_config_whose_path_is_not_utf_8(odd: Path, encoding: str) -> None:
    file = odd / "a.toml"
    file.write_text('[listeners.a]\nbind = "größe"\nhandler = "größe"\n')
    done = poolsrv("check", "--config", os.fsencode(file), PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert b"Traceback" not in done.stderr
    assert b"caf\\xe9" in done.stderr


def test_output_that_the_terminal_can_not_show(tmp_path: Path) -> None:
    file = tmp_path / "größe.toml"
    file.write_text('[listeners.a]\nbind = ":7007"\nhandler = "echo"\n')
    done = poolsrv("check", "--config", str(file), PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(os.fsencode(tmp_path))


# --- the service manager, the log


def test_the_service_manager_gets_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(TIMEOUT)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notifier = systemd.Notifier()
        notifier.send("READY=1", "STATUS=reload failed: caf\udce9\n\x1b[2J " + "ü" * 100_000)
        first, second = sock.recv(1 << 20).decode().split("\n")
    assert first == "READY=1"
    assert second.startswith("STATUS=reload failed: caf\\xe9 \\x1b[2J ü")
    assert len(second.encode()) < 4096


@pytest.mark.parametrize("kind", ["text", "json"])
def test_every_line_of_the_log_is_text(tmp_path: Path, kind: str) -> None:
    script = (
        "import logging, sys; from poolsrv.core import logs; logs.set_up('info', sys.argv[1], sys.argv[2])\n"
        "log = logging.getLogger('x')\n"
        "log.info('caf\\udce9 %s', 'a\\ud800b', extra={'peer': 'p\\udcff', 'reason': b'x'})\n"
        "try:\n    raise ValueError('caf\\udce9\\x1b[2J')\nexcept ValueError: log.exception('no')\n"
        "log.info('%d', 'no number')\n"
    )
    done = subprocess.run([sys.executable, "-c", script, kind, str(tmp_path / "log")], capture_output=True, check=True)
    assert done.stderr == b""
    written = (tmp_path / "log").read_text(encoding="utf-8", errors="strict")
    assert "\x1b" not in written
    if kind == "json":
        lines = [strict(line.encode()) for line in written.splitlines()]
        assert lines[0]["message"] == "caf\\xe9 a\\ud800b"
        assert lines[0]["peer"] == "p\\xff"
        assert "can't be formatted: TypeError" in lines[-1]["message"]
    else:
        assert "caf\\xe9 a\\ud800b" in written
        assert "ValueError: caf\\xe9\\x1b[2J" in written
        assert "a line of the logger x can't be formatted: TypeError" in written
