"""``poolsrv status``."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolsrv.cli import control_client, tables
from tests.helpers.control import (
    ECHO,
    POOL,
    PUPPET,
    command,
    echo_server,
)
from tests.helpers.server import TIMEOUT, ServerProcess

Serve = Callable[..., ServerProcess]


@pytest.fixture(scope="module")
def echo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with echo_server(tmp_path_factory.mktemp("echo")) as server:
        yield server


@pytest.mark.server
def test_text_for_people(echo: ServerProcess) -> None:
    result = command(echo.file)
    assert (result.returncode, result.stderr) == (0, "")
    lines = result.stdout.splitlines()
    assert re.match(r"poolsrv \S+, serving, up [\d.]+ \S+, generation 1 \(pid \d+, dispatcher \d+\)$", lines[0])
    assert lines[1] == str(echo.file)
    assert next(line for line in lines if line.startswith("worker ")).split()[:4] == ["worker", "pid", "state", "age"]
    assert any(re.match(r"hello +echo +127\.0\.0\.1:\d+ +\d+ +-", line) for line in lines)


@pytest.mark.server
def test_json_for_programs(echo: ServerProcess) -> None:
    result = command(echo.file, "--json")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads(result.stdout)["server"]["pid"] == echo.pid


@pytest.mark.server
def test_no_plugin_is_imported(serve: Serve, site: Path) -> None:
    """Not even to find errors in its options."""
    server = serve(POOL + PUPPET, paths=(site,))
    server.file.write_text(POOL + PUPPET + "nonsense = 1\n[listeners.puppet.puppet]\nroot = 1\n")
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "poolsrv", "status", "--config", server.file],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0
    imported = re.findall(r"\| +(\S+)$", result.stderr, re.MULTILINE)
    assert "poolsrv.cli.control_client" in imported
    assert not {
        "poolsrv_echo",
        "poolsrv_puppet",
        "pluggy",
        "poolsrv.dispatcher.process",
        "poolsrv.worker.process",
        "ssl",
    } & set(imported)


def test_no_control_socket_in_the_config(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(ECHO)
    result = command(tmp_path / "a.toml")
    expected = f'{tmp_path}/a.toml: pool.control: missing, expected a path for it, such as "run/poolsrv.ctl"\n'
    assert (result.returncode, result.stdout, result.stderr) == (2, "", expected)


def test_a_file_that_is_no_config(tmp_path: Path) -> None:
    result = command(tmp_path / "missing.toml")
    expected = f"{tmp_path}/missing.toml: no such file, expected a config file\n"
    assert (result.returncode, result.stderr) == (2, expected)


def test_a_server_that_does_not_run(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(POOL + ECHO)
    result = command(tmp_path / "a.toml")
    assert (result.returncode, result.stderr) == (1, f"poolsrv: {tmp_path}/a.toml: the server does not run\n")


@pytest.mark.server
def test_a_server_that_has_not_reloaded_yet(serve: Serve) -> None:
    server = serve('[pool]\nworkers = 1\npidfile = "pid"\n' + ECHO)
    server.file.write_text(server.file.read_text().replace("[pool]\n", '[pool]\ncontrol = "ctl"\n'))
    result = command(server.file)
    assert result.returncode == 1
    assert f"but it does run (pid {server.pid}): it is stopping, or needs a reload" in result.stderr


def test_a_server_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "TIMEOUT", 0.1)
    (tmp_path / "a.toml").write_text('[pool]\ncontrol = "ctl"\n')
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "ctl"))
        with pytest.raises(control_client.NoAnswer, match="the server does not run"):
            control_client.ask(tmp_path / "a.toml")
        sock.listen()
        with pytest.raises(control_client.NoAnswer, match="no answer within 0 s"):
            control_client.ask(tmp_path / "a.toml")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"", "has closed the connection"),
        (b"hello\n", "not understood"),
        (b'{"protocol": 2}\n', "speaks protocol 2, and this is 1"),
        (b'{"protocol": 1, "error": "no"}\n', "no$"),
    ],
)
def test_an_impossible_answer(line: bytes, message: str) -> None:
    with pytest.raises(control_client.NoAnswer, match=message):
        control_client.decode("ctl", line)


@pytest.mark.server
@pytest.mark.skipif(os.geteuid() != 0, reason="root may ask everybody")
def test_permission_denied(tmp_path: Path, echo: ServerProcess) -> None:
    # What the other user may not read is imported before.
    script = (
        "import os, sys, tomli, msgspec, poolsrv.cli.commands.status, poolsrv.cli.main as cli,"
        " poolsrv.cli.status, poolsrv.cli.control_client;"
        " os.setuid(65534);"
        " sys.argv[0] = 'poolsrv'; cli.main()"
    )
    for folder in (echo.folder, *echo.folder.parents):
        if folder.name.startswith(("pytest-", "popen-", "poolsrv-pytest-")):
            folder.chmod(0o755)
    echo.folder.chmod(0o755)
    result = subprocess.run(
        [sys.executable, "-c", script, "status", "--config", str(echo.file)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    path = echo.folder / "run" / "ctl"
    expected = f"poolsrv: {path}: permission denied: only root and the server's own user may ask\n"
    assert (result.returncode, result.stderr) == (1, expected)


def test_numbers_for_people() -> None:
    assert [tables.size(n) for n in (0, 1023, 1536, 3 << 20, 5 << 30, 1 << 41)] == [
        "0 B", "1023 B", "1.5 KiB", "3.0 MiB", "5.0 GiB", "2.0 TiB",
    ]  # fmt: skip
    assert [tables.count(n) for n in (0, 9999, 12345, 4.5e6, 2e9)] == ["0", "9999", "12.3k", "4.5M", "2.0G"]
    assert [tables.rate(n) for n in (0, 0.25, 12.5, 123456)] == ["0", "0.2", "12", "123.5k"]
    assert [tables.duration(n) for n in (4.25, 61, 3900, 200000)] == ["4.2 s", "1 min", "1 h 05 min", "2 d 7 h"]
