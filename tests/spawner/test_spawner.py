"""The spawner and its launchers, spoken to as a pool that has been taken over would."""

from __future__ import annotations

import os
import pwd
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from poolsrv.ipc.pool_link import PoolLink
from tests.helpers.server import wait_until
from tests.helpers.strangers import ROOT

pytestmark = ROOT
USER = pwd.getpwnam("games")
LOG: dict[str, Any] = {"level": "error", "format": "text", "file": None, "owner": None}


class Spawner:
    """A spawner, for the pool of a user, which is this process.

    :param pool_user: who it is told the pool's user is.
    :param log: its standard error.
    :param file: its log file.
    """

    def __init__(self, pool_user: int, log: Path, file: Path | None = None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        theirs.set_inheritable(True)
        command = [sys.executable, "-c", "from poolsrv.spawner.process import main; main()", str(theirs.fileno())]
        output = [(os.POSIX_SPAWN_OPEN, 2, str(log), os.O_WRONLY | os.O_CREAT, 0o600)]
        self.pid = os.posix_spawn(sys.executable, command, os.environ, file_actions=output)
        theirs.close()
        self.link = PoolLink(ours)
        users = {"www": [USER.pw_uid, USER.pw_gid, [USER.pw_gid]]}
        settings = LOG | {"file": file and str(file)}
        self.link.send("table", users=users, pool_user=pool_user, no_new_privs=True, log=settings)

    def launcher(self, name: object, kind: str = "launch", count: int = 1) -> PoolLink:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.link.send(kind, [theirs.fileno()] * count, listener=name)
        theirs.close()
        ours.settimeout(30)
        return PoolLink(ours)

    def close(self) -> None:
        self.link.close()
        os.waitpid(self.pid, 0)


@pytest.fixture(scope="module")
def spawner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Spawner]:
    spawner = Spawner(os.getuid(), tmp_path_factory.mktemp("spawner") / "log")
    yield spawner
    spawner.close()


START: dict[str, Any] = {
    "env": None, "cwd": "/", "given": [False] * 3, "limits": {}, "umask": 0o22, "sandbox": None
}  # fmt: skip


def start(launcher: PoolLink, *argv: str, **changes: Any) -> str:
    """Ask for a program; what the launcher answers, or ``"gone"``."""
    launcher.send("start", **START | {"argv": argv} | changes)
    return answer(launcher)[0]


def answer(launcher: PoolLink) -> tuple[str, dict[str, Any]]:
    try:
        while (message := launcher.receive()) is not None:
            if message.kind not in ("ready", "ended"):  # what an earlier one has done
                return message.kind, message.fields
    except EOFError:
        pass
    return "gone", {}


def end_of(launcher: PoolLink) -> bool:
    """Wait for a launcher's end, which says nothing but that it is there before."""
    try:
        while (message := launcher.receive()) is not None:
            assert message.kind == "ready"
    except EOFError:
        return True
    return False


@pytest.mark.parametrize(
    "asked",
    [
        {"name": "root"}, {"name": 0}, {"name": None}, {"name": ["www"]},
        {"name": "www", "kind": "table"}, {"name": "www", "kind": "become"}, {"name": "www", "count": 2},
    ],
)  # fmt: skip
def test_the_pool_gets_no_other_user(spawner: Spawner, asked: dict[str, Any]) -> None:
    """It can name a listener that root has named, and nothing else. The spawner goes on."""
    refused = spawner.launcher(**asked)
    assert start(refused, "/bin/true") == "gone"
    refused.close()
    launcher = spawner.launcher("www")
    assert start(launcher, "/bin/true") == "started"
    launcher.close()


def test_only_the_pool_can_ask(tmp_path: Path) -> None:
    """Where that has the programs' own user, the spawner has become nobody else than that, without capabilities."""
    spawner = Spawner(USER.pw_uid, tmp_path / "log")
    launcher = spawner.launcher("www")
    assert start(launcher, "/bin/true") == "gone"
    status = Path(f"/proc/{spawner.pid}/status").read_text()
    assert f"Uid:\t{USER.pw_uid}\t{USER.pw_uid}\t{USER.pw_uid}\t" in status
    assert f"CapPrm:\t{0:016x}\n" in status
    launcher.close()
    spawner.close()


def test_the_table_comes_once_and_from_root(tmp_path: Path) -> None:
    """A later one changes nothing."""
    spawner = Spawner(os.getuid(), tmp_path / "log")
    spawner.link.send("table", users={"www": [0, 0, [0]]}, pool_user=0, no_new_privs=False, log=LOG)
    launcher = spawner.launcher("www")
    reader, writer = os.pipe()
    launcher.send(
        "start", [writer], argv=["/usr/bin/id", "-u"], env=None, cwd="/", given=[False, True, False], limits={},
        umask=0, sandbox=None,
    )  # fmt: skip
    os.close(writer)
    with open(reader) as output:
        assert int(output.read()) == USER.pw_uid
    launcher.close()
    spawner.close()


@pytest.mark.parametrize(
    "message",
    [
        ("start", {}), ("start", {"argv": 7}), ("end", {"pid": "x", "grace": 1}), ("become", {}),
        ("kill", {"pid": None}), ("kill", {"pid": 0}),
    ],
)  # fmt: skip
def test_a_launcher_ends_at_what_it_does_not_understand(spawner: Spawner, message: tuple[str, dict[str, Any]]) -> None:
    launcher = spawner.launcher("www")
    launcher.send(message[0], **message[1])
    assert end_of(launcher)
    launcher.close()


def test_a_launcher_signals_only_its_own(spawner: Spawner) -> None:
    """Not this process, nor a program of the same user that another launcher has started."""
    first, second = spawner.launcher("www"), spawner.launcher("www")
    # The second one has replaced the first: a worker has one for each listener.
    assert start(first, "/bin/true") == "gone"
    assert start(second, "/bin/sleep", "1000") == "started"
    for pid in (os.getpid(), spawner.pid, os.getppid()):
        second.send("kill", pid=pid)
        second.send("end", pid=pid, grace=0)
    assert start(second, "/no/such/program") == "failed"
    first.close()
    second.close()


def test_another_process_can_t_speak_for_a_worker(spawner: Spawner) -> None:
    """A copy of the worker has its descriptors, but not its pid."""
    launcher = spawner.launcher("www")
    pid = os.fork()
    if pid == 0:
        try:
            launcher.send("start", argv=["/bin/true"])
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert end_of(launcher)
    launcher.close()


def test_a_stopped_launcher_is_killed(spawner: Spawner) -> None:
    """Its programs can stop it. Its worker would wait for its answer, and serve nobody meanwhile."""
    launcher = spawner.launcher("www")
    assert start(launcher, "/bin/sh", "-c", "kill -TSTP $PPID; exec sleep 1000") == "started"
    assert start(launcher, "/bin/true") == "started"  # nothing has come of that
    start(launcher, "/bin/sh", "-c", "kill -STOP $PPID; exec sleep 1000")
    wait_until(lambda: start(launcher, "/bin/true") == "gone", "the launcher's end")
    launcher.close()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("renice -n 19 $PPID; taskset -p 1 $PPID", "share of the CPUs"),
        ("chrt --idle -p 0 $PPID", "share of the CPUs"),
        ("ionice -c 3 -p $PPID", "priority of input and output"),
    ],
)  # fmt: skip
def test_a_launcher_that_has_been_changed(spawner: Spawner, change: str, what: str) -> None:
    """By a program: the next one would inherit that."""
    launcher = spawner.launcher("www")
    assert start(launcher, "/bin/sh", "-c", change) == "started"
    ended = launcher.receive()
    assert ended is not None
    assert (ended.kind, ended.fields["status"]) == ("ended", 0)
    launcher.send("start", **START, argv=["/bin/true"])
    changed = launcher.receive()
    assert changed is not None
    assert (changed.kind, changed.fields) == ("changed", {"what": what})
    assert end_of(launcher)
    launcher.close()


def test_a_program_that_is_leased(spawner: Spawner) -> None:
    """By another one of its user. The worker would wait for its start."""
    with TemporaryDirectory(prefix="poolsrv-test-") as name:
        Path(name).chmod(0o755)
        program = Path(name, "program")
        program.write_text("#!/bin/sh\n")
        program.chmod(0o755)
        os.chown(program, USER.pw_uid, USER.pw_gid)
        launcher = spawner.launcher("www")
        reader, writer = os.pipe()
        lease = f"$| = 1; $SIG{{IO}} = 'IGNORE'; open(F, '{program}'); fcntl(F, 1024, 1) and print 'leased'; sleep 1000"
        argv = ["/usr/bin/perl", "-e", lease]
        launcher.send("start", [writer], **START | {"argv": argv, "given": [False, True, False]})
        os.close(writer)
        assert os.read(reader, 100) == b"leased"
        os.close(reader)
        assert answer(launcher)[0] == "started"
        launcher.send("start", **START, argv=[str(program)])
        kind, fields = answer(launcher)
        assert (kind, fields.get("text")) == ("failed", "another process has leased it")
        launcher.close()


def test_the_log_is_opened_again(tmp_path: Path) -> None:
    """By the pool, which passes it on: neither the spawner nor a launcher may open it. Nothing else passes for it."""
    old, new, other = tmp_path / "old", tmp_path / "new", tmp_path / "other"
    spawner = Spawner(os.getuid(), tmp_path / "stderr", old)
    launcher = spawner.launcher("www")
    assert start(launcher, "/bin/true") == "started"
    with new.open("a") as file, other.open("w") as wrong:
        for link in (spawner.link, launcher):
            link.send("log", [file.fileno()])
        spawner.link.send("log", [wrong.fileno()])
        spawner.link.send("log")
        assert start(launcher, "/bin/true") == "started"
        launcher.send("log", [wrong.fileno()])
    assert start(launcher, "/bin/true") == "gone"
    launcher.close()
    spawner.close()
    assert (old.read_text(), other.read_text()) == ("", "")
    lines = new.read_text().splitlines()
    assert len([line for line in lines if "spawner[" in line and "what it can't have" in line]) == 2
    assert len([line for line in lines if "launcher www[" in line and "a message that is wrong" in line]) == 1
