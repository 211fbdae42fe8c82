"""``poolsrv reload`` and ``poolsrv stop``, as a user types them, with a running server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from poolsrv.cli import lifecycle
from poolsrv.cli.control_client import NoAnswer
from poolsrv.config.reader import locate
from tests.helpers.command_line import invoke
from tests.helpers.puppet import Client, config
from tests.helpers.server import TIMEOUT, ServerProcess, is_alive, wait_until

Serve = Callable[..., ServerProcess]
POOL = 'workers = 1\npidfile = "run/p.pid"\ncontrol = "run/p.ctl"'


def poolsrv(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return invoke(*arguments, cwd=Path())


@pytest.mark.server
def test_reload_waits_until_the_new_pool_serves(serve: Serve, site: Path) -> None:
    server = serve(config(POOL), paths=(site,))
    before = server.dispatcher_pid
    done = poolsrv("reload", "--config", server.file)
    assert (done.returncode, done.stdout, done.stderr) == (0, "reloaded\n", "")
    server.wait_for_line(" ready: ", count=2)
    assert server.dispatcher_pid != before


@pytest.mark.server
def test_a_failed_reload_prints_every_error(serve: Serve, site: Path) -> None:
    server = serve(config(POOL), paths=(site,))
    server.file.write_text(server.file.read_text().replace("[listeners", "wokers = 1\ndispath = 2\n[listeners"))
    done = poolsrv("reload", "--config", server.file)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert f"{server.file}: pool.wokers: unknown key" in lines[0]
    assert f"{server.file}: pool.dispath: unknown key" in lines[1]
    assert lines[2:] == ["poolsrv: the reload has failed; nothing has changed"]
    with Client(server) as client:
        assert client.ask("pid")


@pytest.mark.server
def test_without_a_control_socket_reload_says_where_the_outcome_is(serve: Serve, site: Path) -> None:
    server = serve(config('workers = 1\npidfile = "p.pid"'), paths=(site,))
    done = poolsrv("reload", "--config", server.file)
    assert (done.returncode, done.stderr) == (0, "")
    assert "its log has the outcome" in done.stdout
    server.wait_for_line(r"generation 2 \(pid \d+\) serves")


@pytest.mark.server
def test_stop_waits_for_the_end(serve: Serve, site: Path) -> None:
    server = serve(config(POOL), paths=(site,))
    with Client(server) as client:
        assert client.ask("pid")
        process = subprocess.Popen(
            [sys.executable, "-m", "poolsrv", "stop", "--config", str(server.file)], stdout=subprocess.PIPE, text=True
        )
        server.wait_for_line("SIGTERM: stopping, 1 connection is open")
        assert client.ask("pid")
        assert process.poll() is None
    assert process.communicate(timeout=TIMEOUT)[0] == f"stopped (it was pid {server.pid})\n"
    assert process.returncode == 0
    assert server.wait() == 0


@pytest.mark.server
def test_stop_now_waits_for_no_client(serve: Serve, site: Path) -> None:
    server = serve(config(f"graceful_timeout = 1000.0\n{POOL}"), paths=(site,))
    with Client(server) as client:
        assert client.ask("pid")
        done = poolsrv("stop", "--now", "--config", server.file)
        assert (done.returncode, done.stdout) == (0, f"stopped (it was pid {server.pid})\n")
        assert client.answer() == ""
    assert server.wait() == 0


@pytest.mark.parametrize("command", ["reload", "stop"])
def test_no_server_runs(tmp_path: Path, command: str) -> None:
    file = tmp_path / "poolsrv.toml"
    file.write_text('[pool]\npidfile = "p.pid"\n[listeners.a]\nbind = ":0"\nhandler = "echo"\n')
    done = invoke(command, "--config", file, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"poolsrv: no server runs: no process holds {tmp_path}/p.pid\n")
    (tmp_path / "p.pid").write_text(f"{os.getpid()}\n")  # left by a crash; the pid is another process's by now
    done = invoke(command, "--config", file, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, f"poolsrv: no server runs: no process holds {tmp_path}/p.pid\n")


@pytest.mark.parametrize("command", ["reload", "stop"])
def test_the_config_has_no_pid_file(tmp_path: Path, command: str) -> None:
    file = tmp_path / "poolsrv.toml"
    file.write_text('[listeners.a]\nbind = ":0"\nhandler = "echo"\n')
    done = invoke(command, "--config", file, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == f'{file}: pool.pidfile: missing, expected a path for it, such as "run/poolsrv.pid"\n'
    assert invoke(command, "--config", tmp_path / "none", cwd=tmp_path).returncode == 2
    (tmp_path / "empty").mkdir()
    assert invoke(command, cwd=tmp_path / "empty", POOLSRV_CONFIG=None).returncode == 2


@pytest.mark.server
def test_a_server_that_is_killed_in_the_middle_of_a_reload(serve: Serve, site: Path) -> None:
    server = serve(config(POOL), paths=(site,))
    module = site / "poolsrv_puppet.py"
    module.write_text("import time, os\nopen('hangs', 'w').close()\ntime.sleep(3600)\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "poolsrv", "reload", "--config", str(server.file)], stderr=subprocess.PIPE, text=True
    )
    wait_until((server.folder / "hangs").exists, "a plugin whose import hangs")
    server.signal(signal.SIGKILL)
    assert process.communicate(timeout=TIMEOUT)[1] == (
        f"poolsrv: the server (pid {server.pid}) has ended; its log says why\n"
    )
    assert process.returncode == 1
    wait_until(lambda: not is_alive(server.pid), "its end")


class Silent:
    """A server that gives no outcome. Waiting for it takes no time: the clock is moved."""

    pid = 4711

    def __init__(self) -> None:
        self.now = 0.0

    def signal(self, number: signal.Signals) -> None:
        assert number == signal.SIGHUP

    def wait(self, seconds: float) -> bool:
        self.now += seconds
        return False

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("keys", "seconds"),
    [
        ("", 165),
        ("start_timeout = 300.0", 645),
        ("start_timeout = 2\ngraceful_timeout = 0", 19),
        ("start_timeout = true", 165),  # an error, which the server tells
    ],
)
def test_reload_waits_as_long_as_the_config_lets_a_start_take(
    keys: str, seconds: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "poolsrv.toml"
    path.write_text(f"[pool]\n{POOL}\n{keys}\n")
    server = Silent()

    def ask(config: Path) -> None:
        raise NoAnswer("starting")

    monkeypatch.setattr(lifecycle, "_find", lambda path: (locate(path), server))
    monkeypatch.setattr(lifecycle, "ask", ask)
    monkeypatch.setattr(time, "monotonic", lambda: server.now)
    with pytest.raises(NoAnswer, match=f"no outcome within {seconds} seconds"):
        lifecycle.reload(path)
    assert server.now == pytest.approx(seconds, abs=lifecycle.POLL_INTERVAL * 2)
