"""``--config``, which defaults to ``$POOLSRV_CONFIG``, then to ``./poolsrv.toml``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command_line import invoke
from tests.helpers.server import TIMEOUT

BAD = "[listeners]\n"  # each command but these of the control socket and the pid file reports it, with the file's name
COMMANDS = [(), ("check",), ("status",), ("top",), ("reload",), ("stop",)]
ERRORS = {
    (): "{}: no listeners, expected at least one table",
    ("check",): "{}: no listeners, expected at least one table",
    ("status",): "{}: pool.control: missing",
    ("top",): "poolsrv: top needs a terminal",
    ("reload",): "{}: pool.pidfile: missing",
    ("stop",): "{}: pool.pidfile: missing",
}


def run(*arguments: str, cwd: Path, config: str | None = None) -> subprocess.CompletedProcess[str]:
    if arguments and not arguments[0].startswith("-"):
        return invoke(*arguments, cwd=cwd, POOLSRV_CONFIG=config)
    # The server itself has a process of its own.
    environment = {name: value for name, value in os.environ.items() if name != "POOLSRV_CONFIG"}
    if config is not None:
        environment["POOLSRV_CONFIG"] = config
    command = [sys.executable, "-m", "poolsrv", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_default_is_the_file_in_the_current_directory(command: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "poolsrv.toml").write_text(BAD)
    for empty in (None, ""):
        result = run(*command, cwd=tmp_path, config=empty)
        assert result.stderr.startswith(ERRORS[command].format("poolsrv.toml"))
        assert result.stdout == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_the_environment_variable_comes_first_and_the_option_before_it(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    for name in ("poolsrv.toml", "env.toml", "option.toml"):
        (tmp_path / name).write_text(BAD)
    result = run(*command, cwd=tmp_path, config="env.toml")
    assert result.stderr.startswith(ERRORS[command].format("env.toml"))
    result = run(*command, "-c", "option.toml", cwd=tmp_path, config="env.toml")
    assert result.stderr.startswith(ERRORS[command].format("option.toml"))


@pytest.mark.parametrize("command", COMMANDS[1:])
def test_without_any_config_the_message_says_where_it_may_be(command: tuple[str, ...], tmp_path: Path) -> None:
    result = run(*command, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1] == (
        "Error: Missing option '--config' / '-c'. It may be left out if $POOLSRV_CONFIG is set, or if there is a file"
        " ./poolsrv.toml."
    )


def test_a_variable_that_names_no_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "poolsrv.toml").write_text(BAD)
    result = run("check", cwd=tmp_path, config="gone.toml")
    assert (result.returncode, result.stderr) == (2, "gone.toml: no such file, expected a config file\n")


def test_the_variable_does_not_count_as_an_option_before_the_command(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[listeners.a]\nbind = ":0"\nhandler = "echo"\n')
    assert run("check", cwd=tmp_path, config="a.toml").returncode == 0
    assert run("plugins", cwd=tmp_path, config="a.toml").returncode == 0
