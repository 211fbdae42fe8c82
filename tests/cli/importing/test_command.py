"""``poolsrv import``: its output, its errors, and the trial by ``poolsrv check``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from poolsrv.cli.main import cli
from tests.helpers.command_line import invoke

GOOD = "127.0.0.1:7009 stream tcp nowait root /bin/cat cat\n"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["import", *map(str, arguments)], env={"POOLSRV_CONFIG": ""})


def test_check_accepts_what_is_printed(tmp_path: Path) -> None:
    """Two services of one address: the second is a comment that says so."""
    source = tmp_path / "inetd.conf"
    source.write_text(GOOD + GOOD.replace("127.0.0.1:", ""))
    result = run(source)
    assert result.exit_code == 0
    assert "NOT SERVED: `poolsrv check` refuses it here" in result.stdout
    assert f"{source}:2: 7009: not served: " in result.stderr
    config = tmp_path / "poolsrv.toml"
    config.write_text(result.stdout)
    checked = invoke("check", "--config", config, cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "127.0.0.1:7009" in checked.stdout


def test_a_new_file_is_written_and_none_is_overwritten(tmp_path: Path) -> None:
    source, target = tmp_path / "inetd.conf", tmp_path / "new.toml"
    source.write_text(GOOD)
    result = run(source, "-o", target)
    assert (result.exit_code, result.output) == (0, "")
    assert "[listeners.7009.cgi]" in target.read_text()
    target.write_text("mine")
    result = run(source, "-o", target)
    assert result.exit_code == 2
    assert result.stderr == f"{target}: exists already, expected a new file\n"
    assert target.read_text() == "mine"


def test_nothing_that_can_be_served(tmp_path: Path) -> None:
    source = tmp_path / "inetd.conf"
    source.write_text("talk dgram udp wait root /bin/cat cat\n")
    result = run(source)
    assert result.exit_code == 1
    assert "#   talk dgram udp wait root /bin/cat cat" in result.stdout
    assert "no service is left that can be served" in result.stderr
    source.write_text("# nothing\n")
    result = run(source)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "poolsrv: no service in these files\n"


def test_input_that_is_no_config(tmp_path: Path) -> None:
    """Each file has its line, and nothing is printed or written."""
    bad = {
        "binary": b"finger stream\n\0\1\2",
        "huge": b"#" * (1 << 20) + b"\n",
        "unit.service": b"[Service]\nExecStart=/bin/true\n",
        "broken": b"service x\n{\n",
    }
    for name, content in bad.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "good").write_text(GOOD)
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "fifo")
    files = [tmp_path / name for name in (*bad, "good", "empty", "fifo", "missing")]
    result = run(*files, "-o", tmp_path / "new.toml")
    assert (result.exit_code, result.stdout) == (2, "")
    assert not (tmp_path / "new.toml").exists()
    lines = result.stderr.splitlines()
    for line, (name, expected) in zip(
        lines,
        [
            ("binary", ":2: not text: byte 0x00"),
            ("huge", ": more than 1048576 bytes"),
            ("unit.service", ": not a .socket unit"),
            ("broken", ':1: "x" is not closed'),
            ("empty", ": nothing to import in this folder"),
            ("fifo", ": not a regular file"),
            ("missing", ": No such file or directory"),
        ],
        strict=True,
    ):
        assert line.startswith(f"{tmp_path / name}{expected}")


@pytest.mark.parametrize("arguments", [(), ("--user", "x")])
def test_without_files(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2
