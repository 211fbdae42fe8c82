"""How long a hung process has to dump its stack, with the test's own clock; test_hang_watchdog.py has whole servers."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from poolsrv.core.event_loop import EventLoop
from poolsrv.core.hang_signal import HANG_SIGNAL, dump_file
from poolsrv.core.stack_dump import DUMP_TIME, StackDumpFile
from poolsrv.dispatcher.hang_watchdog import HangWatchdog
from poolsrv.dispatcher.worker_slot import WorkerSlot
from poolsrv.ipc.worker_channel import SERVING
from poolsrv.supervisor.pool import PoolProcess
from tests.helpers.streams import pass_time

PID = 1 << 30  # nobody's


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Those that have been sent."""
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(number))
    return sent


@pytest.fixture
def watchdog(signals: list[int], loop: EventLoop) -> Iterator[HangWatchdog]:
    """One that has just asked a worker where it hangs."""
    slot = WorkerSlot(0, pid=PID, state=SERVING, last_report_at=loop.now)
    watchdog = HangWatchdog(loop, {PID: slot}, 4.0, [])
    watchdog.add(PID, StackDumpFile())
    watchdog.begin()
    for _ in range(5):
        pass_time(loop, 1.0)
    yield watchdog
    watchdog.remove(PID)


def test_a_worker_is_killed_once_it_has_had_the_time(
    signals: list[int], loop: EventLoop, watchdog: HangWatchdog
) -> None:
    assert signals == [HANG_SIGNAL]
    pass_time(loop, DUMP_TIME * 1.1)
    assert signals == [HANG_SIGNAL, signal.SIGKILL]


def test_a_dispatcher_that_was_held_up_gives_a_worker_the_time_again(
    signals: list[int], loop: EventLoop, watchdog: HangWatchdog
) -> None:
    """The machine was busy with something else, and the worker did not run either."""
    for _ in range(3):
        pass_time(loop, DUMP_TIME * 2)
        assert signals == [HANG_SIGNAL]
    pass_time(loop, DUMP_TIME * 1.1)
    assert signals == [HANG_SIGNAL, signal.SIGKILL]


def test_a_supervisor_that_was_held_up_gives_a_dispatcher_the_time_again(signals: list[int], loop: EventLoop) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    interpreter: Any = SimpleNamespace(pid=PID, hang_file=dump_file(), link=ours)
    pool = PoolProcess(loop, 1, False, lambda pool, message: None, interpreter)
    where: list[str] = []
    pool.kill_hung_later(0.0, where.append)
    pass_time(loop, 0.0)
    for _ in range(3):
        pass_time(loop, DUMP_TIME * 2)
        assert (signals, where) == ([HANG_SIGNAL, signal.SIGCONT], [])
    pass_time(loop, DUMP_TIME * 1.1)
    assert signals == [HANG_SIGNAL, signal.SIGCONT, signal.SIGKILL]
    assert len(where) == 1
    theirs.close()
    pool.ended()
    loop.turn(0)
