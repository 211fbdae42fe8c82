"""``pool.drain_notice``: between the signal to stop and the end of accepting, ``/readyz`` says no."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.command_line import invoke
from tests.helpers.http import Client
from tests.helpers.server import ServerProcess, receive_all, wait_until
from tests.status.conftest import CONFIG

pytestmark = pytest.mark.server

Serve = Callable[..., ServerProcess]


def config(seconds: float) -> str:
    return CONFIG.replace("workers = 2\n", f'workers = 1\ndrain_notice = {seconds}\npidfile = "pid"\n')


def readiness(server: ServerProcess) -> tuple[int, bytes]:
    with Client(server, "status") as client:
        while b"does not answer" in (response := client.get("/readyz")).body:
            pass  # the dispatcher is late
        return response.status, response.body


def command(server: ServerProcess, *arguments: str) -> str:
    return invoke(*arguments, "--config", server.file, cwd=server.folder).stdout


def test_clients_are_served_while_readyz_says_no_until_another_signal(serve: Serve) -> None:
    server = serve(config(600))
    assert readiness(server) == (200, b"ready: well: 1 worker, 1 connection\n")
    assert "told to stop" not in command(server, "status")
    server.signal(signal.SIGTERM)
    server.wait_for_line(r"SIGTERM: accepting for 600 s more \(drain_notice\)")
    wait_until(lambda: readiness(server)[0] == 503, "the notice")
    assert readiness(server)[1].startswith(b"not ready: the pool is stopping (it drains in ")
    with Client(server, "status") as client:
        assert client.get("/healthz").body == b"degraded: the pool is stopping\n"
    assert server.exchange("hello", b"hi") == b"hi"
    assert "it has been told to stop, and accepts for 9 min more (drain_notice)" in command(server, "status")
    server.signal(signal.SIGHUP)
    server.wait_for_line("SIGHUP: stopping already")
    with server.connect("hello") as sock:
        sock.sendall(b"still here")
        assert sock.recv(100) == b"still here"
        server.signal(signal.SIGINT)
        server.wait_for_line(r"dispatcher\[\d+\] SIGINT: stopping")
        sock.sendall(b"and now")
        assert sock.recv(100) == b"and now"
    assert server.wait() == 0
    assert "ending at once" not in server.log


def test_it_ends_by_itself_and_stop_now_does_not_wait_for_it(serve: Serve, tmp_path: Path) -> None:
    short = serve(config(0.2))
    assert short.stop() == 0
    short.wait_for_line(r"SIGTERM: accepting for 0.2 s more")
    long = serve(config(600))
    assert command(long, "stop", "--now").startswith("stopped")
    assert long.wait() == 0


def test_the_status_is_served_until_the_other_workers_have_ended(serve: Serve) -> None:
    server = serve(CONFIG.replace("workers = 2", "workers = 1\ngraceful_timeout = 600"))
    with server.connect("hello") as sock, Client(server, "status") as kept, Client(server, "status") as events:
        sock.sendall(b"hi")
        assert sock.recv(100) == b"hi"
        events.request("/events")
        events.head()
        server.signal(signal.SIGTERM)
        server.wait_for_line("SIGTERM: stopping")
        why = b"not ready: the pool is stopping (%d connections are open)\n"
        assert kept.get("/readyz").body == why % 3
        assert readiness(server) == (503, why % 4)
        assert kept.get("/status.json").status == 200
        with pytest.raises(ConnectionRefusedError):
            server.connect("hello")
        sock.close()
        receive_all(events.sock)
    assert server.wait() == 0
    assert "ending at once" not in server.log
    assert "Traceback" not in server.log


def test_a_worker_apart_that_drains_by_itself_keeps_nobody_waiting(serve: Serve) -> None:
    """TERM goes to every process of a group, say."""
    server = serve(CONFIG.replace("workers = 2", "workers = 1\ngraceful_timeout = 600"))
    with server.connect("hello") as sock:
        sock.sendall(b"hi")
        assert sock.recv(100) == b"hi"
        server.signal(signal.SIGTERM)
        server.wait_for_line("SIGTERM: stopping")
        (apart,) = re.findall(r"worker apart \(pid (\d+)\) serves", server.log)
        os.kill(int(apart), signal.SIGTERM)
        server.wait_for_line(r"worker apart \(pid \d+\) exited 0")
        wait_until(lambda: is_refused(server), "a listening socket that is closed")
    assert server.wait() == 0


def is_refused(server: ServerProcess) -> bool:
    try:
        server.connect("status").close()
    except ConnectionRefusedError:
        return True
    return False
