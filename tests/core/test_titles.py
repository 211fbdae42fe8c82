"""What `ps` shows of each process."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.server import ServerProcess

CONFIG = '[pool]\nworkers = 2\n[listeners.a]\nbind = "127.0.0.1:0"\nhandler = "echo"\n'


def command_line(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").decode().split("\0")


@pytest.mark.server
def test_each_process_has_its_title(serve: Callable[..., ServerProcess]) -> None:
    server = serve(CONFIG)
    assert command_line(server.pid) == ["poolsrv: supervisor"]
    assert command_line(server.dispatcher_pid) == ["poolsrv: dispatcher"]
    assert sorted(map(command_line, server.worker_pids())) == [["poolsrv: worker 0"], ["poolsrv: worker 1"]]


@pytest.mark.server
def test_without_the_package_each_process_has_its_command_line(
    serve: Callable[..., ServerProcess], tmp_path: Path
) -> None:
    (tmp_path / "setproctitle.py").write_text("raise ImportError\n")
    server = serve(CONFIG, paths=(tmp_path,))
    assert command_line(server.pid) == [sys.executable, "-m", "poolsrv", "--config", str(server.file)]
    assert len(server.worker_pids()) == 2
    assert server.exchange("a", b"hello") == b"hello"
