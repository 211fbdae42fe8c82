"""Recycling: which workers are due."""

from __future__ import annotations

import os

from poolsrv.config.model import APART
from poolsrv.core import procfs
from poolsrv.dispatcher import recycling
from poolsrv.dispatcher.worker_slot import WorkerSlot
from poolsrv.ipc.worker_channel import DRAINING, SERVING
from poolsrv.testing.clock import ClockedLoop


def test_without_a_limit_no_number_of_connections_is_enough() -> None:
    assert recycling.connection_limit(0) == float("inf")


def test_limits_differ_so_that_workers_are_not_replaced_at_once() -> None:
    limits = {recycling.connection_limit(1000) for _ in range(50)}
    assert len(limits) > 1
    assert all(900 <= limit <= 1100 for limit in limits)


def test_a_serving_worker_above_the_memory_limit_is_found() -> None:
    slots = [WorkerSlot(0, state=DRAINING, pid=os.getpid()), WorkerSlot(1, state=SERVING, pid=os.getpid())]
    used = procfs.usage(os.getpid())
    assert used is not None
    found = recycling.largest_above(slots, used.memory // 2)
    assert found is not None
    assert found[0] is slots[1]
    assert found[1] > used.memory // 2


def test_below_the_memory_limit_there_is_none() -> None:
    assert recycling.largest_above([WorkerSlot(0, state=SERVING, pid=os.getpid())], 1 << 50) is None


def test_a_worker_that_has_just_ended_has_no_memory() -> None:
    assert recycling.largest_above([WorkerSlot(0, state=SERVING, pid=1 << 30)], 1) is None


def test_the_worker_apart_is_watched_too() -> None:
    loop, found = ClockedLoop(), list[WorkerSlot]()
    apart = [WorkerSlot(APART, state=SERVING, pid=os.getpid())]
    check = recycling.MemoryCheck(loop, ([WorkerSlot(0)], apart), 1, found.append)
    check.begin()
    for _ in range(2):
        loop.move_to(loop.now + recycling.MEMORY_CHECK_INTERVAL)
        loop.turn(0.0)
        assert found == apart
        found.clear()
        apart[0] = WorkerSlot(APART, state=SERVING, pid=os.getpid())  # its successor
    check.end()
    loop.close()
