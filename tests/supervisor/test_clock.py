"""The time of day is set while the server runs: ages and waits use another clock."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.control import query
from tests.helpers.puppet import Client, config
from tests.helpers.server import TIMEOUT, ServerProcess

pytestmark = pytest.mark.server

Serve = Callable[..., ServerProcess]

SET_CLOCK = """
import os, time

real, offset = time.time, os.path.join(os.path.dirname(__file__), "offset")


def time_of_day():
    with open(offset) as file:
        return real() + float(file.read())


time.time = time_of_day
"""


@pytest.mark.parametrize("days", [-3, 3])
def test_ages_stay_what_they_are(serve: Serve, site: Path, days: int) -> None:
    (site / "sitecustomize.py").write_text(SET_CLOCK)
    (site / "offset").write_text("0")
    server = serve(config('workers = 1\ngraceful_timeout = 0.5\npidfile = "pid"\ncontrol = "run/ctl"'), paths=(site,))
    (site / "offset").write_text(str(days * 86400))
    with Client(server) as client:
        assert client.ask("program")
        found = query(server)["status"]
    ages = [found["server"]["uptime"], *(worker["age"] for worker in found["workers"])]
    ages += [program["age"] for program in found["programs"]]
    assert len(ages) == 3
    assert all(0 <= age < 1000 for age in ages)
    shown = poolsrv("status", server.file)
    assert re.search(r", up [\d.]+ (s|min), ", shown.stdout)
    # The outcome of another reload, past or future by the time of day, is not taken for this one.
    assert poolsrv("reload", server.file).stdout == "reloaded\n"
    assert query(server)["status"]["server"]["generation"] == 2
    assert server.stop() == 0


def poolsrv(command: str, file: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "poolsrv", command, "--config", str(file)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
