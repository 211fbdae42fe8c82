"""bench/compare.py: its arguments, and the way from two checkouts to a ratio, with checkouts that only start."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.helpers.modules import load_module

COMPARE = Path(__file__).parents[2] / "bench" / "compare.py"
SERVER = """\
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready: bench on 127.0.0.1:1", file=sys.stderr, flush=True)
while True:
    signal.pause()
"""


def compare(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, COMPARE, *map(str, arguments)], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.fixture(scope="module")
def program() -> Iterator[ModuleType]:
    """The program in this process: for what it says of arguments before it starts anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(COMPARE.parent)
        yield load_module(COMPARE)


def checkout(folder: Path, code: str = SERVER) -> Path:
    """A folder that looks like a checkout of poolsrv, with a Python in .venv that finds its poolsrv and no other."""
    (folder / "poolsrv").mkdir(parents=True)
    (folder / "poolsrv" / "__init__.py").touch()
    (folder / "poolsrv" / "__main__.py").write_text(code)
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return folder


def test_two_checkouts_are_started_in_turn_and_give_a_ratio_for_each_round(tmp_path: Path) -> None:
    base, new = checkout(tmp_path / "base"), checkout(tmp_path / "new")
    done = compare(base, new, "--only", "startup", "--rounds", 2, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["base"]["folder"], found["new"]["folder"]) == (str(base), str(new))
    figure = found["figures"]["startup_ms"]
    assert figure["ratios"] == [b / a for a, b in zip(figure["base"], figure["new"], strict=True)]
    assert len(figure["ratios"]) == 2
    assert figure["ratio"] == pytest.approx(sum(figure["ratios"]) / 2)  # the median of two


def test_the_table_has_a_row_for_each_figure_and_only_those_asked_for(tmp_path: Path) -> None:
    base = checkout(tmp_path / "base")
    done = compare(base, base, "--only", "startup", "--rounds", 1)
    assert done.returncode == 0, done.stderr
    head, row = done.stdout.splitlines()
    assert head.split() == ["base", "new", "new/base", "min..max"]
    assert row.startswith("start to ready")


def test_a_checkout_that_does_not_start_is_told_and_makes_the_comparison_fail(tmp_path: Path) -> None:
    base, new = checkout(tmp_path / "base"), checkout(tmp_path / "new", 'raise SystemExit("broken config")')
    done = compare(base, new, "--only", "startup", "--rounds", 1)
    assert done.returncode == 1
    assert "broken config" in done.stderr
    assert "failed" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "BASE"),
        (["{tmp}/none"], "{tmp}/none is not a checkout of poolsrv"),
        (["{tmp}/bare"], "{tmp}/bare has no .venv/bin/python: run `make -C {tmp}/bare .venv/dev.stamp`"),
        (["{tmp}/good", "{tmp}/bare"], "{tmp}/bare has no .venv/bin/python"),
        (["{tmp}/bare", "--python", "{tmp}/none"], "{tmp}/none can't be run: No such file or directory"),
        (["{tmp}/bare", "--python", "{tmp}/good/.venv/bin/python"], "not {tmp}/bare/poolsrv"),
        (["{tmp}/good", "--python", "/bin/false"], "/bin/false can't import poolsrv"),
        (["{tmp}/good", "{tmp}/good", "--rounds", "0"], "--rounds must be above 0"),
        (["{tmp}/good", "{tmp}/good", "--only", "nothing"], "invalid choice: 'nothing'"),
        (["{tmp}/good", "{tmp}/good", "--load-cpus", "x"], "'x' is not a list of CPUs"),
    ],
)
def test_a_mistake_in_the_arguments_is_told_with_what_to_do(
    tmp_path: Path,
    arguments: list[str],
    told: str,
    program: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    checkout(tmp_path / "good")
    bare = tmp_path / "bare" / "poolsrv"
    bare.mkdir(parents=True)
    (bare / "__main__.py").touch()
    monkeypatch.setattr(sys, "argv", ["compare.py", *(text.format(tmp=tmp_path) for text in arguments)])
    with pytest.raises(SystemExit) as ended:
        program.main()
    assert ended.value.code == 2
    assert told.format(tmp=tmp_path) in capsys.readouterr().err


def test_a_process_of_any_name_on_the_machine_does_not_end_a_measurement() -> None:
    named = "import ctypes; ctypes.CDLL(None).prctl(15, b'\\xff) \\xfe('); "  # PR_SET_NAME: bytes, not always UTF-8
    code = named + "import os; from harness import proc; print(proc.tree([os.getpid()])[os.getpid()].parent)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=COMPARE.parent, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == os.getpid()
