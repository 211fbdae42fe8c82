"""The pid file: which lock counts, and that no other process is ever signalled."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poolsrv.core import pid_file
from poolsrv.core.dumpable import set_dumpable
from tests.helpers.command_line import invoke
from tests.helpers.server import TIMEOUT, ServerProcess, is_alive
from tests.helpers.strangers import ROOT, STRANGER, lock, open_tmp, stranger, wait

Serve = Callable[..., ServerProcess]
__all__ = ["open_tmp"]
ECHO = '[listeners.hello]\nbind = "127.0.0.1:0"\nhandler = "echo"\n'


def text(path: Path) -> str:
    return f'[pool]\nworkers = 1\npidfile = "{path}"\n{ECHO}'


def stop(config: Path) -> subprocess.CompletedProcess[str]:
    return invoke("stop", "--config", config, cwd=config.parent)


@pytest.mark.server
@ROOT
def test_a_lock_of_another_users_is_in_nobodys_way(serve: Serve, open_tmp: Path) -> None:
    path = open_tmp / "p.pid"
    path.write_text("1\n")
    path.chmod(0o644)
    with stranger(wait, lambda: lock(path)) as other:
        path.write_text(f"{other}\n")
        server = serve(text(path))
        assert path.read_text() == f"{server.pid}\n"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        done = stop(server.file)
        assert (done.returncode, done.stdout) == (0, f"stopped (it was pid {server.pid})\n")
        assert is_alive(other)
    assert not path.exists()


@ROOT
def test_a_process_that_locks_the_file_of_another_user_is_not_the_server(tmp_path: Path, open_tmp: Path) -> None:
    path = open_tmp / "p.pid"
    config = tmp_path / "poolsrv.toml"
    config.write_text(text(path))
    path.write_text("1\n")
    path.chmod(0o644)
    with stranger(wait, lambda: lock(path)) as other:
        path.write_text(f"{other}\n")
        done = stop(config)
        assert (done.returncode, done.stderr) == (1, f"poolsrv: no server runs: no process holds {path}\n")
        assert is_alive(other)


@pytest.mark.server
@ROOT
def test_a_file_of_another_users_is_replaced(serve: Serve, open_tmp: Path) -> None:
    path = open_tmp / "p.pid"
    path.write_text("1\n")
    os.chown(path, STRANGER, STRANGER)
    with stranger(wait, lambda: lock(path)):
        server = serve(text(path))
        found = path.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (0, 0o600)
        assert server.stop() == 0


@pytest.mark.server
@ROOT
def test_links_in_a_folder_of_another_users(serve: Serve, open_tmp: Path) -> None:
    victim = open_tmp / "victim"
    victim.write_text("17\n")  # it could be a pid file
    victim.chmod(0o640)
    theirs = open_tmp / "theirs"
    theirs.mkdir()
    os.chown(theirs, STRANGER, STRANGER)
    (theirs / "link").symlink_to(victim)
    (theirs / "folder").symlink_to(open_tmp)
    os.link(victim, theirs / "hard")
    for name, problem in (
        ("link", "there is something of that name, and it is no file with a pid"),
        ("folder/victim", "folder is a symbolic link that others can change"),
    ):
        server = serve(text(theirs / name), ready=False)
        assert server.wait() == 1
        assert server.lines == [f"poolsrv: pool.pidfile: {theirs}/{name}: {problem}"]
    server = serve(text(theirs / "hard"))
    assert (theirs / "hard").read_text() == f"{server.pid}\n"
    assert server.stop() == 0
    assert (victim.read_text(), stat.S_IMODE(victim.stat().st_mode)) == ("17\n", 0o640)


@pytest.mark.server
def test_what_stands_in_the_file_is_not_believed(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "p.pid"
    server = serve(text(path))
    with subprocess.Popen(["sleep", "1000"]) as bystander:
        path.write_text(f"{bystander.pid}\n")
        done = stop(server.file)
        assert (done.returncode, done.stdout) == (0, f"stopped (it was pid {server.pid})\n")
        assert bystander.poll() is None
        bystander.kill()
    assert server.wait() == 0


@pytest.mark.server
def test_a_pid_that_was_left_behind_is_nobodys(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "p.pid"
    server = serve(text(path))
    server.signal(signal.SIGKILL)
    server.wait()
    with subprocess.Popen(["sleep", "1000"]) as bystander:
        path.write_text(f"{bystander.pid}\n")
        done = stop(server.file)
        assert (done.returncode, done.stderr) == (1, f"poolsrv: no server runs: no process holds {path}\n")
        assert bystander.poll() is None
        bystander.kill()


@pytest.mark.server
@pytest.mark.parametrize("content", ["important\n", "1" * 100, "12 13\n"])
def test_a_file_that_is_something_else_is_left_alone(serve: Serve, tmp_path: Path, content: str) -> None:
    path = tmp_path / "p.pid"
    path.write_text(content)
    server = serve(text(path), ready=False)
    assert server.wait() == 1
    assert server.lines == [f"poolsrv: pool.pidfile: {path}: there is a file of that name, and it is none with a pid"]
    assert path.read_text() == content


def test_a_process_that_holds_it_already(tmp_path: Path) -> None:
    path = tmp_path / "p.pid"
    held = pid_file.PidFile(str(path))
    os.link(path, tmp_path / "second")
    with pytest.raises(pid_file.PidFileTaken, match=f"pid {os.getpid()}"):
        pid_file.PidFile(str(tmp_path / "second"))
    script = "import sys; from poolsrv.core import pid_file; print(pid_file.running(sys.argv[1]))"
    command = [sys.executable, "-c", script, str(path)]
    assert int(subprocess.check_output(command)) == os.getpid()
    held.remove()
    assert not path.exists()
    assert pid_file.running(str(path)) == 0


OLDER = """
import fcntl, os, sys
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print(os.getpid(), file=file, flush=True)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_server_from_before_an_upgrade_is_found_and_left_its_file(tmp_path: Path) -> None:
    """That server holds the file by flock(2)."""
    path = tmp_path / "p.pid"
    config = tmp_path / "poolsrv.toml"
    config.write_text(text(path))
    command = [sys.executable, "-c", OLDER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as older:
        assert older.stdout is not None
        assert older.stdout.readline() == "held\n"
        assert pid_file.running(str(path)) == older.pid
        with pytest.raises(pid_file.PidFileTaken, match=f"pid {older.pid}"):
            pid_file.PidFile(str(path))
        done = stop(config)
        assert (done.returncode, done.stdout) == (0, f"stopped (it was pid {older.pid})\n")
        assert older.wait(TIMEOUT) == -signal.SIGTERM
    assert pid_file.running(str(path)) == 0
    pid_file.PidFile(str(path)).remove()


HIDDEN = """
import os, sys
from poolsrv.core import pid_file
os.setgid(int(sys.argv[2]))
os.setuid(int(sys.argv[2]))
pid = pid_file.running(sys.argv[1])
print("seen" if os.path.exists(f"/proc/{pid}") else "hidden")
print(pid)
try:
    pid_file.PidFile(sys.argv[1])
except pid_file.PidFileTaken:
    print("taken")
"""


@ROOT
def test_where_proc_hides_the_server_from_its_own_user(open_tmp: Path) -> None:
    """With hidepid, only root sees a process that is not dumpable."""
    path = open_tmp / "p.pid"
    path.write_text("")
    os.chown(path, STRANGER, STRANGER)
    path.chmod(0o600)
    open_tmp.chmod(0o777)

    def hold() -> pid_file.PidFile:
        set_dumpable(False)
        return pid_file.PidFile(str(path))

    with stranger(wait, hold) as server:
        command = [sys.executable, "-c", HIDDEN, str(path), str(STRANGER)]
        mount = 'mount -t proc -o hidepid=invisible proc /proc && exec "$@"'
        output = subprocess.check_output(["unshare", "-m", "/bin/sh", "-c", mount, "sh", *command], text=True)
    assert output.split() == ["hidden", str(server), "taken"]
