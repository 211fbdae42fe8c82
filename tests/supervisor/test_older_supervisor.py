"""A pool that a supervisor of version 1 or 2 starts, after an upgrade: the messages on the link."""

from __future__ import annotations

import array
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from poolsrv.cli.control_client import ask
from tests.helpers.server import TIMEOUT, receive_all, wait_until
from tests.helpers.server_mark import server_starts

pytestmark = pytest.mark.server
HOUR = 3600.0


class OlderSupervisor:
    """The supervisor's end of the link as version 1 had it: JSON, descriptors beside it, and no credentials.

    Written without poolsrv's own code, so that it stays what it was.
    """

    def __init__(self, config: Path, version: int = 1, alive_every: float = 0.05) -> None:
        server_starts()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)  # as every pool makes its sockets
        self.port = self.listener.getsockname()[1]
        self.received: list[dict[str, Any]] = []
        self._config = config
        self._version = version
        self._start = {"version": version, "generation": 3, "log_level": None, "alive_every": alive_every}
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.link.settimeout(TIMEOUT)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "poolsrv.supervised", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
                text=True,
                cwd=config.parent,
            )

    def start(self) -> None:
        """Send ``start``, with the existing socket and all fields that version 1 had."""
        held = {"key": f"127.0.0.1:{self.port}", "path": "", "inode": None}
        start = {**self._start, "config": str(self._config), "about": self.about(), "sockets": [held], "last": True}
        descriptors = array.array("i", [self.listener.fileno()])
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)]
        self.link.sendmsg([json.dumps({"kind": "start", **start}).encode()], rights)

    def about(self, **changed: Any) -> dict[str, Any]:
        began = time.time() - HOUR
        about: dict[str, Any] = {
            "pid": 4711,
            "started_at": began,
            "serving": 2,
            "restarts": 0,
            "last_reload": None,
            "leaving": [],
        }
        if self._version > 1:
            about["began"] = time.clock_gettime(time.CLOCK_BOOTTIME) - HOUR
        return about | changed

    def send(self, kind: str, **fields: Any) -> None:
        self.link.send(json.dumps({"kind": kind, **fields}).encode())

    def receive(self) -> dict[str, Any] | None:
        """Return the next message, or None at the end of file; close its descriptors."""
        payload, ancillary, _, _ = self.link.recvmsg(262144, socket.CMSG_SPACE(200 * 4), socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        if not payload:
            return None
        message: dict[str, Any] = json.loads(payload)
        message["descriptors"] = len(fds)
        for fd in fds:
            os.close(fd)
        self.received.append(message)
        return message

    def receive_until(self, kind: str) -> dict[str, Any]:
        while (message := self.receive()) is not None:
            if message["kind"] == kind:
                return message
        raise AssertionError(f"no {kind!r}, but {self.received}")

    def kinds(self) -> list[str]:
        """The kinds of the messages received, each once."""
        return list(dict.fromkeys(message["kind"] for message in self.received))

    def end(self) -> tuple[int, str]:
        """Receive the rest; return the exit code and the log."""
        while self.receive() is not None:
            pass
        _, log = self.process.communicate(timeout=TIMEOUT)
        return self.process.returncode, log

    def close(self) -> None:
        self.listener.close()
        self.link.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=TIMEOUT)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "poolsrv.toml"


def supervise(config: Path, more: str = "", **options: Any) -> OlderSupervisor:
    supervisor = OlderSupervisor(config, **options)
    config.write_text(
        f'[pool]\nworkers = 1\nstart_timeout = 50\ncontrol = "{config.parent}/control"\n'
        f'[listeners.hello]\nbind = "127.0.0.1:{supervisor.port}"\nhandler = "echo"\n{more}'
    )
    supervisor.start()
    return supervisor


@pytest.fixture
def supervisor(config: Path) -> Iterator[OlderSupervisor]:
    with closing(supervise(config)) as supervisor:
        yield supervisor


def test_a_pool_serves_below_a_supervisor_of_version_1(supervisor: OlderSupervisor, config: Path) -> None:
    bound = supervisor.receive_until("bound")
    control = str(config.parent / "control")
    assert [(one["key"], one["path"]) for one in bound["sockets"]] == [(f"unix:{control}", control)]
    assert (bound["descriptors"], bound["last"]) == (1, True)
    configured = supervisor.receive_until("configured")
    assert configured == {
        "kind": "configured",
        "keys": [f"127.0.0.1:{supervisor.port}", f"unix:{control}"],
        "graceful_timeout": 30.0,
        "pidfile": None,
        "log": {"level": "info", "format": "text", "file": None, "owner": None},
        "descriptors": 0,
    }
    supervisor.send("go")
    supervisor.receive_until("serves")
    with socket.create_connection(("127.0.0.1", supervisor.port), TIMEOUT) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"hello"
    for _ in range(3):
        supervisor.receive_until("alive")
    supervisor.send("stop", why="reload")
    code, log = supervisor.end()
    assert code == 0
    assert "reload: stopping" in log
    assert "ERROR" not in log
    assert sorted(supervisor.kinds()) == ["alive", "bound", "configured", "serves"]


def test_a_pool_without_exclusive_listeners_says_to_version_2_what_that_knows(config: Path) -> None:
    with closing(supervise(config, version=2)) as supervisor:
        assert supervisor.receive_until("configured")["max_draining_pools"] == 4
        supervisor.send("go", alive_every=0.05)
        supervisor.receive_until("serves")
        supervisor.receive_until("alive")
        supervisor.send("stop", why="reload")
        assert supervisor.end()[0] == 0
        assert sorted(supervisor.kinds()) == ["alive", "bound", "configured", "plan", "serves"]


def test_status_knows_the_age_of_a_supervisor_of_version_1(supervisor: OlderSupervisor, config: Path) -> None:
    supervisor.receive_until("configured")
    supervisor.send("go")
    supervisor.receive_until("serves")
    status = ask(config).server
    assert (status.pid, status.generation, status.last_reload) == (4711, 3, None)
    assert HOUR <= status.uptime < 2 * HOUR
    reload = {"at": time.time(), "ok": True, "errors": []}
    supervisor.send("about", about=supervisor.about(restarts=7, last_reload=reload))
    wait_until(lambda: ask(config).server.restarts == 7, "the figures that the supervisor has sent")
    told = ask(config).server.last_reload
    assert told is not None
    now = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert now - HOUR < told.began <= now + 1.0


def test_a_pool_that_is_told_to_end_by_a_signal_says_nothing_that_version_1_does_not_know(
    config: Path,
) -> None:
    with closing(supervise(config, alive_every=0)) as supervisor:
        supervisor.receive_until("configured")
        supervisor.send("go")
        supervisor.receive_until("serves")
        supervisor.process.send_signal(signal.SIGTERM)
        code, log = supervisor.end()
        assert code == 0
        assert "SIGTERM: stopping" in log
        assert supervisor.kinds() == ["bound", "configured", "serves"]


def test_errors_in_the_config_reach_a_supervisor_of_version_1(config: Path) -> None:
    with closing(supervise(config, "surprise = 1\n")) as supervisor:
        failed = supervisor.receive_until("failed")
        assert failed["exit_code"] == 2
        assert [line for line in failed["lines"] if "surprise" in line] == failed["lines"] != []
        assert supervisor.end()[0] == 2
        assert supervisor.kinds() == ["failed"]


@pytest.mark.parametrize("version", [0, 4])
def test_another_version_is_refused(config: Path, version: int) -> None:
    with closing(supervise(config, version=version)) as supervisor:
        failed = supervisor.receive_until("failed")
        assert "is of another version of poolsrv than what is installed now: restart the server" in failed["lines"][0]
        assert supervisor.end()[0] == 1
