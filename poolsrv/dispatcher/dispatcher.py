"""The dispatcher: chooses a worker for each connection, passes them on, takes back what was not taken.

Everything here runs in the parent of the workers. It never blocks on a worker and never spins: a worker whose channel
is full is passed over, and when no worker of a listener has room, the listening socket is not polled until one has
(intake.py). Connections then wait in the kernel's queue.

The dispatcher knows exactly which connections each worker has: it sent them, and the worker reports what it has taken
and closed. So limits hold over the whole pool, ``least-connections`` is exact, and when a worker dies its channel
gives back what it had not taken.

A worker can be alive and yet take nothing: stopped by a signal, at its descriptor limit, busy or stuck in a plugin. In
the former cases what waits in its channel is taken back as soon as others can serve it; of a worker that only does not
answer, when another one has shown that it is idle (stalls.py). A connection that nobody can serve stays in the channel:
its worker may come back, and it costs no descriptor there.

What has been taken back and has no worker yet is homeless. Each listener has its own: the only worker of one may be
stuck while all the others' serve on.

What a worker says is checked before it changes anything (misfit.py): a plugin there may have forked, or written to the
channel. A worker whose report does not fit is condemned: it is heard no more, it is killed, and what had not been taken
goes to others, as after any other death.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Final

from ..config.model import has_limits, has_to_ask
from ..core.event_loop import EventLoop
from ..core.words import counted
from ..ipc.worker_channel import (
    LOST,
    MAX_ASKED_PER_REPORT,
    MAX_PER_MESSAGE,
    AcceptedConnection,
    BadReport,
    Question,
    Report,
)
from .acceptor import Acceptor
from .admission import RECENT, AdmissionControl, Refusal
from .listener import Listener
from .report_check import check
from .stalls import Stalls
from .worker_slot import CONDEMNED, DRAINING, EMPTY, FULL, SERVING, STALL_TIME, STARTING, WorkerSlot

log = logging.getLogger("poolsrv.dispatcher")

TAKEN_WHAT_IT_HAD_NOT: Final = "it has said that it had taken what it had not"
SEND_BLOCKED_PAUSE: Final = 0.02  # seconds without sending after the kernel has refused a message


class Dispatcher:
    """See the module's docstring.

    :param dispatch: ``"round-robin"`` or ``"least-connections"``.
    :param first_id: the number of the first connection.
    :ivar recent_refusals: the last connections that were refused, of all listeners, the latest last.
    :ivar is_asked: whether workers ask who is admitted.
    :ivar end_worker: called with the slot of a worker that is condemned, to kill it; its owner sets this.
    """

    def __init__(
        self, loop: EventLoop, listeners: list[Listener], slots: list[WorkerSlot], dispatch: str, first_id: int
    ) -> None:
        self._loop = loop
        self._listeners = listeners
        self._slots = list(slots)  # those of workers that leave are among them until they have ended
        self._choose = Listener.least_loaded if dispatch == "least-connections" else Listener.next_in_turn
        self._acceptor = Acceptor(loop, listeners, self._choose, self._assign, self._send_all, self.resume, first_id)
        self._closed = False
        self.end_worker: Callable[[WorkerSlot], object] = _end_nobody
        self._stalls = Stalls(loop, self._slots, listeners, reclaim=self._reclaim, move=self._move, resume=self.resume)
        self.recent_refusals: deque[Refusal] = deque(maxlen=RECENT)
        self._admissions: list[AdmissionControl] = []
        for listener in listeners:
            if has_limits(listener.config):
                listener.admission = AdmissionControl(
                    loop, listener, listener.config, self.recent_refusals, self.resume
                )
                self._admissions.append(listener.admission)
        self.is_asked = any(has_to_ask(listener.config) for listener in listeners)

    # --- who there is

    def add(self, slot: WorkerSlot) -> None:
        """There is one more worker."""
        self._slots.append(slot)
        for listener in self._listeners:
            if listener.is_for(slot):
                listener.slots.append(slot)

    def remove(self, slot: WorkerSlot) -> None:
        """The last worker gets nothing new; it is still heard."""
        for listener in self._listeners:
            if slot in listener.slots:
                listener.slots.remove(slot)

    def replace(self, slot: WorkerSlot, successor: WorkerSlot) -> None:
        """The worker gets nothing new; it is still heard. Another one is in its place."""
        self._slots.append(successor)
        for listener in self._listeners:
            if slot in listener.slots:
                listener.slots[slot.index] = successor

    def forget(self, slot: WorkerSlot) -> None:
        """The worker, which had been removed or replaced, has ended."""
        self._slots.remove(slot)

    def open_connections(self) -> int:
        """How many connections the workers have, or are to get."""
        return sum(len(slot.connections) for slot in self._slots)

    # --- accepting

    def open(self) -> None:
        """Begin to accept."""
        self._acceptor.open()

    def close(self) -> None:
        """Accept no more, before the workers are told to drain; the listening sockets are the caller's to close.

        A worker takes all that is in its channel before it drains. So whoever is homeless goes there now, to workers
        without room too.
        """
        if self._closed:
            return
        self._closed = True
        for admission in self._admissions:
            admission.close()
        self._acceptor.close()
        for listener in self._listeners:
            slots = [slot for slot in listener.slots if slot.state == SERVING]
            unassigned = [listener.unassigned.popleft() for _ in range(len(listener.unassigned))] if slots else []
            for number, handed in enumerate(unassigned):
                self._assign(slots[number % len(slots)], handed)
            self._send_all(slots)

    def abandon(self) -> None:
        """In a forked child: close its copies of accepted connections, or their clients would never see an end."""
        for listener in self._listeners:
            for handed in listener.unassigned:
                os.close(handed.fd)

    def _assign(self, slot: WorkerSlot, handed: AcceptedConnection) -> None:
        slot.assign(handed)
        self._listeners[handed.listener].given_to(slot)
        if len(slot.outbox) == MAX_PER_MESSAGE:
            self._send(slot)

    def _send_all(self, slots: list[WorkerSlot]) -> None:
        for slot in slots:
            if slot.outbox:
                self._send(slot)

    def _send(self, slot: WorkerSlot) -> None:
        """What is in the slot's outbox, as one message."""
        outbox, slot.outbox = slot.outbox, []
        assert slot.channel is not None
        if len(slot.waiting) == len(outbox):
            slot.waiting_since = self._loop.now
        try:
            sent = slot.channel.send(outbox)
        except OSError as error:
            self._requeue(slot, outbox)
            self._condemn(slot, f"its channel fails: {error.strerror}")
            self._loop.at_end_of_turn(self.resume)
            return
        if sent:
            slot.given += len(outbox)
            for handed in outbox:
                os.close(handed.fd)
            self._stalls.watch()
        else:
            if not any(other.send_blocked for other in self._slots):
                self._loop.call_later(SEND_BLOCKED_PAUSE, self._unblock_sending)
            slot.send_blocked = True
            self._requeue(slot, outbox)

    def _unblock_sending(self) -> None:
        for slot in self._slots:
            slot.send_blocked = False
        self.resume()

    def resume(self) -> None:
        """Something may have made room: house the homeless, and poll the listening sockets that can be served."""
        for listener in self._listeners:
            if listener.unassigned:
                self._reassign(listener)
            if listener.paused:
                self._acceptor.resume(listener)

    # --- connections without a worker

    def _reassign(self, listener: Listener) -> None:
        """Send connections that were taken back, or could not be sent, to workers that have room."""
        touched: list[WorkerSlot] = []
        while listener.unassigned and (slot := self._choose(listener)) is not None:
            touched.append(slot)
            self._assign(slot, listener.unassigned.popleft())
        self._send_all(touched)
        if self._closed and not any(slot.state == SERVING for slot in listener.slots):
            self._drop(listener)

    def _requeue(self, slot: WorkerSlot, connections: list[AcceptedConnection]) -> bool:
        """They are the dispatcher's again; False where one of them can't be, by what the worker has said."""
        fits = True
        for handed in connections:
            listener = self._listeners[handed.listener]
            fits = slot.waiting.pop(handed.id, None) is not None and fits
            if slot.connections.pop(handed.id, None) is None:
                listener.open += 1  # the worker has told its end, and had never taken it
            if handed.fd == LOST:
                log.error(
                    "%s: a connection was lost at the limit of open descriptors", listener.name, extra=listener.tags
                )
                listener.open -= 1
                self._uncount((handed.id,))
            else:
                listener.unassigned.append(handed)
        return fits

    def _reclaim(self, slot: WorkerSlot) -> int:
        """Whatever the worker has not taken; how many connections."""
        assert slot.channel is not None
        count, fits = 0, True
        while (connections := slot.channel.reclaim()) is not None:
            count += len(connections)
            fits = self._requeue(slot, connections) and fits
        if not fits and slot.pid:
            self._condemn(slot, TAKEN_WHAT_IT_HAD_NOT)
        return count

    def _move(self, slot: WorkerSlot, to: WorkerSlot) -> int:
        """What the worker has not taken goes to another, as far as that has room; how many connections."""
        assert slot.channel is not None
        count, fits = 0, True
        while to.has_room() and (connections := slot.channel.reclaim()) is not None:
            count += len(connections)
            fits = self._requeue(slot, connections) and fits
            for listener in self._listeners:
                while listener.unassigned and to in listener.slots and to.has_room():
                    self._assign(to, listener.unassigned.popleft())
        self._send_all([to])
        if not fits:
            self._condemn(slot, TAKEN_WHAT_IT_HAD_NOT)
        return count

    def unassigned(self) -> int:
        """Connections that are accepted and wait for a worker to have room."""
        return sum(len(listener.unassigned) for listener in self._listeners)

    def drop_unassigned(self) -> None:
        """The pool ends, and nobody is left who could serve them."""
        for listener in self._listeners:
            self._drop(listener)

    def _drop(self, listener: Listener) -> None:
        if listener.unassigned:
            count = len(listener.unassigned)
            lost = counted(count, "connection that no worker has taken is", "connections that no worker has taken are")
            log.warning("%s: %s closed", listener.name, lost, extra=listener.tags)
        while listener.unassigned:
            handed = listener.unassigned.popleft()
            os.close(handed.fd)
            listener.open -= 1
            self._uncount((handed.id,))

    def _uncount(self, connections: Iterable[int]) -> None:
        """These connections no longer count towards any source's limit."""
        for admission in self._admissions:
            admission.closed(connections)

    # --- what is heard of workers

    def on_report(self, slot: WorkerSlot) -> bool:
        """Read a report, where the worker has sent one; False where there is none, or it is not to be believed."""
        if slot.channel is None or slot.condemned:
            return False
        try:
            report = slot.channel.receive()
            if report is None:
                return False
            check(slot, report, self._listeners)
        except BadReport as error:
            self._condemn(slot, str(error))
            return False
        self._apply(slot, report)
        if slot.waiting and (slot.state == DRAINING or (slot.state == FULL and self._stalls.others_have_room(slot))):
            self._reclaim(slot)
        if slot.asked_at:
            self._stalls.heard(slot)
        self.resume()
        return True

    def _condemn(self, slot: WorkerSlot, why: str) -> None:
        """The worker is not to be believed: hear it no more, and have it killed. Its books are cleared at its end."""
        if slot.condemned:
            return
        slot.condemned = True
        if slot.state != STARTING:
            slot.state = CONDEMNED
        log.error(
            "worker %d (pid %d) is not to be believed, it is killed: %s",
            slot.index,
            slot.pid,
            why,
            extra={**slot.tags, "reason": why},
        )
        assert slot.channel is not None
        if self._loop.watches(slot.channel.fileno()):
            self._loop.unregister(slot.channel.fileno())
        self.end_worker(slot)

    def _apply(self, slot: WorkerSlot, report: Report) -> None:
        now = self._loop.now
        slot.last_heard = now
        if slot.stalled:
            self._stalls.back(slot)
        if report.taken:
            # A channel keeps its order: what is taken is the oldest.
            for number in list(islice(slot.waiting, report.taken)):
                del slot.waiting[number]
            slot.waiting_since = now
            if not slot.waiting:
                slot.patience = STALL_TIME
        if report.asked:
            self._answer(slot, report.asked)
        for number in report.closed:
            self._listeners[slot.connections.pop(number)].open -= 1
        if self._admissions:
            self._uncount(report.closed)
            slot.peer_known.difference_update(report.closed)
        if report.state is not None:
            slot.state = report.state
        if report.counters is not None:
            slot.counters = report.counters

    def _answer(self, slot: WorkerSlot, asked: Iterable[Question]) -> None:
        """Are these clients admitted? Before the report's closes are counted: one of these may be among them."""
        is_first = not slot.unanswered
        for number, peer in asked:
            refusal: str | None = "closed"  # its close has been told in an earlier report
            if number in slot.connections:
                admission = self._listeners[slot.connections[number]].admission
                slot.peer_known.add(number)
                refusal = admission.admit_client(number, peer) if admission is not None else None
            slot.unanswered.append((number, refusal))
        if is_first:
            self._send_answers(slot)

    def _send_answers(self, slot: WorkerSlot) -> None:
        while slot.unanswered and slot.channel is not None:
            try:
                sent = slot.channel.answer(slot.unanswered[:MAX_ASKED_PER_REPORT])
            except OSError as error:
                slot.unanswered.clear()
                self._condemn(slot, f"it takes no answers: {error.strerror}")
                return
            if not sent:
                self._loop.call_later(SEND_BLOCKED_PAUSE, partial(self._send_answers, slot))
                return
            del slot.unanswered[:MAX_ASKED_PER_REPORT]

    def worker_stopped(self, slot: WorkerSlot, stopped: bool) -> None:
        """A signal has stopped the worker, or has had it go on."""
        slot.stopped = stopped
        slot.last_heard = slot.waiting_since = self._loop.now
        if stopped and self._stalls.others_have_room(slot):
            self._reclaim(slot)
        self.resume()

    def worker_gone(self, slot: WorkerSlot) -> int:
        """The worker has ended, and all its reports are read: what it had not taken goes to others.

        :returns: how many connections were lost with it.
        """
        assert slot.channel is not None
        self._reclaim(slot)
        lost = len(slot.connections)
        for number in slot.connections.values():
            self._listeners[number].open -= 1
        self._uncount(slot.connections)
        if self._loop.watches(slot.channel.fileno()):
            self._loop.unregister(slot.channel.fileno())
        self._loop.at_end_of_turn(slot.channel.close)
        slot.channel = None
        slot.state = EMPTY
        slot.pid = 0
        slot.stalled = slot.is_told = slot.stopped = slot.send_blocked = slot.condemned = False
        slot.asked_at, slot.patience = 0.0, STALL_TIME
        slot.connections.clear()
        slot.peer_known.clear()
        slot.waiting.clear()
        slot.unanswered.clear()
        slot.counters = ()
        self.resume()
        return lost


def _end_nobody(slot: WorkerSlot) -> None:
    """Where a dispatcher has no processes."""
