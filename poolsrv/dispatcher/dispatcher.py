"""Assigns connections to workers, sends them, and reclaims what a worker did not take.

Theory. Everything here runs in the workers' parent. It never blocks on a worker and never spins. A worker whose channel
is full is passed over; when no worker of a listener has room, the listening sockets are not polled until one has
(acceptor.py). Connections then wait in the kernel's queue.

The dispatcher knows exactly which connections each worker has: it sent them, and the worker reports what it has taken
and closed. So limits hold over the whole pool, ``least-connections`` is exact, and when a worker dies its channel
gives back what it had not taken.

A worker can be alive and yet take nothing: stopped by a signal, at its descriptor limit, busy or stuck in a plugin. In
the first two cases the dispatcher reclaims what waits in the channel as soon as others can serve it. From a worker that
only does not respond, it reclaims once another worker has shown that it is idle (stalls.py). A connection that nobody
can serve stays in the channel: its worker may come back, and there the connection costs no descriptor. That holds while
the whole pool drains too.

A reclaimed connection without a worker is *unassigned*. Each listener has its own: the only worker of one listener may
be stuck while those of all others serve on. If the pool drains, it goes to a worker that drains; once all workers have
ended, it is closed.

What a worker reports is checked before it changes anything (report_check.py): a plugin there may have forked, or
written to the channel. A worker whose report does not fit the dispatcher's records is *condemned*: nothing more is read
from it, it is killed, and what it had not taken goes to others, as after any other death.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Final

from ..config.model import has_limits, has_to_ask
from ..core.event_loop import EventLoop
from ..core.words import counted
from ..ipc import figures
from ..ipc.runs import Run
from ..ipc.worker_channel import (
    DRAINING,
    FULL,
    LOST,
    MAX_PER_MESSAGE,
    SERVING,
    AcceptedConnection,
    BadReport,
    Report,
)
from .admission import RECENT, AdmissionControl, Refusal
from .admission_server import AdmissionServer
from .kernel_dispatch import KernelDispatch
from .ledger import Ledger
from .listener import Listener
from .report_check import check
from .stalls import Stalls
from .worker_slot import CONDEMNED, EMPTY, STALL_TIME, STARTING, WorkerSlot

log = logging.getLogger("poolsrv.dispatcher")

FALSE_TAKEN: Final = "it reported connections as taken that were still in its channel"
SEND_BLOCKED_PAUSE: Final = 0.02  # seconds without sending after the kernel has refused a message


class Dispatcher:
    """The connections of a pool, and its workers' channels.

    :ivar kernel: the sockets at which workers accept by themselves; None if there are none.
    :ivar ledger: what the pool has counted.
    :ivar recent_refusals: the last connections that were refused, of all listeners, the latest last.
    :ivar is_asked: whether workers ask about admission.
    :ivar on_runs: called with the records of program runs that a worker has reported.
    :ivar kill_worker: called with the slot of a condemned worker; the worker manager sets it.
    """

    def __init__(self, loop: EventLoop, listeners: list[Listener], slots: list[WorkerSlot]) -> None:
        self._loop = loop
        self._listeners = listeners
        self._slots = list(slots)  # those of leaving workers included, until these have ended
        self._closed: set[Listener] = set()
        self.kernel: KernelDispatch | None = None
        self.ledger = Ledger()
        self.kill_worker: Callable[[WorkerSlot], object] = _kill_nothing
        self.on_runs: Callable[[list[Run]], object] = list
        self._stalls = Stalls(
            loop, self._slots, listeners, reclaim=self._reclaim, move=self._move, resume=self._stalls_seen
        )
        self.recent_refusals: deque[Refusal] = deque(maxlen=RECENT)
        self._admissions: list[AdmissionControl] = []
        for listener in listeners:
            if has_limits(listener.config):
                listener.admission = AdmissionControl(
                    loop, listener.config, listener.counts, self.recent_refusals, self.resume
                )
                self._admissions.append(listener.admission)
        self._admission_server = AdmissionServer(loop, listeners, self._condemn)
        self.is_asked = any(has_to_ask(listener.config) for listener in listeners)

    # --- slots

    def add(self, slot: WorkerSlot) -> None:
        """Add a slot."""
        self._slots.append(slot)
        for listener in self._listeners:
            if listener.is_for(slot):
                listener.slots.append(slot)

    def remove(self, slot: WorkerSlot) -> None:
        """Give the last worker nothing new; its reports are still read."""
        for listener in self._listeners:
            if slot in listener.slots:
                listener.slots.remove(slot)
        self._changed(slot)

    def replace(self, slot: WorkerSlot, successor: WorkerSlot) -> None:
        """Put another slot in the place of this one; its worker gets nothing new, its reports are still read."""
        self._slots.append(successor)
        for listener in self._listeners:
            listener.replace(slot, successor)
        self._changed(slot)

    def forget(self, slot: WorkerSlot) -> None:
        """Forget a slot that was removed or replaced, and whose worker has ended."""
        self._slots.remove(slot)

    def open_connections(self) -> int:
        """Count the connections that workers have, or are about to get."""
        return sum(len(slot.connections) for slot in self._slots)

    def update_ledger(self) -> None:
        """Enter what the listeners count."""
        for listener in self._listeners:
            self.ledger.set(figures.ACCEPTED, listener.counts.accepted, listener=listener.name)
            for reason, count in listener.refusals.items():
                self.ledger.set(figures.REFUSED, count, listener=listener.name, reason=reason)

    # --- assigning and sending

    def assign(self, slot: WorkerSlot, listener: Listener, connection: AcceptedConnection) -> None:
        """Give a connection of this listener to a worker; ``flush`` sends it."""
        number, outbox = connection.id, slot.outbox
        slot.connections[number] = slot.waiting[number] = listener.number
        outbox.append(connection)
        listener.given_to(slot)
        if len(outbox) == MAX_PER_MESSAGE:
            self._send(slot)

    def flush(self, slots: Iterable[WorkerSlot]) -> None:
        """Send what has been assigned to these workers."""
        for slot in slots:
            if slot.outbox:
                self._send(slot)

    def _send(self, slot: WorkerSlot) -> None:
        """Send the slot's outbox as one message."""
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
            for connection in outbox:
                os.close(connection.fd)
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

    def _stalls_seen(self) -> None:
        """Workers may be stalled."""
        if self.kernel is not None:
            self.kernel.review()
        self.resume()

    def resume(self) -> None:
        """Assign waiting connections, then resume accepting, for capacity may have freed up."""
        for listener in self._listeners:
            if listener.unassigned:
                self._reassign(listener)
            if listener.counts.paused:
                listener.resume()

    def close(self, listeners: Iterable[Listener]) -> None:
        """Assign what these listeners have left, after the acceptor has closed and before the workers drain.

        A worker takes all that is in its channel before it drains. So unassigned connections go there now, even to
        workers without room.
        """
        for listener in listeners:
            if listener in self._closed:
                continue
            self._closed.add(listener)
            if listener.admission is not None:
                listener.admission.close()
            slots = [slot for slot in listener.slots if slot.state == SERVING]
            unassigned = [listener.unassigned.popleft() for _ in range(len(listener.unassigned))] if slots else []
            for number, connection in enumerate(unassigned):
                self.assign(slots[number % len(slots)], listener, connection)
            self.flush(slots)
            if listener.unassigned:
                self._reassign(listener)

    def close_inherited(self) -> None:
        """In a forked child: close its copies of accepted connections, or their clients would see no end of file."""
        for listener in self._listeners:
            for connection in listener.unassigned:
                os.close(connection.fd)

    # --- connections without a worker

    def unassigned(self) -> int:
        """Count the accepted connections for which no worker has room."""
        return sum(len(listener.unassigned) for listener in self._listeners)

    def drop_unassigned(self) -> None:
        """Close all unassigned connections, for the pool ends and no worker is left."""
        for listener in self._listeners:
            self._drop(listener)

    def _drop(self, listener: Listener) -> None:
        dropped = list(listener.unassigned)
        if dropped:
            listener.unassigned.clear()
            lost = counted(
                len(dropped), "connection that no worker has taken is", "connections that no worker has taken are"
            )
            log.warning("%s: %s closed", listener.name, lost, extra=listener.tags)
            for connection in dropped:
                os.close(connection.fd)
            listener_of = {connection.id: connection.listener for connection in dropped}
            self._count_closed(list(listener_of), listener_of)

    def _reassign(self, listener: Listener) -> None:
        """Send unassigned connections to workers that have room; if the pool drains, to workers that do."""
        assigned: list[WorkerSlot] = []
        is_closed = listener in self._closed
        while listener.unassigned and (slot := listener.pick_worker() or (is_closed and listener.pick_last())):
            assigned.append(slot)
            self.assign(slot, listener, listener.unassigned.popleft())
        self.flush(assigned)
        if is_closed and all(slot.state in (EMPTY, CONDEMNED) for slot in listener.slots):
            self._drop(listener)

    def _reclaim(self, slot: WorkerSlot) -> int:
        """Reclaim all that the worker has not taken.

        :returns: the number of connections.
        """
        assert slot.channel is not None
        count, fits = 0, True
        while (connections := slot.channel.reclaim()) is not None:
            count += len(connections)
            fits = self._requeue(slot, connections) and fits
        if not fits and slot.pid:
            self._condemn(slot, FALSE_TAKEN)
        return count

    def _move(self, slot: WorkerSlot, to: WorkerSlot) -> int:
        """Move what the worker has not taken to another one, as far as that has room.

        :returns: the number of connections.
        """
        assert slot.channel is not None
        count, fits = 0, True
        while to.has_room() and (connections := slot.channel.reclaim()) is not None:
            count += len(connections)
            fits = self._requeue(slot, connections) and fits
            for listener in self._listeners:
                while listener.unassigned and to in listener.slots and to.has_room():
                    self.assign(to, listener, listener.unassigned.popleft())
        self.flush([to])
        if not fits:
            self._condemn(slot, FALSE_TAKEN)
        return count

    def _requeue(self, slot: WorkerSlot, connections: list[AcceptedConnection]) -> bool:
        """Make them unassigned.

        :returns: False if the worker had reported one of them as taken or closed.
        """
        fits = True
        for connection in connections:
            listener = self._listeners[connection.listener]
            fits = slot.waiting.pop(connection.id, None) is not None and fits
            if slot.connections.pop(connection.id, None) is None:
                listener.counts.open += 1  # the worker had reported it as closed
            if connection.fd == LOST:
                log.error(
                    "%s: a connection was lost at the limit of open descriptors", listener.name, extra=listener.tags
                )
                self._count_closed([connection.id], {connection.id: connection.listener})
            else:
                listener.unassigned.append(connection)
        return fits

    def _count_closed(self, numbers: Sequence[int], listener_of: dict[int, int]) -> None:
        """Count connections as closed, and forget them.

        :param numbers: the ids of the connections.
        :param listener_of: by id, the number of the listener. The connections are removed from it.
        """
        listeners, forget = self._listeners, listener_of.pop
        for number in numbers:
            listeners[forget(number)].counts.open -= 1
        for admission in self._admissions:
            for number in numbers:
                admission.closed(number)

    # --- reports

    def on_report(self, slot: WorkerSlot) -> bool:
        """Read one report of a worker.

        :returns: False if there is none, or if it can't be trusted.
        """
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
        if slot.channel.grant_is_lost:
            self._changed(slot)
        if slot.waiting and self._is_to_give_back(slot):
            self._reclaim(slot)
        if slot.asked_at:
            self._stalls.answered(slot)
        self.resume()
        return True

    def _is_to_give_back(self, slot: WorkerSlot) -> bool:
        """Tell whether what waits for a worker is better off elsewhere: with others, or with its successor."""
        if slot.state == DRAINING and not self._closed:
            return True
        return slot.state in (DRAINING, FULL) and self._stalls.others_have_room(slot)

    def _condemn(self, slot: WorkerSlot, why: str) -> None:
        """Read nothing more from the worker, and have it killed. Its records are cleared when it has ended."""
        if slot.condemned:
            return
        slot.condemned = True
        if slot.state != STARTING:
            slot.state = CONDEMNED
            self._changed(slot)
        log.error(
            "worker %s (pid %d) can't be trusted, killing it: %s",
            slot.label,
            slot.pid,
            why,
            extra={**slot.tags, "reason": why},
        )
        self._unwatch(slot)
        self.kill_worker(slot)

    def _unwatch(self, slot: WorkerSlot) -> None:
        assert slot.channel is not None
        if self._loop.watches(slot.channel.fileno()):
            self._loop.unregister(slot.channel.fileno())

    def _apply(self, slot: WorkerSlot, report: Report) -> None:
        taken, closed, state, counters, asked, metrics, runs, accepted, refused = report
        slot.last_report_at = now = self._loop.now
        if slot.stalled:
            self._stalls.responds(slot)
            self._changed(slot)
        if self.kernel is not None and (accepted or refused):
            self.kernel.report(slot, accepted, refused)
        if taken:
            # A channel keeps its order: the oldest have been taken.
            waiting = slot.waiting
            if taken == len(waiting):
                waiting.clear()
                slot.stall_time = STALL_TIME
            else:
                for number in list(islice(waiting, taken)):
                    del waiting[number]
            slot.waiting_since = now
        if asked:
            self._admission_server.answer(slot, asked)
        if closed:
            self._count_closed(closed, slot.connections)
            if slot.peer_known:
                slot.peer_known.difference_update(closed)
        if state is not None:
            slot.state = state
            self._changed(slot)
        if counters is not None:
            slot.counters = counters
        if metrics is not None:
            self.ledger.take(slot, metrics)
        if runs:
            self.on_runs(runs)

    # --- what becomes of workers

    def worker_stopped(self, slot: WorkerSlot, stopped: bool) -> None:
        """Learn that a signal has stopped the worker, or continued it."""
        slot.stopped = stopped
        slot.last_report_at = slot.waiting_since = self._loop.now
        if stopped and self._stalls.others_have_room(slot):
            self._reclaim(slot)
        self._changed(slot)
        self.resume()

    def _changed(self, slot: WorkerSlot) -> None:
        """A worker may accept by itself from now on, or no longer."""
        if self.kernel is not None:
            self.kernel.changed(slot)

    def worker_ended(self, slot: WorkerSlot) -> int:
        """Give what a dead worker had not taken to others, once all its reports are read.

        :returns: the number of connections that were lost with it.
        """
        assert slot.channel is not None
        self._reclaim(slot)
        lost = len(slot.connections)
        self.ledger.add(figures.LOST, lost)
        self._count_closed(list(slot.connections), slot.connections)
        self._unwatch(slot)
        self._loop.at_end_of_turn(slot.channel.close)
        slot.clear()
        self._changed(slot)
        self.resume()
        return lost


def _kill_nothing(slot: WorkerSlot) -> None:
    """Stand in for the worker manager where there are no processes."""
