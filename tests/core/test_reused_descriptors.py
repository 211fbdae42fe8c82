"""The loops, when a descriptor's number comes back within a batch: see ``EventLoop.register``."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from poolsrv.core.event_loop import READ, EventLoop
from poolsrv.core.guarded_loop import GuardedLoop
from tests.helpers.reused_descriptors import readable, succeed


@pytest.fixture(params=["plain", "guarded"])
def loop(request: pytest.FixtureRequest) -> Iterator[EventLoop]:
    loop = EventLoop() if request.param == "plain" else GuardedLoop(logging.getLogger("test.faults"))
    yield loop
    loop.close()


@pytest.mark.parametrize("forget", [True, False], ids=["unregistered", "closed behind the loop's back"])
@pytest.mark.parametrize("later", [False, True], ids=["register", "set_callback"])
def test_events_of_a_closed_descriptor_are_not_those_of_its_successor(
    loop: EventLoop, forget: bool, later: bool
) -> None:
    early: list[int] = []
    calls: list[int] = []
    writers: list[int] = []

    def successor() -> None:
        reader, writer = os.pipe()
        writers.append(writer)
        loop.register(reader, READ, early.append if later else calls.append)
        if later:
            loop.set_callback(reader, calls.append)

    reader = succeed(loop, readable(), successor, forget)
    loop.turn(0)
    assert (early, calls) == ([], [])
    os.write(writers[0], b"y")
    loop.turn(1)
    assert (early, calls) == ([], [READ])
    loop.unregister(reader)
    os.close(reader)
    os.close(writers[0])


def test_a_descriptor_that_is_watched_again_in_the_same_turn_gets_its_event_in_the_next(loop: EventLoop) -> None:
    both = readable()
    calls: list[int] = []

    def again(mask: int) -> None:
        for fd in both:
            loop.unregister(fd)
            loop.register(fd, READ, lambda _, fd=fd: calls.append(fd))  # type: ignore[misc]

    for fd in both:
        loop.register(fd, READ, again)
    loop.turn(0)
    assert calls == []
    loop.turn(0)
    assert sorted(calls) == sorted(both)
    for fd in both:
        loop.unregister(fd)
        os.close(fd)
