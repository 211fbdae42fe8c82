"""The log of a process whose standard error is the systemd journal."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.server import TIMEOUT

# The arguments: the journal's own socket, and a format.
SCRIPT = """
import logging, sys
from poolsrv.core import journal, logs
journal.SOCKET = sys.argv[1]
logs.set_up("debug", sys.argv[2])
log = logging.getLogger("test")
for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
    log.log(level, "a %s", "<0>line\\n<0>of two")
try:
    raise ValueError("<0>no")
except ValueError:
    log.exception("it failed")
logs.say(["an error"])
"""


@pytest.fixture
def native(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.setblocking(False)
        yield sock


def run(socket_path: Path, format: str = "text", stream: str | None = None) -> list[str]:
    """The lines that the script writes to standard error."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        status = os.fstat(theirs.fileno())
        stream = f"{status.st_dev}:{status.st_ino}" if stream is None else stream
        environment = dict(os.environ, JOURNAL_STREAM=stream)
        arguments = [sys.executable, "-c", SCRIPT, str(socket_path), format]
        subprocess.run(arguments, stderr=theirs.fileno(), env=environment, timeout=TIMEOUT, check=True)
        theirs.close()
        return b"".join(iter(lambda: ours.recv(65536), b"")).decode().splitlines()


def without_pid(line: str) -> str:
    begin, _, rest = line.partition("[")
    return begin + rest.partition("]")[2]


def test_a_line_has_its_priority_and_no_time(tmp_path: Path, native: socket.socket) -> None:
    lines = run(tmp_path / "socket")
    message = r"poolsrv a <0>line\x0a<0>of two"
    assert [without_pid(line) for line in lines[:-1]] == [f"<{priority}>{message}" for priority in (7, 6, 4, 3, 2)]
    assert lines[-1] == "<3>an error"


def test_a_traceback_is_in_the_record_of_its_line(tmp_path: Path, native: socket.socket) -> None:
    run(tmp_path / "socket")
    fields, _, rest = native.recv(65536).partition(b"MESSAGE\n")
    assert fields == b"PRIORITY=3\nSYSLOG_IDENTIFIER=poolsrv\n"
    assert int.from_bytes(rest[:8], "little") == len(rest) - 9
    first, *others = rest[8:].decode().splitlines()
    assert without_pid(first) == "poolsrv it failed"
    assert (others[0], others[-1]) == ("Traceback (most recent call last):", "ValueError: <0>no")
    with pytest.raises(BlockingIOError):
        native.recv(1)


def test_without_the_journals_socket_each_line_of_a_traceback_has_its_priority(tmp_path: Path) -> None:
    lines = run(tmp_path / "socket")
    assert "<3>ValueError: <0>no" in lines
    assert all(line.startswith("<3>") for line in lines[5:])


def test_an_object_of_json_follows_its_priority(tmp_path: Path, native: socket.socket) -> None:
    lines = run(tmp_path / "socket", "json")
    assert [line[:4] for line in lines[:-1]] == [f"<{priority}>{{" for priority in (7, 6, 4, 3, 2, 3)]


@pytest.mark.parametrize("stream", ["", "1:1", "nonsense"])
def test_another_stream_has_times_and_levels(tmp_path: Path, stream: str) -> None:
    lines = run(tmp_path / "socket", stream=stream)
    assert " INFO    poolsrv[" in lines[1]
    assert lines[-1] == "an error"
