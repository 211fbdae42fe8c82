"""Whether a report fits the dispatcher's books, before they are changed.

What is here is what no honest worker says: a connection closed twice, or one that is another's; more taken than was
waiting. A worker says it all the same where a plugin has forked it, so that two processes report over one channel, or
where its memory is no longer what it was. channel.py has seen to the types and the ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final

from ..config.model import has_to_ask
from ..core.words import counted
from ..ipc.worker_channel import BadReport, Report
from .worker_slot import DRAINING, FULL, SERVING, STARTING, WorkerSlot

if TYPE_CHECKING:
    from .listener import Listener


MOST_UNANSWERED: Final = 65536  # answers that a worker does not take


def check(slot: WorkerSlot, report: Report, listeners: Sequence[Listener]) -> None:
    """See that a worker's report can be.

    :raises BadReport: it can't.
    """
    taken, closed = report.taken, report.closed
    if taken > len(slot.waiting):
        raise BadReport(
            f"it says that it has taken {counted(taken, 'connection')}, and"
            f" {counted(len(slot.waiting), 'was', 'were')} waiting for it"
        )
    if closed:
        _check_closed(slot, taken, closed)
    if report.state is not None:
        _check_state(slot.state, report.state)
    if report.asked:
        _check_asked(slot, report, listeners)


def _check_closed(slot: WorkerSlot, taken: int, closed: Sequence[int]) -> None:
    for number in closed:
        if number not in slot.connections:
            raise BadReport(f"it says that connection {number} is closed, and has none of that number")
    if len(closed) > 1 and len(set(closed)) != len(closed):
        raise BadReport("it says twice that a connection is closed")
    if len(slot.waiting) > taken:
        _check_not_waiting(slot, taken, closed)


def _check_not_waiting(slot: WorkerSlot, taken: int, numbers: Sequence[int]) -> None:
    """A channel keeps its order, so that the oldest of those that wait are the ones that have been taken."""
    left = set(islice(slot.waiting, taken, None)).intersection(numbers)
    if left:
        raise BadReport(f"it speaks of connection {min(left)}, and has not taken it yet")


def _check_state(before: str, state: str) -> None:
    if state not in (SERVING, FULL, DRAINING):
        raise BadReport(f"it says that its state is {state[:40]!r}")
    if (before == STARTING and state != SERVING) or (before == DRAINING and state != DRAINING):
        raise BadReport(f"it says that its state is {state!r} after {before!r}")


def _check_asked(slot: WorkerSlot, report: Report, listeners: Sequence[Listener]) -> None:
    numbers = [number for number, _ in report.asked]
    _check_not_waiting(slot, report.taken, numbers)
    if len(set(numbers)) != len(numbers) or not slot.peer_known.isdisjoint(numbers):
        raise BadReport("it asks twice about a connection")
    for number in numbers:
        listener = slot.connections.get(number)  # of one whose close has been told it may have asked before
        if listener is not None and not has_to_ask(listeners[listener].config):
            raise BadReport(f"it asks about connection {number}, of whose client nothing is to be asked")
    if len(slot.unanswered) + len(numbers) > MOST_UNANSWERED:
        raise BadReport("it asks, and does not take the answers")
