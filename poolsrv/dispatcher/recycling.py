"""Recycling: which workers are to be replaced because of their age in connections, or of their memory."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Final

from ..core import procfs
from ..core.event_loop import EventLoop, Timer
from ..ipc.worker_channel import SERVING
from .worker_slot import WorkerSlot

log = logging.getLogger("poolsrv.pool")

JITTER: Final = 0.1  # a part of recycle_after_connections, so that not all workers are replaced at once
MEMORY_CHECK_INTERVAL: Final = 2.0  # seconds


def connection_limit(recycle_after_connections: int) -> float:
    """Draw the number of connections after which one worker is replaced.

    :param recycle_after_connections: the config's value; 0 for no limit.
    """
    if not recycle_after_connections:
        return float("inf")
    drawn = int.from_bytes(os.urandom(4)) / 2**32  # without random, whose import takes 1 ms of each start
    return recycle_after_connections * (1 - JITTER + 2 * JITTER * drawn)


def largest_above(slots: Iterable[WorkerSlot], limit: int) -> tuple[WorkerSlot, int] | None:
    """Find the serving worker with the most memory, if that is above the limit; both in bytes."""
    used = [(procfs.usage(slot.pid), slot) for slot in slots if slot.state == SERVING]
    sizes = [(usage.memory, slot) for usage, slot in used if usage is not None]
    size, slot = max(sizes, key=lambda entry: entry[0], default=(0, None))
    return (slot, size) if slot is not None and size > limit else None


class MemoryCheck:
    """Recycles the largest worker above ``max_worker_memory``; one at a time.

    :param slots: those of the pool, and the one apart; as they are at each check.
    :param limit: bytes; 0: there is none.
    """

    def __init__(
        self,
        loop: EventLoop,
        slots: Sequence[Iterable[WorkerSlot]],
        limit: int,
        recycle: Callable[[WorkerSlot], object],
    ) -> None:
        self._loop = loop
        self._slots = slots
        self._limit = limit
        self._recycle = recycle
        self._timer: Timer | None = None

    def begin(self) -> None:
        """Begin to check."""
        if self._limit:
            self._timer = self._loop.call_later(MEMORY_CHECK_INTERVAL, self._check)

    def end(self) -> None:
        """Check no more."""
        if self._timer is not None:
            self._timer.cancel()

    def _check(self) -> None:
        self.begin()
        found = largest_above(chain.from_iterable(self._slots), self._limit)
        if found is not None:
            slot, size = found
            log.info(
                "worker %s (pid %d) has %d MiB of memory, more than max_worker_memory: recycling it",
                slot.label,
                slot.pid,
                size >> 20,
                extra={**slot.tags, "reason": "max_worker_memory"},
            )
            self._recycle(slot)
