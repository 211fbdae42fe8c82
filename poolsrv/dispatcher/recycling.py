"""Recycling: which workers are to be replaced because of their age in connections, or of their memory."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Final

from ..core import procfs
from ..ipc.worker_channel import SERVING
from .worker_slot import WorkerSlot

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
