"""docs/tutorial.md: its files do what it says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_main import poolsrv
from tests.helpers.server_mark import server_starts

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


TEST_OF_THE_FIRST = """
from adder import Adder

def test(poolsrv_harness):
    client = poolsrv_harness(Adder).connect()
    client.send("1\\n2\\n39\\n")
    assert client.received == b"1\\n3\\n42\\n"
"""


def write_files(folder: Path) -> list[str]:
    """Write each file of the page; a later version replaces an earlier one."""
    names = []
    for language, text in BLOCKS:
        if language == "python":
            name = text.partition("\n")[0].removeprefix("# ")
            names.append(name)
            (folder / name).write_text(text)
    return names


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,
        env={**os.environ, "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.server
@pytest.mark.long
def test_the_tests_of_the_page_pass(tmp_path: Path) -> None:
    server_starts()
    assert write_files(tmp_path) == ["adder.py", "adder.py", "test_adder.py"]
    result = run(tmp_path, "pytest", "-q", "-p", "no:cacheprovider", "-W", "error")
    assert result.returncode == 0, result.stdout
    assert "7 passed" in result.stdout


def test_the_first_version_answers_as_the_page_says(tmp_path: Path) -> None:
    first = next(text for language, text in BLOCKS if language == "python")
    (tmp_path / "adder.py").write_text(first)
    (tmp_path / "test_it.py").write_text(TEST_OF_THE_FIRST)
    assert "1\n3\n42\n" in [text for language, text in BLOCKS if language == "text"]
    result = run(tmp_path, "pytest", "-q", "-p", "no:cacheprovider")
    assert result.returncode == 0, result.stdout


def test_the_commands_of_the_page(tmp_path: Path) -> None:
    write_files(tmp_path)
    wrong = poolsrv("run", "adder:Adder", "--set", "largest=many", cwd=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr in [text for language, text in BLOCKS if language == "text"]
    config = poolsrv("run", "adder:Adder", "--set", "largest=50", "--print-config", cwd=tmp_path)
    assert config.returncode == 0
    (tmp_path / "poolsrv.toml").write_text(config.stdout)
    assert poolsrv("check", cwd=tmp_path).returncode == 0
    assert poolsrv("new", "adder", cwd=tmp_path).returncode == 0
    assert (tmp_path / "poolsrv-adder" / "poolsrv_adder" / "__init__.py").exists()
    explained = poolsrv("plugins", "adder:Adder", cwd=tmp_path).stdout
    assert "largest  a whole number from 1; default 1000" in explained
    assert "The largest number that a client may send." in explained
