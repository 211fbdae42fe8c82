"""The signal pipe, with real signals and forks."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from poolsrv.core import signals
from poolsrv.core.signals import SignalPipe


@pytest.fixture
def pipe() -> Iterator[SignalPipe]:
    pipe = SignalPipe((signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD))
    yield pipe
    pipe.close()


def is_ready(pipe: SignalPipe) -> bool:
    return bool(select.select([pipe], [], [], 0)[0])


def test_a_signal_makes_the_pipe_readable_until_it_is_taken(pipe: SignalPipe) -> None:
    assert not is_ready(pipe)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert is_ready(pipe)
    assert pipe.take() == [signal.SIGUSR1]
    assert not is_ready(pipe)
    assert pipe.take() == []


def test_each_signal_is_taken_once_however_often_it_has_come(pipe: SignalPipe) -> None:
    for _ in range(100):
        os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert pipe.take() == [signal.SIGUSR2, signal.SIGUSR1]


def test_a_full_pipe_loses_no_signal(pipe: SignalPipe) -> None:
    for size in (4096, 1):
        with suppress(BlockingIOError):
            while True:
                pipe._writer.send(b"\0" * size)
    for _ in range(10):
        os.kill(os.getpid(), signal.SIGUSR1)
    os.kill(os.getpid(), signal.SIGUSR2)
    assert is_ready(pipe)
    assert pipe.take() == [signal.SIGUSR1, signal.SIGUSR2]
    assert not is_ready(pipe)


def test_a_flood_of_one_signal_fills_the_pipe_and_hides_no_other(pipe: SignalPipe) -> None:
    for _ in range(20_000):
        os.kill(os.getpid(), signal.SIGCHLD)
    os.kill(os.getpid(), signal.SIGUSR1)
    assert pipe.take() == [signal.SIGCHLD, signal.SIGUSR1]
    os.kill(os.getpid(), signal.SIGUSR1)
    assert is_ready(pipe)
    assert pipe.take() == [signal.SIGUSR1]


def test_a_signal_that_comes_while_the_pipe_is_installed_wakes() -> None:
    def one_by_one() -> Iterator[signal.Signals]:
        yield signal.SIGUSR1
        os.kill(os.getpid(), signal.SIGUSR1)  # its handler is installed by now

    pipe = SignalPipe(one_by_one())
    try:
        assert is_ready(pipe)
        assert pipe.take() == [signal.SIGUSR1]
    finally:
        pipe.close()


def test_close_brings_the_former_handlers_back() -> None:
    came: list[int] = []
    former = signal.signal(signal.SIGUSR1, lambda number, _: came.append(number))
    try:
        pipe = SignalPipe((signal.SIGUSR1,))
        os.kill(os.getpid(), signal.SIGUSR1)
        pipe.close()
        assert came == []
        os.kill(os.getpid(), signal.SIGUSR1)
        assert came == [signal.SIGUSR1]
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGUSR1, former)


def test_a_forked_child_does_not_write_into_its_parents_pipe(pipe: SignalPipe) -> None:
    children = []
    for _ in range(100):
        pid = signals.fork()
        if pid == 0:
            code = 1
            try:
                os.kill(os.getpid(), signal.SIGUSR1)  # while it is still blocked
                pipe.abandon()
                own = SignalPipe((signal.SIGUSR1,))
                signals.unblock()
                os.kill(os.getpid(), signal.SIGUSR1)
                code = 0 if is_ready(own) and own.take() == [signal.SIGUSR1] else 2
            finally:
                os._exit(code)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 100
    assert set(pipe.take()) <= {signal.SIGCHLD}


def test_all_signals_are_blocked_across_the_fork_and_in_the_child_until_it_unblocks(pipe: SignalPipe) -> None:
    reader, writer = os.pipe()
    pid = signals.fork()
    if pid == 0:
        try:
            os.write(writer, f"{signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())} ".encode())
            signals.unblock()
            os.write(writer, f"{signal.pthread_sigmask(signal.SIG_BLOCK, ())}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"True set()"
    os.close(reader)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_a_signal_during_the_fork_reaches_the_parent_alone(pipe: SignalPipe) -> None:
    """A signal to the parent while all are blocked arrives once they are unblocked."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)  # other threads have not blocked it
        pid = signals.fork()
        if pid == 0:
            pending = signal.SIGUSR1 in signal.sigpending()
            os._exit(1 if pending or pipe._pending else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert signal.SIGUSR1 not in pipe.take()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGUSR1})
    assert signal.SIGUSR1 in pipe.take()
