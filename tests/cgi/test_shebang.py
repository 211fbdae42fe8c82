"""Why a program can't be started although its file exists: the text that the log and `poolsrv explain` have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from poolsrv_cgi.shebang import find_problem, why_not_started

_MISSING = 'its interpreter {} (line 1, "#!") does not exist'
_CRLF = 'its line 1, "{}", ends in CR LF, expected LF alone: the CR counts as part of the last word'


def write(file: Path, content: bytes, mode: int = 0o755) -> str:
    file.write_bytes(content)
    file.chmod(mode)
    return str(file)


def reason_of(*argv: str) -> str:
    """Have the kernel refuse to run it, and explain its error."""
    with pytest.raises(OSError, match=r"\[Errno \d+\]") as caught:
        os.posix_spawn(argv[0], argv, {})
    return why_not_started(caught.value, argv)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"#!/usr/bin/python9\nprint()\n", _MISSING.format("/usr/bin/python9")),
        (b"#! \t/usr/bin/python9 -u\nprint()\n", _MISSING.format("/usr/bin/python9")),
        (b"#!/usr/bin/python9", _MISSING.format("/usr/bin/python9")),
        (b"#!/no/\x1b[1m\xff\n", _MISSING.format(r"/no/\x1b[1m\udcff")),
        (b"#!/bin/sh\r\necho\r\n", _CRLF.format("#!/bin/sh")),
        (b"#!/no/such -x\r\n", _CRLF.format("#!/no/such -x")),
    ],
)
def test_an_interpreter_that_does_not_exist(tmp_path: Path, content: bytes, problem: str) -> None:
    """execve(2): ENOENT is about the interpreter too."""
    assert reason_of(write(tmp_path / "run", content)) == problem


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"echo hello\n", 'it has no "#!" line'),
        (b"\xef\xbb\xbf#!/bin/sh\n", 'a byte order mark (U+FEFF) is in front of its "#!"'),
        (b"", "it is empty"),
        (b"#!\n/bin/sh\n", 'its "#!" line names no interpreter'),
        (b"#!/" + b"a" * 300 + b"\n", 'its "#!" line is too long, expected fewer than 256 bytes'),
    ],
)
def test_a_file_without_a_usable_line(tmp_path: Path, content: bytes, problem: str) -> None:
    """execve(2): ENOEXEC."""
    assert reason_of(write(tmp_path / "run", content)) == f"Exec format error: {problem}"


def test_an_interpreter_that_is_not_executable(tmp_path: Path) -> None:
    interpreter = write(tmp_path / "interpreter", b"#!/bin/sh\n", 0o644)
    reason = reason_of(write(tmp_path / "run", f"#!{interpreter}\n".encode()))
    assert reason == f'Permission denied: its interpreter {interpreter} (line 1, "#!") is not executable'
    reason = reason_of(write(tmp_path / "in", f"#!{tmp_path}\n".encode()))
    assert reason == f'Permission denied: its interpreter {tmp_path} (line 1, "#!") is not a regular file'


def test_what_the_first_line_does_not_tell(tmp_path: Path) -> None:
    """The interpreter is a script whose own interpreter is missing; the one of the config is; the file has gone."""
    inner = write(tmp_path / "inner", b"#!/no/such\n")
    outer = write(tmp_path / "outer", f"#!{inner}\n".encode())
    assert reason_of(outer) == "a loader or an interpreter that it needs does not exist"
    assert reason_of("/no/such", outer) == "the interpreter /no/such does not exist"
    assert reason_of(f"{outer}.gone") == "it does not exist"


def test_another_error_is_left_alone(tmp_path: Path) -> None:
    script = write(tmp_path / "run", b"echo\n")
    assert why_not_started(OSError(12, "Cannot allocate memory"), [script]) == "Cannot allocate memory"


def test_what_can_be_started_has_no_problem(tmp_path: Path) -> None:
    """An interpreter may count from the working directory, and a name from PATH; a binary gets no verdict."""
    write(tmp_path / "interpreter", b"#!/bin/sh\n")
    script = write(tmp_path / "run", b"#!interpreter\n")
    assert find_problem([script], str(tmp_path)) == ""
    assert "does not exist" in find_problem([script], "/")
    assert find_problem(["sh", "-c", "true"]) == ""
    assert find_problem([write(tmp_path / "binary", b"MZ\0\0")]) == ""


def test_a_line_whose_interpreter_starts_and_then_fails(tmp_path: Path) -> None:
    script = write(tmp_path / "run", b"#!/usr/bin/env python3\r\n")
    assert find_problem([script]) == _CRLF.format("#!/usr/bin/env python3")


def test_no_read_waits_for_a_fifo(tmp_path: Path) -> None:
    """A fifo may come into the place of the file between the start and the look at it."""
    os.mkfifo(tmp_path / "run", 0o755)
    assert find_problem([str(tmp_path / "run")]) == "it is not a regular file"
