"""The log of a whole server in a file: formats, levels, rotation, and what goes wrong with files."""

from __future__ import annotations

import json
import logging
import os
import pwd
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from poolsrv.core import logs
from tests.helpers.distributions import install
from tests.helpers.http import PROGRAMS, Client, cgi_listener, write_programs
from tests.helpers.plugins import ask, listener
from tests.helpers.puppet import wait_listening
from tests.helpers.server import TIMEOUT, ServerProcess, children_of, descendants_of, receive_all, wait_until

PLUGIN = """
import logging
import os

from poolsrv import hookimpl

log = logging.getLogger("says")


class Says:
    @hookimpl
    def on_worker_start(self, worker):
        worker.on_reopen_logs(lambda: log.info("told"))
        worker.on_reopen_logs(lambda: 1 / 0)
        handle = worker.on_reopen_logs(lambda: log.info("cancelled"))
        handle.cancel()
        handle.cancel()

    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            if line == b"fail\\n":
                raise OSError("the plugin's fault")
            if line == b"die\\n":
                os.kill(os.getpid(), 9)
            conn.log.info("said %s", line.decode().strip())
            conn.send(line)
"""
TEXT = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} [A-Z]+ +(supervisor|dispatcher|worker \d+)\[\d+\] ")


@contextmanager
def running(folder: Path, log: str, *listeners: str, ready_in: str | None = "server.log") -> Iterator[ServerProcess]:
    """A server of two workers with this table ``[log]``, whose line with ``ready`` is in a file."""
    install(folder / "site", "says", {"says": "says:Says"}, PLUGIN)
    pool = "" if "[pool]" in log else "[pool]\nworkers = 2\n"
    config = f"{pool}[log]\n{log}\n" + ("".join(listeners) or listener("says", bind="unix:s"))
    with ServerProcess(config, folder, paths=(folder / "site",)) as server:
        if ready_in is not None:
            wait_for(folder / ready_in, r"\bready\b")
            wait_until(lambda: logs_open(server.pid, folder), "the supervisor, which follows")
        yield server


def wait_for(path: Path, pattern: str, count: int = 1) -> list[str]:
    """Wait until this many lines of a file match; return them."""
    found: list[str] = []

    def look() -> bool:
        lines = path.read_text().splitlines() if path.exists() else []
        found[:] = [line for line in lines if re.search(pattern, line)]
        return len(found) >= count

    wait_until(look, f"{pattern!r} {count} times in {path}")
    return found


def connect(server: ServerProcess) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(TIMEOUT)
    sock.connect(str(server.folder / "s"))
    return sock


def logs_open(pid: int, folder: Path) -> list[str]:
    """The log files that a process has open."""
    names = []
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            names.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
        except FileNotFoundError:
            pass
    return [name for name in names if name.startswith(f"{folder}/") and ".log" in name]


def wait_reopened(server: ServerProcess, path: Path) -> None:
    """Wait until every process has this log file open, and no other."""
    everybody = [server.pid, *descendants_of(server.pid)]
    assert len(everybody) == 4
    wait_until(
        lambda: all(logs_open(pid, server.folder) == [str(path)] for pid in everybody), "processes that reopen it"
    )


@pytest.mark.server
def test_text_goes_to_the_file_and_nothing_else_to_standard_error(tmp_path: Path) -> None:
    with running(tmp_path, 'file = "server.log"') as server:
        with connect(server) as sock:
            assert ask(sock, b"hello") == b"hello"
        assert server.stop() == 0
        lines = (tmp_path / "server.log").read_text().splitlines()
        assert all(TEXT.match(line) for line in lines)
        assert [line for line in lines if re.search(r"worker \d\[\d+\] says #\d+ unix:\S*: said hello", line)]
        assert lines[-1].endswith(" stopped")
        assert server.log == ""
        assert (tmp_path / "server.log").stat().st_mode & 0o777 == 0o640 & ~_umask()


def _umask() -> int:
    former = os.umask(0)
    os.umask(former)
    return former


@pytest.mark.server
def test_json_has_the_same_fields_everywhere(tmp_path: Path) -> None:
    # On a busy machine any hook may be slow, of which a warning would tell.
    quiet = 'format = "json"\n[pool]\nworkers = 2\nslow_hook = 0'
    with running(tmp_path, quiet, ready_in=None) as server:
        server.wait_for_line('"message": "ready: ')
        with connect(server) as sock:
            assert ask(sock, b"hello") == b"hello"
            sock.sendall(b"fail\n")
            assert receive_all(sock) == b""
        with connect(server) as sock:
            sock.sendall(b"die\n")
            assert receive_all(sock) == b""
        server.wait_for_line('"message": "worker . .pid .*serves', count=3)
        assert server.stop() == 0
        records: list[dict[str, Any]] = [json.loads(line) for line in server.lines]
    for record in records:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", record["time"])
        assert record["level"] in ("info", "error")
        assert record["role"] in ("supervisor", "dispatcher", "worker")
        assert record["logger"].startswith("poolsrv.")
        assert set(record) <= {"time", "level", "role", "pid", "logger", "message", *logs.FIELDS, "traceback"}

    def one(text: str) -> dict[str, Any]:
        return next(record for record in records if text in record["message"])

    said = one("said hello")
    assert (said["role"], said["worker_pid"], said["listener"]) == ("worker", said["pid"], "says")
    assert said["worker"] in (0, 1)
    assert said["connection"] == 1
    assert said["peer"].startswith("unix:")
    failed = one("failed in on_readable")
    assert (failed["listener"], failed["connection"], failed["level"]) == ("says", 1, "error")
    assert failed["traceback"].startswith("Traceback ")
    assert "OSError: the plugin's fault" in failed["traceback"]
    died = one("killed by SIGKILL")
    assert (died["role"], died["reason"]) == ("dispatcher", "killed by SIGKILL")
    assert {died["worker"], died["worker_pid"]} <= {0, 1} | {one(f"worker {n}")["worker_pid"] for n in (0, 1)}
    assert one("SIGTERM: stopping")["reason"] == "SIGTERM"
    assert one("stopped")["role"] == "supervisor"


@pytest.mark.server
@pytest.mark.parametrize(("arguments", "shown"), [((), False), (("--log-level", "info"), True)])
def test_the_command_lines_level_wins(tmp_path: Path, arguments: tuple[str, ...], shown: bool) -> None:
    install(tmp_path / "site", "says", {"says": "says:Says"}, PLUGIN)
    config = '[log]\nlevel = "error"\n' + listener("says", bind="unix:s")
    with ServerProcess(config, tmp_path, paths=(tmp_path / "site",), arguments=arguments) as server:
        wait_listening(tmp_path / "s")
        with connect(server) as sock:
            assert ask(sock, b"hello") == b"hello"
        assert server.stop() == 0
        assert ("said hello" in server.log) is shown


@pytest.mark.server
def test_a_rotation_under_load_loses_no_line_and_doubles_none(tmp_path: Path) -> None:
    rounds, said = 5, 300
    with running(tmp_path, 'file = "server.log"') as server:
        path = tmp_path / "server.log"

        def talk(name: str) -> None:
            with connect(server) as sock:
                for number in range(said):
                    assert ask(sock, f"{name}.{number}.".encode()) == f"{name}.{number}.".encode()

        talkers = [threading.Thread(target=talk, args=(f"talker{n}",)) for n in range(4)]
        for talker in talkers:
            talker.start()
        for number in range(rounds):
            path.rename(tmp_path / f"server.log.{number}")
            server.signal(signal.SIGUSR1)
            wait_reopened(server, path)
        for talker in talkers:
            talker.join(TIMEOUT)
        assert server.stop() == 0
        files = [path, *(tmp_path / f"server.log.{number}" for number in range(rounds))]
        lines = [line for file in files for line in file.read_text().splitlines()]
    # The callback that fails has a traceback, which is not of this form.
    found = sorted(match[1] for line in lines if TEXT.match(line) and (match := re.search(r" said (\S+)$", line)))
    assert found == sorted(f"talker{n}.{number}." for n in range(4) for number in range(said))


@pytest.mark.server
def test_plugins_are_told_to_reopen_their_files(tmp_path: Path) -> None:
    with running(tmp_path, 'file = "server.log"') as server:
        server.signal(signal.SIGUSR1)
        wait_for(tmp_path / "server.log", r"worker 0\[\d+\] told$")
        wait_for(tmp_path / "server.log", r"worker 1\[\d+\] told$")
        wait_for(tmp_path / "server.log", r"worker \d\[\d+\] a plugin's callback failed \(on_reopen_logs\)", 2)
        assert server.stop() == 0
        assert "cancelled" not in (tmp_path / "server.log").read_text()


@pytest.mark.server
def test_one_process_can_be_told_alone(tmp_path: Path) -> None:
    with running(tmp_path, 'file = "server.log"') as server:
        path = tmp_path / "server.log"
        (dispatcher,) = children_of(server.pid)
        first, second = children_of(dispatcher)
        path.rename(tmp_path / "server.log.1")
        os.kill(first, signal.SIGUSR1)
        wait_until(lambda: logs_open(first, tmp_path) == [str(path)], "a worker that reopens it")
        assert logs_open(second, tmp_path) == [f"{path}.1"]
        os.kill(dispatcher, signal.SIGUSR1)
        wait_until(lambda: logs_open(second, tmp_path) == [str(path)], "the other one")
        assert logs_open(dispatcher, tmp_path) == [str(path)]
        assert server.stop() == 0


@pytest.mark.server
def test_where_reopening_fails_the_old_file_goes_on_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    with running(tmp_path, 'file = "logs/server.log"', ready_in="logs/server.log") as server:
        (tmp_path / "logs").rename(tmp_path / "moved.logs")
        server.signal(signal.SIGUSR1)
        path = tmp_path / "moved.logs" / "server.log"
        message = r"can't reopen the log \S+/logs/server\.log: No such file or directory; going on with the old file$"
        wait_for(path, message, 4)
        server.wait_for_line(message, count=4)
        with connect(server) as sock:
            assert ask(sock, b"hello") == b"hello"
        wait_for(path, "said hello")
        (tmp_path / "logs").mkdir()
        server.signal(signal.SIGUSR1)
        wait_reopened(server, tmp_path / "logs" / "server.log")
        assert server.stop() == 0


@pytest.mark.server
def test_usr1_kills_no_pool_that_is_just_starting(tmp_path: Path) -> None:
    with running(tmp_path, 'file = "server.log"', ready_in=None) as server:
        path = tmp_path / "server.log"
        while not path.exists() or not re.search(r"\bready\b", path.read_text()):
            assert server.process.poll() is None
            for pid in [*descendants_of(server.pid)]:
                try:
                    os.kill(pid, signal.SIGUSR1)
                except ProcessLookupError:
                    pass
        assert server.stop() == 0
        assert "killed" not in path.read_text() + server.log


@pytest.mark.server
def test_a_reload_takes_over_the_table(tmp_path: Path) -> None:
    with running(tmp_path, 'file = "server.log"') as server:
        text = server.file.read_text().replace('"server.log"', '"other.log"\nformat = "json"')
        server.file.write_text(text)
        server.signal(signal.SIGHUP)
        wait_for(tmp_path / "other.log", '"role": "supervisor".*generation 2 .* serves')
        assert '"role": "dispatcher"' in (tmp_path / "other.log").read_text()
        server.file.write_text(text.replace("other.log", "missing/other.log"))
        server.signal(signal.SIGHUP)
        wait_for(tmp_path / "other.log", "reload: .*: log.file: there is no directory .*/missing, expected one")
        assert server.stop() == 0
        assert json.loads((tmp_path / "other.log").read_text().splitlines()[-1])["message"] == "stopped"


@pytest.mark.server
def test_a_file_that_cant_be_opened_is_an_error_at_run_time(tmp_path: Path) -> None:
    with running(tmp_path, 'file = "/proc/server.log"', ready_in=None) as server:
        assert server.wait() == 1
        assert server.lines == ["poolsrv: log.file: can't open /proc/server.log: No such file or directory"]


@pytest.mark.server
def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "full.log").symlink_to("/dev/full")
    with running(tmp_path, 'file = "full.log"', ready_in=None) as server:
        server.wait_for_line(r"dispatcher\[\d+\] can't write the log \S+/full.log: No space left on device")
        wait_until(lambda: len(descendants_of(server.pid)) == 3, "workers")
        for _ in range(2):
            with connect(server) as sock:
                assert ask(sock, b"hello") == b"hello"
        (tmp_path / "full.log").unlink()
        server.signal(signal.SIGUSR1)
        lost = r"\(lines that could not be written, and are lost: \d+\)"
        wait_for(tmp_path / "full.log", lost)
        assert server.stop() == 0


@pytest.mark.server
def test_a_pipe_that_nobody_empties_holds_up_nothing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.log")
    reader = os.open(tmp_path / "pipe.log", os.O_RDONLY | os.O_NONBLOCK)
    try:
        with running(tmp_path, 'file = "pipe.log"\nformat = "json"', ready_in=None) as server:
            wait_until(lambda: len(descendants_of(server.pid)) == 3, "workers")
            with connect(server) as sock:
                sock.sendall(b"".join(b"%d%s\n" % (n, b"x" * 900) for n in range(100)))
                for _ in range(100):
                    assert ask(sock, b"hello")
                text = os.read(reader, 1 << 20)
                while b"are lost" not in text:
                    assert ask(sock, b"hello")
                    try:
                        text += os.read(reader, 1 << 20)
                    except BlockingIOError:
                        pass
            # A line that was written in part stands alone.
            lines = text.decode().splitlines()
            told = next(line for line in lines if "are lost" in line)
            assert json.loads(told)["message"].startswith("lines that could not be written, and are lost: ")
            assert server.stop() == 0
    finally:
        os.close(reader)


@pytest.mark.server
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_root_gives_the_file_to_the_user_that_the_pool_runs_as(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith(("pytest-", "popen-", "test_")):
            folder.chmod(0o755)
    (tmp_path / "logs").mkdir(mode=0o755)  # root's
    config = 'file = "logs/server.log"\n[pool]\nworkers = 2\nuser = "nobody"'
    with running(tmp_path, config, ready_in="logs/server.log") as server:
        path = tmp_path / "logs" / "server.log"
        nobody = pwd.getpwnam("nobody").pw_uid
        assert path.stat().st_uid == nobody
        path.rename(tmp_path / "logs" / "server.log.1")
        server.signal(signal.SIGUSR1)
        wait_reopened(server, path)
        assert path.stat().st_uid == nobody
        path.unlink()
        (tmp_path / "other").write_text("")
        path.symlink_to(tmp_path / "other")
        server.signal(signal.SIGUSR1)
        server.wait_for_line(r"supervisor\[\d+\] can't reopen the log .*: Too many levels of symbolic links")
        assert server.stop() == 0
        assert (tmp_path / "other").stat().st_uid == os.geteuid()


@pytest.mark.server
def test_the_access_log_of_cgi_joins_a_rotation(tmp_path: Path) -> None:
    root = write_programs(tmp_path / "root", PROGRAMS)
    access = tmp_path / "access.log"
    with running(tmp_path, "", cgi_listener(root=root, access_log=access), ready_in=None) as server:
        server.wait_ready()
        with Client(server) as client:
            client.get("/hello.sh?before")
            wait_for(access, "before")
            access.rename(tmp_path / "access.log.1")
            server.signal(signal.SIGUSR1)
            workers = server.worker_pids()
            wait_until(lambda: all(logs_open(pid, tmp_path) == [str(access)] for pid in workers), "new files")
            client.get("/hello.sh?after")
            wait_for(access, "after")
            assert "after" not in (tmp_path / "access.log.1").read_text()
            (tmp_path / "access.log").unlink()
            (tmp_path / "access.log").mkdir()
            server.signal(signal.SIGUSR1)
            server.wait_for_line("can't reopen the access log: Is a directory; going on with the old file", count=2)
            client.get("/hello.sh?still")
        assert server.stop() == 0


def test_json_escapes_what_no_text_can_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logs, "_handler", None)
    monkeypatch.setattr(logs, "_role", "poolsrv")
    monkeypatch.setattr(logs, "_worker", None)
    level = logging.root.level
    try:
        logs.set_up("debug", "json", str(tmp_path / "log"))
        logging.getLogger("a").debug("%s", "a\nb\x1b\udc80é", extra={"reason": OSError("x"), "other": 1})
        logs.set_up("debug")
    finally:
        logging.captureWarnings(False)
        logging.root.setLevel(level)
    (line,) = (tmp_path / "log").read_bytes().splitlines()
    assert line.isascii()
    record = json.loads(line)
    assert (record["message"], record["level"], record["reason"]) == ("a\nb\x1b\\x80é", "debug", "x")
    assert "other" not in record
    with pytest.raises(FileNotFoundError):
        logs.set_up("debug", "text", str(tmp_path / "missing" / "log"))
