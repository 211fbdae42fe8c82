"""A descriptor's number that comes back while an event of the old one is still to be handed out."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial

from poolsrv.core.event_loop import READ, EventLoop


def readable() -> list[int]:
    """Two descriptors that are readable."""
    pairs = [os.pipe(), os.pipe()]
    for _, writer in pairs:
        os.write(writer, b"x")
        os.close(writer)
    return [reader for reader, _ in pairs]


def broken() -> list[int]:
    """Two descriptors that have an error."""
    pairs = [os.pipe(), os.pipe()]
    for reader, _ in pairs:
        os.close(reader)
    return [writer for _, writer in pairs]


def succeed(loop: EventLoop, old: Sequence[int], successor: Callable[[], object], forget: bool = True) -> int:
    """Run a batch with an event of each of two descriptors. The callback of the first closes the other, and has a
    successor with its number watched.

    :param successor: opens it, with the lowest number that is free, and has the loop watch it.
    :param forget: whether the loop is told before the other is closed.
    :returns: their number.
    """
    numbers: list[int] = []

    def replace(own: int, mask: int) -> None:
        (other,) = {*old} - {own}
        numbers.append(other)
        if forget:
            loop.unregister(other)
        os.close(other)
        successor()

    for fd in old:
        loop.register(fd, READ, partial(replace, fd))
    lower = [os.dup(old[0])]  # numbers that are free
    while lower[-1] < max(old):
        lower.append(os.dup(old[0]))
    os.close(lower.pop())
    events = loop.wait(0)
    assert len(events) == 2
    loop.dispatch(events)
    (number,) = numbers
    assert loop.watches(number)
    (own,) = {*old} - {number}
    loop.unregister(own)
    for fd in (own, *lower):
        os.close(fd)
    return number
