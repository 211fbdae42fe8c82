"""The tests that an example brings along."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

RESP = Path(__file__).parents[2] / "examples" / "poolsrv-resp"


@pytest.mark.long
def test_its_own_tests_pass(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "base")]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    result = subprocess.run(command, cwd=RESP, capture_output=True, text=True, timeout=240, env=environment)
    assert result.returncode == 0, result.stdout
