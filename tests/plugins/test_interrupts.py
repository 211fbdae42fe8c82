"""Ctrl-C while plugins are loaded ends the command, whatever a plugin makes of it. A plugin that raises the same
exception by itself has failed like any other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.distributions import install
from tests.helpers.plugin_configs import write
from tests.helpers.server import TIMEOUT, ServerProcess

# In short sleeps: a signal that comes just before one is not seen until it is over.
SLEEPS = "import time\nprint('imports', flush=True)\nwhile True: time.sleep(0.01)\n"
CATCHES = (
    "import time\ntry:\n    print('imports', flush=True)\n    while True: time.sleep(0.01)\n"
    "except BaseException:\n    {}\n"
)


@pytest.mark.parametrize("module", [SLEEPS, CATCHES.format("pass"), CATCHES.format("raise ValueError")])
def test_ctrl_c_ends_the_command(module: str, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "slow", {"slow": "slow:Slow"}, module)
    command = [sys.executable, "-m", "poolsrv", "check", "--config", str(write(tmp_path, 'handler = "slow"'))]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(site)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "imports\n"
        process.send_signal(signal.SIGINT)
        try:
            _, said = process.communicate(timeout=TIMEOUT)
        finally:
            process.kill()  # or leaving the block would wait for it
    assert (process.returncode, said.strip()) == (1, "Aborted!")


@pytest.mark.server
def test_a_server_whose_plugin_raises_keyboard_interrupt_does_not_start(tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "bad", {"bad": "bad:Bad"}, "raise KeyboardInterrupt")
    with ServerProcess('[listeners.www]\nbind = "127.0.0.1:0"\nhandler = "bad"\n', tmp_path, paths=(site,)) as server:
        assert server.wait() == 2
        assert f"can't be imported: KeyboardInterrupt ({site}/bad.py, line 1)" in server.log
        assert "Traceback" not in server.log
