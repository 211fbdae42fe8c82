"""The event loop, with real descriptors."""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from functools import partial

import pytest

from poolsrv.core.event_loop import HANGUP, READ, WRITE, EventLoop
from tests.helpers.server import process_state, wait_until


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    yield left, right
    left.close()
    right.close()


def test_a_callback_gets_the_events_of_its_descriptor(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    left, right = pair
    seen: list[int] = []
    loop.register(left.fileno(), READ, seen.append)
    right.send(b"x")
    loop.turn(0)
    assert seen == [READ]
    loop.turn(0)
    assert seen == [READ, READ]  # level-triggered: unread bytes are reported again
    loop.modify(left.fileno(), WRITE)
    loop.turn(0)
    assert seen == [READ, READ, WRITE]
    assert (loop.turns, loop.events) == (3, 3)


def test_a_hang_up_is_told_without_being_asked_for(loop: EventLoop, pair: tuple[socket.socket, socket.socket]) -> None:
    left, right = pair
    seen: list[int] = []
    loop.register(left.fileno(), 0, seen.append)
    right.close()
    loop.turn(0)
    assert seen == [HANGUP]


def test_what_is_unregistered_in_the_middle_of_a_batch_is_not_called(loop: EventLoop) -> None:
    pairs = [socket.socketpair() for _ in range(2)]
    called: list[int] = []

    def first_one_wins(index: int, mask: int) -> None:
        called.append(index)
        loop.unregister(pairs[1 - index][0].fileno())

    for index, (left, right) in enumerate(pairs):
        loop.register(left.fileno(), READ, partial(first_one_wins, index))
        right.send(b"x")
    events = loop.wait(0)
    assert len(events) == 2
    loop.dispatch(events)
    assert len(called) == 1
    for left, right in pairs:
        left.close()
        right.close()


def test_a_descriptor_is_closed_after_the_last_event_of_the_batch(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    """Otherwise its number could come back within the batch, and get the events of the old one."""
    left, right = pair
    order: list[str] = []

    def first(mask: int) -> None:
        order.append("first")
        loop.at_end_of_turn(lambda: order.append("closed"))

    loop.register(left.fileno(), READ, first)
    loop.register(right.fileno(), READ, lambda _: order.append("second"))
    left.send(b"x")
    right.send(b"x")
    loop.dispatch([(left.fileno(), READ), (right.fileno(), READ)])
    assert order == ["first", "second", "closed"]


def test_timers_are_called_in_the_order_in_which_they_are_due(loop: EventLoop) -> None:
    order: list[str] = []
    loop.call_later(0.002, lambda: order.append("late"))
    loop.call_later(0.001, lambda: order.append("early"))
    loop.call_later(0.001, lambda: order.append("early too"))
    loop.call_later(0.003, loop.stop)
    loop.run()
    assert order == ["early", "early too", "late"]


def test_a_cancelled_timer_is_not_called_and_wakes_nobody(loop: EventLoop) -> None:
    order: list[str] = []

    def first_one() -> None:
        order.append("first")
        second.cancel()

    first = loop.call_later(0.001, first_one)
    second = loop.call_later(0.001, lambda: order.append("second"))
    loop.call_later(0.002, loop.stop)
    loop.run()
    first.cancel()  # harmless
    second.cancel()
    assert order == ["first"]


def test_a_callback_that_calls_later_by_nothing_does_not_hold_up_the_turn(loop: EventLoop) -> None:
    count = 0

    def again() -> None:
        nonlocal count
        count += 1
        loop.call_later(0, again)

    again()
    for turn in range(2, 5):
        loop.turn()
        assert count == turn


def test_what_puts_itself_off_for_ever_does_not_hold_up_the_events(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    left, right = pair
    seen: list[int] = []

    def again() -> None:
        loop.at_end_of_turn(again)

    again()
    loop.register(left.fileno(), READ, seen.append)
    right.send(b"x")
    for _ in range(3):
        loop.turn()
    assert len(seen) == 3


def test_cancelled_timers_do_not_pile_up(loop: EventLoop) -> None:
    for _ in range(1000):
        loop.call_later(3600, lambda: None).cancel()
    assert len(loop._timers) < 200
    kept: list[str] = []
    loop.call_later(0, lambda: kept.append("called"))
    loop.turn()
    assert kept == ["called"]


def test_a_callback_may_cancel_so_many_timers_that_they_are_rebuilt(loop: EventLoop) -> None:
    order: list[int] = []
    timers = [loop.call_later(3600, lambda: None) for _ in range(500)]

    def cancel_all() -> None:
        for timer in timers:
            timer.cancel()

    loop.call_later(0, cancel_all)
    loop.call_later(0, lambda: order.append(1))
    loop.turn()
    assert order == [1]
    assert len(loop._timers) < 200


def test_stop_ends_run_at_the_end_of_the_turn_and_run_can_be_called_again(loop: EventLoop) -> None:
    turns: list[str] = []
    loop.after_turn = lambda: turns.append("turn")
    loop.call_later(0, loop.stop)
    loop.run()
    loop.call_later(0, loop.stop)
    loop.run()
    assert turns == ["turn", "turn"]


def test_what_came_in_time_goes_before_a_timer_although_the_process_was_stopped(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    """A process that is continued is told by `poll` that the time is over, and not what has come."""
    left, right = pair
    pid = os.fork()
    if pid == 0:
        loop.reopen()
        loop.register(left.fileno(), READ, lambda _: left.send(left.recv(9)))
        due = loop.call_later(0.5, partial(left.send, b"late")).due
        left.send(struct.pack("d", due))
        while True:
            loop.turn()
    due = struct.unpack("d", right.recv(8))[0]
    wait_until(lambda: process_state(pid) == "S", "its waiting")
    os.kill(pid, signal.SIGSTOP)
    assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1])
    right.send(b"in time")
    wait_until(lambda: time.monotonic() > due, "the timer to be due")
    os.kill(pid, signal.SIGCONT)
    right.settimeout(30)
    first = right.recv(7)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert first == b"in time"


def test_stop_does_not_make_later_turns_spin(loop: EventLoop) -> None:
    """A worker runs iterations of its own after ``run``, and may then be told to stop again."""
    loop.stop()
    before = loop.now
    loop.turn(0.05)
    assert loop.now - before >= 0.04


def test_a_forked_child_that_closes_its_copy_takes_nothing_from_its_parent(
    loop: EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    left, right = pair
    seen: list[int] = []
    loop.register(left.fileno(), READ, seen.append)
    pid = os.fork()
    if pid == 0:
        loop.close()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    right.send(b"x")
    loop.turn(0)
    assert seen == [READ]


def test_a_batch_is_bounded(loop: EventLoop) -> None:
    ends = [os.eventfd(1, os.EFD_CLOEXEC) for _ in range(600)]
    for fd in ends:
        loop.register(fd, select.EPOLLIN, lambda _: None)
    assert len(loop.wait(0)) == 512
    for fd in ends:
        os.close(fd)
