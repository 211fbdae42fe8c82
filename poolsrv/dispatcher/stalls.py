"""Stalled workers: those that do not take what waits in their channel, and which other worker can help.

Theory. A worker in a long iteration looks the same as one that is stuck. What waits for it is best left there, for it
takes all of that in its next iteration, unless another worker will serve it sooner. Another busy worker will not:
connections would go to and fro between busy workers, and none would serve them. So a worker has to show that it is
idle. It is asked for a report, and when it has answered it is asked again at once. A worker that answers the second
time promptly has made two iterations within a moment, and gets what waits for the silent one.

That can still be wrong, for the worker may have begun a long iteration in between. So what has been moved stays where
it is for ``MOVED_FACTOR`` times as long before it may be moved again. Whatever the iterations take, no client waits for
more than about two of them.

A silent worker gets nothing new until it responds, while others have room.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

from ..core.event_loop import EventLoop, Timer
from ..core.words import counted
from ..ipc.worker_channel import SERVING
from .listener import Listener
from .worker_slot import CONDEMNED, STALL_TIME, WorkerSlot

log = logging.getLogger("poolsrv.dispatcher")

PROMPT: Final = 0.25  # seconds within which an idle worker answers
MOVED_FACTOR: Final = 4.0


class Stalls:
    """Watches for stalled workers; a part of the dispatcher.

    :param slots: the slots of all workers; the dispatcher changes the list.
    :param reclaim: called with a slot: gives what its worker has not taken to whichever worker has room.
    :param move: called with two slots: gives what the first one's worker has not taken to the second's, as far as that
        has room; returns the number of connections.
    :param resume: called when capacity may have freed up.
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
        self._timer: Timer | None = None

    def watch(self) -> None:
        """Look at the channels later, for something has been sent. The timer runs while anything waits in one."""
        if self._timer is None:
            self._timer = self._loop.call_later(STALL_TIME / 2, self._look)

    def others_have_room(self, slot: WorkerSlot) -> bool:
        """Tell whether another worker could take any of what waits for this one."""
        return any(other.has_room() for other in self._others(slot))

    def _others(self, slot: WorkerSlot) -> list[WorkerSlot]:
        numbers = set(slot.waiting.values())
        return [one for one in self._slots if one is not slot and any(one in self._listeners[n].slots for n in numbers)]

    def _look(self) -> None:
        self._timer = None
        now = self._loop.now
        for slot in self._slots:
            if not slot.waiting or slot.state == CONDEMNED:
                continue
            self.watch()
            if slot.state != SERVING or slot.stopped:
                if self.others_have_room(slot):
                    self._reclaim(slot)
            elif now - slot.waiting_since >= slot.stall_time:
                slot.stalled = True
                for other in self._others(slot):
                    if other.has_room() and not other.asked_at:
                        self._ask(other, again=False)
        self._resume()

    def _ask(self, slot: WorkerSlot, again: bool) -> None:
        slot.asked_at, slot.asked_again = self._loop.now, again
        if slot.channel is not None:
            slot.channel.ask()

    def answered(self, slot: WorkerSlot) -> None:
        """Learn that a worker has reported after it was asked."""
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
        by.stall_time = max(by.stall_time, slot.stall_time * MOVED_FACTOR)
        count = self._move(slot, by)
        if slot.channel is not None and not slot.condemned:
            slot.channel.ask()  # with its channel empty, nothing else would make it report
        if count:
            slot.stall_logged = True
            log.warning(
                "worker %s (pid %d) takes no connections: %s, and it gets no more until it responds",
                slot.label,
                slot.pid,
                counted(count, "goes to another", "go to others"),
                extra=slot.tags,
            )

    def responds(self, slot: WorkerSlot) -> None:
        """Learn that a stalled worker has reported."""
        slot.stalled = False
        if slot.stall_logged:
            slot.stall_logged = False
            log.info("worker %s (pid %d) responds again", slot.label, slot.pid, extra=slot.tags)
