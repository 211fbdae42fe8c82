"""``pool.control`` and ``pool.pidfile`` in a config."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolsrv.config.errors import ConfigErrors
from poolsrv.config.model import PoolTable
from poolsrv.config.reader import locate
from tests.helpers.control import (
    ECHO,
    POOL,
    command,
)


def test_the_control_socket_and_the_pidfile_are_found_in_a_file_full_of_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        'nonsense = 1\n[pool]\nworkers = "many"\ncontrol = "run/ctl"\npidfile = "/run/pid"\n[listeners.a]\n'
    )
    found = locate(path)
    assert found == PoolTable(control=tmp_path / "run" / "ctl", pidfile=Path("/run/pid"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("3", "pool.control: got 3 (a number), expected a path"),
        (f'"/{"x" * 107}"', f"pool.control: the path is 108 bytes long (/{'x' * 107}), expected at most 107"),
    ],
)
def test_an_impossible_control_socket(tmp_path: Path, value: str, message: str) -> None:
    path = tmp_path / "a.toml"
    path.write_text(f"[pool]\ncontrol = {value}\n{ECHO}")
    with pytest.raises(ConfigErrors) as caught:
        locate(path)
    assert str(caught.value) == f"{path}: {message}"
    result = command(path, name="check")
    assert (result.returncode, result.stderr) == (2, f"{path}: {message}\n")


def test_a_listener_and_the_control_socket_need_two_files(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(POOL + ECHO.replace("127.0.0.1:0", "unix:run/ctl"))
    result = command(path, name="check")
    assert result.returncode == 2
    assert "listeners.hello.bind: " in result.stderr
    assert "is the control socket of [pool] too, expected each address once" in result.stderr
