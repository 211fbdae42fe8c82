"""Checks a worker's report against the dispatcher's records before it changes them.

What is checked here no honest worker reports: a connection closed twice, one that is another worker's, more taken than
was waiting. It happens where a plugin has forked the worker, so that two processes report over one channel, or where
the worker's memory is damaged. worker_channel.py has checked types and ranges before.
"""

from __future__ import annotations

import resource
from collections.abc import Sequence
from functools import cache
from itertools import islice
from typing import Final

from ..config.model import has_to_ask
from ..core.words import counted
from ..ipc.worker_channel import DRAINING, FULL, SERVING, Accepted, BadReport, Question, Refused, Report
from . import ledger
from .granted_ids import LARGEST_BLOCK
from .listener import Listener
from .worker_slot import STARTING, WorkerSlot

MOST_OPEN: Final = (
    1 << 20
)  # or its limit of descriptors; Linux gives a process no more by default (fs.nr_open, proc(5))
MAX_UNANSWERED: Final = 65536  # answers that a worker does not take


def check(slot: WorkerSlot, report: Report, listeners: Sequence[Listener]) -> None:
    """Check a report.

    :raises BadReport: it does not fit.
    """
    taken, closed, state, _, asked, metrics, _, accepted, refused = report
    if accepted or refused:
        _check_accepted(slot, accepted, refused, len(closed))
    waiting = slot.waiting
    if taken > len(waiting):
        raise BadReport(
            f"it reported {counted(taken, 'connection')} as taken, but"
            f" {counted(len(waiting), 'was', 'were')} waiting for it"
        )
    if closed:
        numbers = set(closed)
        if not numbers <= slot.connections.keys():
            unknown = numbers - slot.connections.keys() - _new(slot, accepted)
            if unknown:
                raise BadReport(f"it reported connection {min(unknown)} as closed, but has no such connection")
        if len(numbers) != len(closed):
            raise BadReport("it reported a connection as closed twice")
        if len(waiting) > taken:
            _check_not_waiting(slot, taken, closed)
    if state is not None:
        _check_state(slot.state, state)
    if asked:
        _check_questions(slot, taken, asked, listeners)
    if metrics is not None:
        ledger.check(slot, metrics)


def _check_accepted(slot: WorkerSlot, accepted: Sequence[Accepted], refused: Sequence[Refused], closed: int) -> None:
    """It can accept only at its own sockets, no more connections than it has been granted ids for, and hold no more
    than it can have."""
    for socket, *_ in (*accepted, *refused):
        if socket not in slot.own_sockets:
            raise BadReport(f"it accepts at socket {socket}, which is not its own")
    count = sum(count for _, count in accepted)
    if count > slot.granted.left:
        raise BadReport(f"it reported {counted(count, 'connection')} as accepted, but has ids for {slot.granted.left}")
    if len(slot.connections) + count - closed > most_open():
        raise BadReport(f"it reported more connections as open than it can have ({most_open()})")
    for _, reason, _ in refused:
        if reason not in ("allow", "deny"):
            raise BadReport(f"it refused a client for {reason[:40]!r}")


@cache
def most_open() -> int:
    """The connections of a worker that may be in the books: those that it can have, and those that it has closed and
    not reported yet, for a report has room for only some."""
    return max(resource.getrlimit(resource.RLIMIT_NOFILE)[0], MOST_OPEN) + 2 * LARGEST_BLOCK


def _new(slot: WorkerSlot, accepted: Sequence[Accepted]) -> set[int]:
    """The ids of the connections that it has accepted itself."""
    return {number for ids in slot.granted.next(sum(count for _, count in accepted)) for number in ids}


def _check_not_waiting(slot: WorkerSlot, taken: int, numbers: Sequence[int]) -> None:
    """A channel keeps its order, so the oldest of the waiting connections are those that have been taken."""
    left = set(islice(slot.waiting, taken, None)).intersection(numbers)
    if left:
        raise BadReport(f"its report names connection {min(left)}, which it has not taken yet")


def _check_state(before: str, state: str) -> None:
    if state not in (SERVING, FULL, DRAINING):
        raise BadReport(f"it reported an unknown state, {state[:40]!r}")
    if (before == STARTING and state != SERVING) or (before == DRAINING and state != DRAINING):
        raise BadReport(f"it reported the state {state!r} after {before!r}")


def _check_questions(slot: WorkerSlot, taken: int, asked: Sequence[Question], listeners: Sequence[Listener]) -> None:
    numbers = [number for number, _ in asked]
    _check_not_waiting(slot, taken, numbers)
    if len(set(numbers)) != len(numbers) or not slot.peer_known.isdisjoint(numbers):
        raise BadReport("it asked twice about a connection")
    for number in numbers:
        listener = slot.connections.get(number)  # it may ask about one that an earlier report has closed
        if listener is not None and not has_to_ask(listeners[listener].config):
            raise BadReport(f"it asked about connection {number}, whose client is known")
    if len(slot.unanswered) + len(numbers) > MAX_UNANSWERED:
        raise BadReport("it asks, and takes no answers")
