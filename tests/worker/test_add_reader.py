"""A descriptor's number that comes back while events for the old one are still to be handed out."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from poolsrv.core.event_loop import EventLoop
from poolsrv.worker.worker import Worker


def worker_of(loop: EventLoop) -> Worker:
    """A worker that has a loop, and nothing else."""
    nothing = cast(Any, None)

    def guarded(what: str, callback: Callable[[], object]) -> None:
        callback()

    return Worker(
        0,
        loop,
        reaper=nothing,
        threads=nothing,
        programs=nothing,
        guarded=guarded,
        reopen_logs=[],
        metrics=nothing,
        runs=nothing,
        status=nothing,
    )


def test_events_of_a_closed_descriptor_are_not_those_of_its_successor(loop: EventLoop) -> None:
    worker = worker_of(loop)
    pipes = dict([os.pipe(), os.pipe()])
    writers: list[int] = []
    calls: list[int] = []

    def replace(called: int) -> None:
        """Close the other pipe, whose event is in the same batch, and watch a new one that gets its number."""
        for handle in handles:
            handle.cancel()
        (other,) = pipes.keys() - {called}
        os.close(other)
        successor, writer = os.pipe()
        assert successor == other
        writers.append(writer)
        worker.add_reader(successor, partial(calls.append, successor))

    handles = [worker.add_reader(reader, partial(replace, reader)) for reader in pipes]
    for writer in pipes.values():
        os.write(writer, b"x")
    loop.turn(0)
    loop.turn(0)
    assert calls == []
    os.write(writers[0], b"y")
    loop.turn(1)
    assert len(calls) == 1
    loop.unregister(calls[0])
    for descriptor in (*pipes, *pipes.values(), *writers):
        os.close(descriptor)


def test_a_handle_that_is_cancelled_too_late_does_not_end_the_watch_of_a_successor(loop: EventLoop) -> None:
    worker = worker_of(loop)
    calls: list[str] = []
    reader, writer = os.pipe()
    handle = worker.add_reader(reader, lambda: calls.append("old"))
    os.close(reader)
    os.close(writer)
    successor, writer = os.pipe()
    assert successor == reader
    own = worker.add_reader(successor, lambda: calls.append("new"))
    handle.cancel()
    os.write(writer, b"x")
    loop.turn(1)
    assert calls == ["new"]
    own.cancel()
    os.close(successor)
    os.close(writer)
