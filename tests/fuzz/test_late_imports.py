"""What clients and processes send makes no process import anything: its user may not be able to read Python's files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

NAMES = ("http_head", "chunked", "cgi_header", "proxy_header", "control")
PROGRAM = """
import sys
from tests.fuzz import kept
from tests.fuzz.targets import load

class Refusing:
    def find_spec(self, name, path=None, target=None):
        raise SystemExit(f"{name} is imported late")

runs = [(load(name).run, kept.read(name)) for name in sys.argv[1:]]
sys.meta_path.insert(0, Refusing())
for run, inputs in runs:
    for data in inputs:
        run(data)
"""


def test_nothing_is_imported_for_an_input() -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", PROGRAM, *NAMES], cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
