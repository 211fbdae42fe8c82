"""What commands do where their output goes nowhere: no traceback, and a status that says so."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRINTS = "from tools.printing import exit_with\nexit_with(lambda: print('word\\n' * 9))"


def run(*command: str, stdout: int) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    return done.returncode, done.stderr


def test_a_full_disk() -> None:
    with open("/dev/full", "wb") as full:
        found = run("-m", "poolsrv", "plugins", "--json", stdout=full.fileno())
    assert found == (1, "poolsrv: the output can't be written: No space left on device\n")


def test_a_mistake_keeps_its_status_where_it_can_not_be_printed() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" -m poolsrv check --config /none 2>/dev/full', sys.executable], cwd=ROOT, check=False
    )
    assert done.returncode == 2


@pytest.mark.parametrize("command", [("bench/run.py", "--list"), ("-c", PRINTS)], ids=["bench", "tools"])
def test_nobody_reads_it(command: tuple[str, ...]) -> None:
    """As with `| head`, which ends when it has enough."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert run(*command, stdout=writer) == (128 + signal.SIGPIPE, "")
    finally:
        os.close(writer)
