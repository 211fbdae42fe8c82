"""The first pool's interpreter, which starts before the supervisor is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poolsrv.core.systemd import Notifier, take_sockets
from poolsrv.supervisor.interpreter import FOR_THE_SUPERVISOR
from tests.helpers.puppet import config
from tests.helpers.server import ServerProcess
from tests.helpers.server_mark import server_starts

Serve = Callable[..., ServerProcess]


def test_what_is_for_the_supervisor_alone_is_what_it_takes_out_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in FOR_THE_SUPERVISOR:
        monkeypatch.setenv(name, "1")
    before = set(os.environ)
    take_sockets()  # LISTEN_PID is another process
    Notifier()
    assert before - set(os.environ) == set(FOR_THE_SUPERVISOR)


def test_it_is_started_before_the_heavy_modules_are_imported() -> None:
    code = "import sys, poolsrv.__main__, poolsrv.supervisor.interpreter\nprint(*sys.modules)"
    result = subprocess.run([sys.executable, "-I", "-S", "-c", PATH + code], capture_output=True, text=True, check=True)
    assert not {"typing", "re", "logging", "json", "ctypes"} & set(result.stdout.split())


PATH = f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"

# Starts a server with a descriptor that its parent has left open.
LEAKING = "import os, sys; os.dup2(os.pipe()[1], 50); os.execvp(sys.argv[1], sys.argv[1:])"


@pytest.mark.server
def test_a_descriptor_that_was_left_open_does_not_reach_the_pool(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,), prefix=(sys.executable, "-c", LEAKING))
    assert os.path.lexists(f"/proc/{server.pid}/fd/50")
    for pid in (server.dispatcher_pid, *server.worker_pids()):
        assert not os.path.lexists(f"/proc/{pid}/fd/50")


# Gets a signal, as all processes of its group do, before it imports the supervisor.
EARLY_SIGNAL = """
import os, sys
import poolsrv.__main__ as program
start_pool, number = program._start_pool, int(sys.argv.pop(1))

def start_and_kill():
    interpreter = start_pool()
    os.killpg(0, number)
    return interpreter

program._start_pool = start_and_kill
program.main()
"""


@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGQUIT])
def test_a_signal_to_stop_that_comes_before_the_supervisor_is_imported(tmp_path: Path, number: signal.Signals) -> None:
    server_starts()
    path = tmp_path / "poolsrv.toml"
    path.write_text('[pool]\nworkers = 1\n[listeners.echo]\nbind = "unix:socket"\nhandler = "echo"\n')
    result = subprocess.run(
        [sys.executable, "-c", EARLY_SIGNAL, str(int(number)), "--config", str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.endswith("stopped\n")


# A supervisor whose first pool has ended before it looks.
EARLY_END = """
import os, signal, sys
from poolsrv.supervisor.interpreter import PoolInterpreter
interpreter = PoolInterpreter()
os.kill(interpreter.pid, signal.SIGKILL)
os.waitid(os.P_PID, interpreter.pid, os.WEXITED | os.WNOWAIT)
from poolsrv.supervisor import start
start.run(sys.argv[1], None, interpreter=interpreter)
"""


@pytest.mark.server
def test_a_pool_that_ends_before_the_supervisor_looks_ends_the_server(tmp_path: Path) -> None:
    server_starts()
    result = subprocess.run([sys.executable, "-c", EARLY_END, str(tmp_path / "x")], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "poolsrv: the pool killed by SIGKILL before it served\n"
