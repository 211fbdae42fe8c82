"""The loop of a process that a fault must not end: an exception of a callback costs that call, and nothing more."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator

import pytest

from poolsrv.core import guarded_loop
from poolsrv.core.event_loop import READ
from poolsrv.core.guarded_loop import GuardedLoop

FAULTS = pytest.mark.parametrize("error", [KeyError("books"), SystemExit(1), RecursionError("deep"), MemoryError()])


@pytest.fixture
def loop() -> Iterator[GuardedLoop]:
    loop = GuardedLoop(logging.getLogger("test.faults"))
    yield loop
    loop.close()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def raising(error: BaseException, calls: list[object]) -> Callable[..., object]:
    def fail(*arguments: object) -> None:
        calls.append(arguments)
        raise error

    return fail


@FAULTS
def test_a_callback_that_raises_costs_no_other_event_of_its_turn(
    loop: GuardedLoop, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[object] = []
    pipes = [os.pipe() for _ in range(3)]
    for number, (reader, writer) in enumerate(pipes):
        os.write(writer, b"x")
        loop.register(reader, READ, raising(error, calls) if number == 1 else calls.append)
    loop.turn(0)
    assert len(calls) == 3
    assert loop.turns == 1
    assert loop.events == 3
    assert "goes on" in caplog.text
    assert type(error).__name__ in caplog.text
    for pair in pipes:
        loop.unregister(pair[0])
        for end in pair:
            os.close(end)


@FAULTS
def test_timers_and_what_was_put_off_go_on(loop: GuardedLoop, error: BaseException) -> None:
    calls: list[object] = []
    for what in (lambda: calls.append("first"), raising(error, calls), lambda: calls.append("last")):
        loop.call_later(0, what)
        loop.at_end_of_turn(what)
    for _ in range(3):
        loop.turn(0)
    assert sorted(map(str, calls)) == sorted(["first", "()", "last"] * 2)


def test_a_descriptor_whose_callback_raises_rests_and_is_tried_again(
    loop: GuardedLoop, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Level-triggered, the loop would spin on it. The log reports a fault once."""
    reader, writer = pipe
    calls: list[object] = []
    loop.register(reader, READ, raising(KeyError("books"), calls))
    os.write(writer, b"x")
    monkeypatch.setattr(guarded_loop, "REST", 3600.0)
    for _ in range(5):
        loop.turn(0)
    assert len(calls) == 1
    loop.modify(reader, READ)  # takes effect once it has rested
    loop.turn(0)
    assert len(calls) == 1
    loop._wake(reader, loop._callbacks[reader])
    loop.turn(0)
    assert len(calls) == 2
    assert caplog.text.count("Traceback") == 1


def test_a_hang_up_that_makes_the_callback_raise_does_not_have_the_loop_spin(
    loop: GuardedLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guarded_loop, "REST", 3600.0)
    reader, writer = os.pipe()
    calls: list[object] = []
    loop.register(reader, 0, raising(KeyError("books"), calls))
    os.close(writer)
    for _ in range(10):
        loop.turn(0)
    assert 1 <= len(calls) <= 2
    loop.unregister(reader)
    os.close(reader)


def test_a_descriptor_that_is_another_s_after_its_fault_is_left_alone(loop: GuardedLoop, pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    calls: list[object] = []
    failing = raising(KeyError("books"), [])
    loop.register(reader, READ, failing)
    os.write(writer, b"x")
    loop.turn(0)
    loop.unregister(reader)
    loop.register(reader, READ, calls.append)
    loop.turn(0)
    assert len(calls) == 1
    loop._wake(reader, failing)
    loop.modify(reader, 0)
    loop.turn(0)
    assert len(calls) == 1


def test_a_fault_that_goes_on_is_counted(
    loop: GuardedLoop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fail = raising(KeyError("books"), [])
    for _ in range(4):
        loop.guarded(fail)
    monkeypatch.setattr(guarded_loop, "LOG_INTERVAL", 0.0)
    loop.guarded(fail)
    assert caplog.text.count("Traceback") == 2
    assert "3 times more" in caplog.text
