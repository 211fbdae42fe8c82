"""The supervisor's watchdog: a dispatcher is killed and replaced if it hangs, and only then."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poolsrv.core.event_loop import EventLoop
from poolsrv.supervisor import watchdog
from poolsrv.supervisor.watchdog import DEFAULT_TIMEOUT, MIN_TIMEOUT, Watchdog, timeout_of
from tests.helpers.distributions import install
from tests.helpers.puppet import Client, config
from tests.helpers.server import ServerProcess, is_alive, wait_until

Serve = Callable[..., ServerProcess]

HANGS = """
    import os, time
    from poolsrv import hookimpl
    class Hangs:
        @hookimpl
        def on_child_exit(self, child, conn):
            while child.role == "worker" and not os.path.exists("mended"):
                time.sleep(0.01)
        @hookimpl
        def on_readable(self, conn):
            conn.send(conn.recv())
"""


@pytest.mark.server
def test_a_dispatcher_that_hangs_in_a_plugin_is_named_killed_and_replaced(serve: Serve, tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "poolsrv-hangs", {"hangs": "poolsrv_hangs:Hangs"}, HANGS)
    text = '[pool]\nworkers = 1\nhang_timeout = 1.0\n[listeners.a]\nbind = "127.0.0.1:0"\nhandler = "hangs"\n'
    server = serve(text, paths=(site,))
    dispatcher = server.dispatcher_pid
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    file = re.escape(str(site / "poolsrv_hangs.py"))
    server.wait_for_line(
        rf"the dispatcher of the pool \(generation 1, pid {dispatcher}\) has been silent for \d+\.\d s,"
        rf" it hangs in on_child_exit, {file}:\d+: killing it"
    )
    server.wait_for_line(r" ready: ", count=2)
    assert server.exchange("a", b"hello") == b"hello"
    (server.folder / "mended").touch()
    assert server.stop() == 0


@pytest.mark.server
def test_a_dispatcher_that_has_been_stopped_is_continued_and_spared(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1\nhang_timeout = 1.0"), paths=(site,))
    dispatcher = server.dispatcher_pid
    with Client(server) as before:
        assert before.ask("pid")
        os.kill(dispatcher, signal.SIGSTOP)
        with Client(server) as client:
            assert client.ask("pid")  # once it is continued
        server.wait_for_line("was silent, and responds again")
        assert before.ask("pid")
    assert server.dispatcher_pid == dispatcher
    assert server.stop() == 0


# --- with the test's own clock


class Pool:
    """The part of a pool that the watchdog uses."""

    def __init__(self, loop: EventLoop, hang_timeout: float) -> None:
        self.loop = loop
        self.hang_timeout = hang_timeout
        self.last_report_at = 0.0
        self.asked = 0
        self.kill: Callable[[], object] = lambda: None

    def kill_hung_later(self, seconds: float, before: Callable[[str], object], unless: Callable[[], bool]) -> None:
        self.asked += 1
        self.kill = lambda: None if unless() else before("somewhere")


@pytest.fixture
def loop() -> Any:
    timers: list[tuple[float, Callable[[], object]]] = []

    def call_later(seconds: float, callback: Callable[[], object]) -> object:
        timers.append((fake.now + seconds, callback))
        return SimpleNamespace(cancel=timers.clear)

    fake = SimpleNamespace(now=1000.0, call_later=call_later, timers=timers)
    return fake


def sleep(loop: Any, seconds: float, at_once: bool = False) -> None:
    """Let time pass; ``at_once``: this process is held up until the end."""
    end = loop.now + seconds
    if at_once:
        loop.now = end
    while loop.timers and loop.timers[0][0] <= end:
        due, callback = loop.timers.pop(0)
        loop.now = max(loop.now, due)
        callback()
    loop.now = end


@pytest.mark.parametrize(("hang_timeout", "patience"), [(0.0, DEFAULT_TIMEOUT), (0.5, MIN_TIMEOUT), (60.0, 60.0)])
def test_how_long_a_dispatcher_may_be_silent(loop: Any, hang_timeout: float, patience: float) -> None:
    pool = Pool(loop, hang_timeout)
    assert timeout_of(pool) == patience  # type: ignore[arg-type]
    Watchdog(loop).begin(pool)  # type: ignore[arg-type]
    sleep(loop, patience)
    assert pool.asked == 0
    sleep(loop, patience / 2)
    assert pool.asked == 1


def test_a_dispatcher_that_reports_is_left_alone(loop: Any) -> None:
    pool = Pool(loop, 8.0)
    Watchdog(loop).begin(pool)  # type: ignore[arg-type]
    for _ in range(100):
        sleep(loop, 2.0)
        pool.last_report_at = loop.now
    assert pool.asked == 0


@pytest.mark.parametrize("seconds", [9.0, 100.0, 1_000_000.0])
def test_a_supervisor_that_was_held_up_blames_nobody(loop: Any, seconds: float) -> None:
    """It was stopped, or the machine was suspended, and so was the dispatcher."""
    pool = Pool(loop, 8.0)
    Watchdog(loop).begin(pool)  # type: ignore[arg-type]
    sleep(loop, seconds, at_once=True)
    sleep(loop, 6.0)
    assert pool.asked == 0
    sleep(loop, 6.0)  # but then its timeout is over
    assert pool.asked == 1


def test_a_dispatcher_that_responds_when_asked_is_spared(loop: Any, caplog: pytest.LogCaptureFixture) -> None:
    pool = Pool(loop, 8.0)
    Watchdog(loop).begin(pool)  # type: ignore[arg-type]
    sleep(loop, 12.0)
    assert pool.asked == 1
    pool.last_report_at = loop.now + 0.1
    pool.kill()
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    sleep(loop, 12.0)  # it is watched again
    assert pool.asked == 2
    pool.kill()
    assert caplog.records[-1].levelname == "ERROR"
    assert "somewhere" in caplog.records[-1].getMessage()


def test_nobody_is_watched_after_the_end(loop: Any) -> None:
    pool = Pool(loop, 8.0)
    over = Watchdog(loop)
    over.begin(pool)  # type: ignore[arg-type]
    over.end()
    sleep(loop, 100.0)
    assert pool.asked == 0


@pytest.mark.server
def test_a_held_up_supervisor_costs_nobody_its_dispatcher(serve: Serve, site: Path) -> None:
    """Only the supervisor is stopped. What the dispatcher sends meanwhile waits in the link."""
    server = serve(config("workers = 1\nhang_timeout = 1.0"), paths=(site,))
    dispatcher = server.dispatcher_pid
    server.signal(signal.SIGSTOP)

    time.sleep(watchdog.MIN_TIMEOUT + 2.0)  # longer than a dispatcher may be silent
    server.signal(signal.SIGCONT)
    server.reload()
    assert "silent" not in server.log
    wait_until(lambda: not is_alive(dispatcher), "the end of the old one")
    assert server.stop() == 0
