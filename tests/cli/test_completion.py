"""``poolsrv completion``: the scripts in real shells, and what they are told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from poolsrv.cli import completion
from poolsrv.cli.main import COMMANDS, cli
from poolsrv.core import logs
from tests.helpers.command_line import invoke
from tests.helpers.shells import SHELLS, Shell, environment, require

NAMES = [name for names in COMMANDS.values() for name in names]


def proposals(line: str) -> dict[str, str]:
    """What is proposed for a line up to the cursor: each word with its type."""
    shell = completion._Bash(cli, {}, "poolsrv", "_POOLSRV_COMPLETE")
    return {str(item.value): item.type for item in shell.get_completions(*completion.split(line))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("server.toml", "other.toml", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "nested").mkdir()
    return tmp_path


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_a_shell_completes(shell: str, folder: Path) -> None:
    with Shell(shell, folder) as terminal:
        assert terminal.complete("poolsrv relo") == "poolsrv reload "
        assert terminal.complete("poolsrv plugins ec") == "poolsrv plugins echo "
        assert terminal.complete("poolsrv --log-level deb") == "poolsrv --log-level debug "
        assert terminal.complete("poolsrv --log-level=warn").rstrip() == "poolsrv --log-level=warning"
        assert terminal.complete("poolsrv check --config ser") == "poolsrv check --config server.toml "
        assert terminal.complete("poolsrv check --config=oth").rstrip() == "poolsrv check --config=other.toml"
        assert terminal.complete("poolsrv check -c nes") == "poolsrv check -c nested/"
        assert terminal.complete("true; poolsrv completion f") == "true; poolsrv completion fish "
        terminal.wait_for_list("poolsrv s", r"(?=.*status)(?=.*stop)")
        terminal.wait_for_list("poolsrv status --c", r"(?=.*--config)(?=.*--check)")
        terminal.wait_for_list("poolsrv top -c ", r"(?=.*nested/)(?=.*other\.toml)(?=.*server\.toml)")


def test_fish_completes(folder: Path) -> None:
    def complete(line: str) -> list[str]:
        code = f"poolsrv completion fish | source; complete -C '{line}'"
        argv = [require("fish"), "--no-config", "-c", code]
        result = subprocess.run(
            argv, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=60, check=True
        )
        assert result.stderr == ""
        return result.stdout.splitlines()

    assert complete("poolsrv relo") == ["reload\tLoad the config and code of a running server again."]
    assert [line.partition("\t")[0] for line in complete("poolsrv ")] == sorted(NAMES)
    assert complete("poolsrv plugins ec") == ["echo"]
    assert complete("poolsrv --log-level=warn") == ["--log-level=warning"]
    assert complete("poolsrv check --config=ser") == ["--config=server.toml"]
    assert complete("poolsrv check -c nes") == ["nested/"]
    assert complete("true; poolsrv completion ba") == ["bash"]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_the_one_that_the_wheel_installs(shell: str, tmp_path: Path) -> None:
    assert shell in completion.SHELLS
    result = invoke("completion", shell, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == completion.script(shell)
    assert "poolsrv completion" in result.stdout


def test_another_shell_is_an_error(tmp_path: Path) -> None:
    result = invoke("completion", "tcsh", cwd=tmp_path)
    assert result.returncode == 2
    assert "'tcsh' is not one of 'bash', 'zsh', 'fish'" in result.stderr


def test_every_command_is_proposed() -> None:
    assert list(proposals("poolsrv ")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_every_option_is_proposed(name: str) -> None:
    command = cli.get_command(None, name)  # type: ignore[arg-type]
    assert command is not None
    options = {param.opts[0] for param in command.params if param.opts[0].startswith("--")}
    assert set(proposals(f"poolsrv {name} --")) == options | {"--help"}
    if "--config" in options:
        assert proposals(f"poolsrv {name} --config ser") == {"ser": "config"}


def test_values_are_proposed() -> None:
    assert list(proposals("poolsrv --log-level ")) == list(logs.LEVELS)
    assert {"cgi", "echo"} <= proposals("poolsrv plugins ").keys()
    assert list(proposals("poolsrv plugins c")) == ["cgi"]
    assert list(proposals("poolsrv run ec")) == ["echo"]
    assert list(proposals("poolsrv run echo --plugin c")) == ["cgi"]


def test_a_line_is_split_at_the_cursor() -> None:
    assert completion.split("poolsrv ") == ([], "")
    assert completion.split("poolsrv check --config 'a b") == (["check", "--config"], "a b")
    assert completion.split("poolsrv check  ") == (["check"], "")
    assert completion.split("") == ([], "")
