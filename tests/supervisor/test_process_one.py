"""As process 1 of a container: what loses its parent becomes its child, and signals without a handler do nothing."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.server import TIMEOUT, ServerProcess, children_of, wait_until

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(os.geteuid() != 0, reason="only root makes a namespace of processes"),
]

CONFIG = """\
[pool]
workers = 1
control = "run/ctl"
[listeners.hello]
bind = "127.0.0.1:0"
handler = "echo"
"""


class Container:
    """A server whose supervisor is process 1 of a namespace with a /proc of its own."""

    def __init__(self, server: ServerProcess) -> None:
        self.server = server

    @property
    def one(self) -> int:
        """The number of its process 1 outside."""
        (child,) = children_of(self.server.pid)
        return child

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as ``podman exec`` does."""
        enter = ["nsenter", f"--target={self.one}", "--pid", "--mount", f"--wd={self.server.folder}", *command]
        return subprocess.run(enter, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT)


@contextmanager
def contained(folder: Path) -> Iterator[Container]:
    unshare = shutil.which("unshare")
    assert unshare is not None
    prefix = (unshare, "--pid", "--fork", "--mount-proc", "--kill-child")
    with ServerProcess(CONFIG, folder, prefix=prefix) as server:
        yield Container(server.wait_ready())


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    with contained(tmp_path_factory.mktemp("one")) as running:
        yield running


def check(container: Container) -> tuple[int, str]:
    done = container.run(sys.executable, "-m", "poolsrv", "status", "--check", "--config", "poolsrv.toml")
    return done.returncode, done.stdout


def test_it_serves_and_the_health_check_says_so(container: Container) -> None:
    assert container.server.exchange("hello", b"hello") == b"hello"
    assert check(container) == (0, "well: 1 worker, 0 connections\n")


def zombies(parent: int) -> list[int]:
    """The children of a process that have ended and were not reaped."""
    found = []
    for child in children_of(parent):
        try:
            state = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            continue
        if state == "Z":
            found.append(child)
    return found


def test_orphans_are_reaped(container: Container) -> None:
    """What is started in the container and loses its parent: some end at once, and one lives on."""
    before = len(children_of(container.one))
    done = container.run("sh", "-c", "for i in 1 2 3 4 5; do (true &); done; (sleep 1000 >/dev/null 2>&1 & echo $!)")
    assert done.returncode == 0
    wait_until(lambda: len(children_of(container.one)) == before + 1, "the orphans' end, but one")
    assert not zombies(container.one)
    assert container.run("kill", done.stdout.strip()).returncode == 0
    wait_until(lambda: len(children_of(container.one)) == before, "the last orphan's end")


def test_a_dispatcher_that_is_killed_is_replaced(container: Container) -> None:
    (dispatcher,) = children_of(container.one)
    after = len(container.server.lines)
    os.kill(dispatcher, signal.SIGKILL)
    container.server.wait_for_line(r"\bready\b", after=after)
    assert container.server.exchange("hello", b"hello") == b"hello"
    wait_until(
        lambda: not zombies(container.one) and len(children_of(container.one)) == 1, "what it had left has ended"
    )


def test_a_reload(container: Container) -> None:
    after = len(container.server.lines)
    os.kill(container.one, signal.SIGHUP)
    container.server.wait_for_line(r"\bready\b", after=after)
    assert container.server.exchange("hello", b"hello") == b"hello"


def test_the_stop(tmp_path: Path) -> None:
    """``podman stop`` sends TERM to process 1. Its exit code is that of the container."""
    with contained(tmp_path) as container:
        os.kill(container.one, signal.SIGTERM)
        assert container.server.process.wait(TIMEOUT) == 0
