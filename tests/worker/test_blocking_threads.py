"""Calls in threads where no thread can be started, because the limit of processes is reached."""

from __future__ import annotations

import errno
import gc
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from poolsrv_files import Files
from poolsrv_status import Status

from poolsrv import Connection, hookimpl
from poolsrv.core.event_loop import EventLoop
from poolsrv.testing import Harness
from poolsrv.worker.blocking_threads import BlockingThreads


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What a harness has open may be part of a cycle."""
    yield
    gc.collect()


@contextmanager
def no_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``pthread_create`` fails with EAGAIN, as Python reports it."""

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        yield


def call(what: str, callback: Callable[[], object]) -> None:
    callback()


def test_such_a_call_has_failed_and_is_not_made_later(loop: EventLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = BlockingThreads(loop, call)
    threads.open()
    calls: list[str] = []
    results: list[Future[Any]] = []
    with no_threads(monkeypatch):
        threads.submit(lambda: calls.append("first"), results.append)
        loop.turn()
    (failed,) = results
    error = failed.exception()
    assert isinstance(error, OSError)
    assert error.errno == errno.EAGAIN
    threads.submit(lambda: calls.append("second"), results.append)
    while len(results) < 2:
        loop.turn(1.0)
    threads.close(wait=True)
    assert calls == ["second"]


def test_the_connection_is_told_and_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    class Looks:
        @hookimpl
        def on_readable(self, conn: Connection) -> None:
            if conn.recv():
                conn.run_blocking(str, done=lambda future: conn.send(type(future.exception()).__name__.encode()))

    with Harness(Looks) as harness, no_threads(monkeypatch):
        client = harness.connect()
        client.send(b"?")
        client.send_eof()
        assert harness.run(lambda: client.closed)
        assert client.received == b"BlockingIOError"
        assert not harness.faults


def test_a_listing_is_refused_for_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Harness(Files, {"root": str(tmp_path), "listings": True}) as harness, no_threads(monkeypatch):
        client = harness.connect()
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert harness.run(lambda: b"\r\n\r\n" in client.received)
        assert client.received.startswith(b"HTTP/1.1 503 ")
        assert b"Retry-After: 5\r\n" in client.received


def test_metrics_are_refused_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    with Harness(Status) as harness, no_threads(monkeypatch):
        client = harness.connect()
        client.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        assert harness.run(lambda: b"\r\n\r\n" in client.received)
        assert client.received.startswith(b"HTTP/1.1 503 ")
        assert not harness.faults
