"""Workers that do not take what waits in their channel: who is stuck, who is only busy, and who can help.

Theory. A worker that is in the middle of a long turn looks the same as one that is stuck. What waits for it is best
left there, for it takes all of that when it comes round, unless another worker will serve it sooner. Another one that
is busy too will not: connections would go to and fro between busy workers, and be served by none. So a worker has to
show that it is idle. It is asked for a sign of life, and once it has given it asked again at once: who gives the second
one promptly has come round twice within a moment, and gets what waits for the one that is silent.

That can still be an error: the worker may have begun a long turn in between. So what has been moved stays where it is
for ``LONGER`` times as long before it may be moved once more. With turns of any length nobody waits for more than
about two of them.

A worker that is silent gets nothing new until it is heard of, while others have room.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from ..core.event_loop import EventLoop, Timer
from ..core.words import counted
from .listener import Listener
from .worker_slot import CONDEMNED, SERVING, STALL_TIME, WorkerSlot

log = logging.getLogger("poolsrv.dispatcher")

PROMPT: Final = 0.25  # seconds for a sign of life, from a worker that is idle
LONGER: Final = 4.0


class Stalls:
    """A part of the dispatcher.

    :param slots: all workers' slots; the dispatcher changes the list.
    :param reclaim: called with a slot: what its worker has not taken goes to whoever has room.
    :param move: called with two slots: what the first one's worker has not taken goes to the second's, as far as that
        has room; returns how many connections.
    :param resume: called when something may have got room.
    """

    def __init__(
        self,
        loop: EventLoop,
        slots: Sequence[WorkerSlot],
        listeners: Sequence[Listener],
        *,
        reclaim: Callable[[WorkerSlot], object],
        move: Callable[[WorkerSlot, WorkerSlot], int],
        resume: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._slots = slots
        self._listeners = listeners
        self._reclaim = reclaim
        self._move = move
        self._resume = resume
        self._check: Timer | None = None

    def watch(self) -> None:
        """Something has been sent: look at it later. Runs while anything waits in a channel."""
        if self._check is None:
            self._check = self._loop.call_later(STALL_TIME / 2, self._look)

    def others_have_room(self, slot: WorkerSlot) -> bool:
        """Whether another worker could take any of what waits for this one."""
        return any(other.has_room() for other in self._others(slot))

    def _others(self, slot: WorkerSlot) -> list[WorkerSlot]:
        numbers = set(slot.waiting.values())
        return [one for one in self._slots if one is not slot and any(one in self._listeners[n].slots for n in numbers)]

    def _look(self) -> None:
        self._check = None
        now = self._loop.now
        for slot in self._slots:
            if not slot.waiting or slot.state == CONDEMNED:
                continue
            self.watch()
            if slot.state != SERVING or slot.stopped:
                if self.others_have_room(slot):
                    self._reclaim(slot)
            elif now - slot.waiting_since >= slot.patience:
                slot.stalled = True
                for other in self._others(slot):
                    if other.has_room() and not other.asked_at:
                        self._ask(other, again=False)
        self._resume()

    def _ask(self, slot: WorkerSlot, again: bool) -> None:
        slot.asked_at, slot.asked_again = self._loop.now, again
        if slot.channel is not None:
            slot.channel.ask()

    def heard(self, slot: WorkerSlot) -> None:
        """A worker that was asked for a sign of life has given one."""
        prompt, again = self._loop.now - slot.asked_at <= PROMPT, slot.asked_again
        slot.asked_at = 0.0
        silent = [one for one in self._slots if one.stalled and one.waiting and slot in self._others(one)]
        if not silent or not slot.has_room():
            return
        if not (prompt and again):
            self._ask(slot, again=True)
            return
        for one in silent:
            self._relieve(one, slot)

    def _relieve(self, slot: WorkerSlot, by: WorkerSlot) -> None:
        by.patience = max(by.patience, slot.patience * LONGER)
        count = self._move(slot, by)
        if slot.channel is not None and not slot.condemned:
            slot.channel.ask()  # with its channel empty, nothing else would have it report
        if count:
            slot.is_told = True
            log.warning(
                "worker %d (pid %d) takes no connections: %s, and it gets no more until it is heard of",
                slot.index,
                slot.pid,
                counted(count, "goes to another", "go to others"),
                extra=slot.tags,
            )

    def back(self, slot: WorkerSlot) -> None:
        """A worker that was silent has been heard of."""
        slot.stalled = False
        if slot.is_told:
            slot.is_told = False
            log.info("worker %d (pid %d) is heard of again", slot.index, slot.pid, extra=slot.tags)
