"""``poolsrv status --check``, for monitoring."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from poolsrv.cli import control_client, health
from poolsrv.ipc.health import Health, judge
from poolsrv.ipc.stats import Reload, Status
from tests.helpers.command_line import invoke
from tests.helpers.puppet import config
from tests.helpers.server import ServerProcess, wait_until

Serve = Callable[..., ServerProcess]


def check(*arguments: str | Path) -> tuple[int, str]:
    """The exit code and the line."""
    done = invoke("status", "--check", *arguments, cwd=Path())
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    return done.returncode, done.stdout


@pytest.mark.server
def test_a_server_from_well_to_down(serve: Serve, site: Path) -> None:
    server = serve(config('workers = 2\ncontrol = "ctl"'), paths=(site,))
    assert check("--config", server.file) == (0, "well: 2 workers, 0 connections\n")
    first, second = server.worker_pids()
    os.kill(second, signal.SIGSTOP)
    try:
        wait_until(lambda: check("--config", server.file)[0] == 1, "a degraded server")
        assert check("--config", server.file) == (1, "degraded: 1 worker stopped (1)\n")
        os.kill(first, signal.SIGSTOP)
        wait_until(lambda: check("--config", server.file)[0] == 2, "a server that is down")
        assert check("--config", server.file) == (2, "down: no worker serves: 2 workers stopped (0, 1)\n")
    finally:
        for pid in (first, second):
            os.kill(pid, signal.SIGCONT)
    wait_until(lambda: check("--config", server.file)[0] == 0, "a server that is well again")
    right = server.file.read_text()
    server.file.write_text(right + "[listeners.b]\n")
    server.signal(signal.SIGHUP)
    server.wait_for_line("the reload has failed")
    wait_until(lambda: check("--config", server.file)[0] == 1, "the outcome of the reload")
    assert check("--config", server.file) == (1, "degraded: the last reload has failed\n")
    assert server.stop() == 0
    assert check("--config", server.file) == (2, f"down: {server.file}: the server does not run\n")


def test_what_can_not_be_found_out_is_unknown(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    assert check("--config", file) == (3, f"unknown: {file}: no such file, expected a config file\n")
    file.write_text("[listeners]\n")
    code, line = check("--config", file)
    assert code == 3
    assert line.startswith(f"unknown: {file}: pool.control: missing, expected a path")
    file.write_text("[pool]\ncontrol = 3\npidfile = 4\n")
    assert check("--config", file) == (
        3,
        f"unknown: {file}: pool.control: got 3 (a number), expected a path (and 1 more error)\n",
    )


def test_without_a_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("POOLSRV_CONFIG", raising=False)
    assert check() == (3, "unknown: there is no config to tell where the server is\n")


def test_a_server_that_does_not_answer_is_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control_client, "TIMEOUT", 0.1)
    (tmp_path / "a.toml").write_text('[pool]\ncontrol = "ctl"\n')
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "ctl"))
        sock.listen()
        found, line = health.check(tmp_path / "a.toml")
    assert found is Health.DOWN
    assert line.startswith(f"down: {tmp_path}/ctl: no answer within 0 s")


def test_an_answer_that_is_not_understood_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.toml").write_text('[pool]\ncontrol = "ctl"\n')
    monkeypatch.setattr(control_client, "_exchange", lambda *arguments: b'{"protocol": 2}\n')
    found, line = health.check(tmp_path / "a.toml")
    assert found is Health.UNKNOWN
    assert "speaks protocol 2, and this is 1" in line


def status(*states: str, server_state: str = "serving", last_reload: Reload | None = None) -> Status:
    numbers = dict.fromkeys(("accepted_rate", "events_rate", "bytes_in_rate", "bytes_out_rate", "cpu_percent"), 0.0)
    worker = numbers | dict.fromkeys(("age", "cpu", "silent"), 0.0)
    worker |= dict.fromkeys(("open", "accepted", "events", "bytes_in", "bytes_out", "memory", "restarts"), 0)
    server = dict.fromkeys(("pid", "dispatcher_pid", "generation", "restarts"), 1)
    about: dict[str, object] = {
        "version": "1",
        "config": "/a.toml",
        "state": server_state,
        "leaving": [],
        "last_reload": last_reload,
    }
    return msgspec.convert(
        {
            "time": 0.0,
            "server": server | about | dict.fromkeys(("started_at", "uptime", "pool_started_at"), 0.0),
            "totals": numbers | {"open": 1, "accepted": 0, "programs": 0, "memory": 0},
            "workers": [worker | {"slot": slot, "pid": 1, "state": state} for slot, state in enumerate(states)],
            "listeners": [],
            "programs": [],
            "recent_refusals": [],
        },
        Status,
        from_attributes=True,
    )


FAILED = Reload(at=0.0, ok=False, errors=["a", "b"])


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (status("serving"), "well: 1 worker, 1 connection"),
        (status("serving", "draining", "starting"), "well: 3 workers, 1 connection"),
        (status("serving", last_reload=Reload(at=0.0, ok=True)), "well: 1 worker, 1 connection"),
        (status("serving", "empty", "empty"), "degraded: 2 workers empty (1, 2)"),
        (
            status("stalled", "condemned", "full"),
            "degraded: 1 worker stalled (0); 1 worker condemned (1); 1 worker full (2)",
        ),
        (status("serving", last_reload=FAILED), "degraded: the last reload has failed"),
        (status("draining", server_state="stopping"), "degraded: the pool is stopping"),
        (status("full"), "degraded: 1 worker full (0)"),
        (status("starting", "empty"), "degraded: 1 worker empty (1)"),
        (status("empty", "stopped"), "down: no worker serves: 1 worker empty (0); 1 worker stopped (1)"),
    ],
)
def test_the_health_of_a_status(found: Status, line: str) -> None:
    health_found, text = judge(found)
    assert text == line
    assert text.startswith(health_found.name.lower())
