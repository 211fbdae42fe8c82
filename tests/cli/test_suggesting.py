"""Arguments that mean something else than they say: a config file, or a port."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from poolsrv.cli.main import cli

CONFIG = '[listeners.a]\nbind = ":0"\nhandler = "echo"\n'
COMMANDS = ("check", "config", "explain", "status", "top", "reload", "stop")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POOLSRV_CONFIG", raising=False)
    Path("b.toml").write_text(CONFIG)


def poolsrv(*arguments: str) -> Result:
    return CliRunner().invoke(cli, arguments)


def last_line(*arguments: str) -> str:
    result = poolsrv(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_config_file_as_an_argument(command: str) -> None:
    wanted = 'Error: unexpected argument "b.toml" (did you mean --config b.toml?)'
    assert last_line(command, "b.toml") == wanted
    Path("poolsrv.toml").write_text(CONFIG)
    if command != "explain":  # which takes it as its question
        assert last_line(command, "b.toml") == wanted


def test_explain_takes_it_as_its_question() -> None:
    Path("poolsrv.toml").write_text(CONFIG + '[listeners.b]\nbind = ":0"\nhandler = "echo"\n')
    assert last_line("explain", "b.toml").endswith(" (did you mean --config b.toml?)")
    assert "did you mean" not in last_line("explain", "-c", "b.toml", "--listener", "c", "c.toml")


def test_other_arguments_and_other_mistakes_stay_what_they_are() -> None:
    assert last_line("check", "-c", "b.toml", "other") == "Error: Got unexpected extra argument (other)"
    assert last_line("check", "-c", "b.toml", "c.toml") == "Error: Got unexpected extra argument (c.toml)"
    assert last_line("check", "other").startswith("Error: Missing option '--config'")
    assert last_line("check", "--confg", "b.toml").startswith("Error: No such option '--confg'")
    assert poolsrv("check", "b.toml", "--help").exit_code == 0


@pytest.mark.parametrize("command", [("cgi",), ("run", "echo"), ("run",)])
@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        (("--port", "8000"), "no option --port (did you mean --bind :8000?)"),
        (("--port=8000",), "no option --port (did you mean --bind :8000?)"),
        (("-p", "8000"), "no option -p (did you mean --bind :8000?)"),
        (("-p8000",), "no option -p (did you mean --bind :8000?)"),
        (("--port",), "no option --port (did you mean --bind :PORT?)"),
        (("--port", "70000"), "no option --port (did you mean --bind :PORT?)"),
    ],
)
def test_a_port_as_an_option(command: tuple[str, ...], option: tuple[str, ...], wanted: str) -> None:
    assert last_line(*command, *option) == f"Error: {wanted}"
