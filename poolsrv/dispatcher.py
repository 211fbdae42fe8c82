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

from .admission import RECENT, Admission, Refusal, has_limits, has_to_ask
from .channel import LOST, MAX_ASKED_PER_REPORT, MAX_PER_MESSAGE, BadReport, Handed, Question, Report
from .eventloop import EventLoop
from .intake import Intake
from .misfit import check
from .slots import CONDEMNED, DRAINING, EMPTY, FULL, SERVING, STALL_TIME, STARTING, Gate, Slot
from .stalls import Stalls
from .text import counted

log = logging.getLogger("poolsrv.dispatcher")

TAKEN_WHAT_IT_HAD_NOT: Final = "it has said that it had taken what it had not"
CHOKED_PAUSE: Final = 0.02  # seconds without sending after the kernel has refused a message


class Dispatcher:
    """See the module's docstring.

    :param dispatch: ``"round-robin"`` or ``"least-connections"``.
    :param first_id: the number of the first connection.
    :ivar recent_refusals: the last connections that were refused, of all listeners, the latest last.
    :ivar is_asked: whether workers ask who is admitted.
    :ivar end_worker: called with the slot of a worker that is condemned, to kill it; its owner sets this.
    """

    def __init__(self, loop: EventLoop, gates: list[Gate], slots: list[Slot], dispatch: str, first_id: int) -> None:
        self._loop = loop
        self._gates = gates
        self._slots = list(slots)  # those of workers that leave are among them until they have ended
        self._choose = Gate.least_loaded if dispatch == "least-connections" else Gate.next_in_turn
        self._intake = Intake(loop, gates, self._choose, self._assign, self._send_all, self.resume, first_id)
        self._closed = False
        self.end_worker: Callable[[Slot], object] = _end_nobody
        self._stalls = Stalls(loop, self._slots, gates, take_back=self._take_back, move=self._move, resume=self.resume)
        self.recent_refusals: deque[Refusal] = deque(maxlen=RECENT)
        self._admissions: list[Admission] = []
        for gate in gates:
            if has_limits(gate.config):
                gate.admission = Admission(loop, gate, gate.config, self.recent_refusals, self.resume)
                self._admissions.append(gate.admission)
        self.is_asked = any(has_to_ask(gate.config) for gate in gates)

    # --- who there is

    def add(self, slot: Slot) -> None:
        """There is one more worker."""
        self._slots.append(slot)
        for gate in self._gates:
            if gate.is_for(slot):
                gate.slots.append(slot)

    def remove(self, slot: Slot) -> None:
        """The last worker gets nothing new; it is still heard."""
        for gate in self._gates:
            if slot in gate.slots:
                gate.slots.remove(slot)

    def replace(self, slot: Slot, successor: Slot) -> None:
        """The worker gets nothing new; it is still heard. Another one is in its place."""
        self._slots.append(successor)
        for gate in self._gates:
            if slot in gate.slots:
                gate.slots[slot.index] = successor

    def forget(self, slot: Slot) -> None:
        """The worker, which had been removed or replaced, has ended."""
        self._slots.remove(slot)

    def open_connections(self) -> int:
        """How many connections the workers have, or are to get."""
        return sum(len(slot.connections) for slot in self._slots)

    # --- accepting

    def open(self) -> None:
        """Begin to accept."""
        self._intake.open()

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
        self._intake.close()
        for gate in self._gates:
            slots = [slot for slot in gate.slots if slot.state == SERVING]
            homeless = [gate.homeless.popleft() for _ in range(len(gate.homeless))] if slots else []
            for number, handed in enumerate(homeless):
                self._assign(slots[number % len(slots)], handed)
            self._send_all(slots)

    def abandon(self) -> None:
        """In a forked child: close its copies of accepted connections, or their clients would never see an end."""
        for gate in self._gates:
            for handed in gate.homeless:
                os.close(handed.fd)

    def _assign(self, slot: Slot, handed: Handed) -> None:
        slot.assign(handed)
        self._gates[handed.listener].given_to(slot)
        if len(slot.outbox) == MAX_PER_MESSAGE:
            self._send(slot)

    def _send_all(self, slots: list[Slot]) -> None:
        for slot in slots:
            if slot.outbox:
                self._send(slot)

    def _send(self, slot: Slot) -> None:
        """What is in the slot's outbox, as one message."""
        outbox, slot.outbox = slot.outbox, []
        assert slot.channel is not None
        if len(slot.waiting) == len(outbox):
            slot.waiting_since = self._loop.now
        try:
            sent = slot.channel.send(outbox)
        except OSError as error:
            self._shelter(slot, outbox)
            self._condemn(slot, f"its channel fails: {error.strerror}")
            self._loop.at_end_of_turn(self.resume)
            return
        if sent:
            slot.given += len(outbox)
            for handed in outbox:
                os.close(handed.fd)
            self._stalls.watch()
        else:
            if not any(other.choked for other in self._slots):
                self._loop.call_later(CHOKED_PAUSE, self._unchoke)
            slot.choked = True
            self._shelter(slot, outbox)

    def _unchoke(self) -> None:
        for slot in self._slots:
            slot.choked = False
        self.resume()

    def resume(self) -> None:
        """Something may have made room: house the homeless, and poll the listening sockets that can be served."""
        for gate in self._gates:
            if gate.homeless:
                self._house(gate)
            if gate.paused:
                self._intake.resume(gate)

    # --- connections without a worker

    def _house(self, gate: Gate) -> None:
        """Send connections that were taken back, or could not be sent, to workers that have room."""
        touched: list[Slot] = []
        while gate.homeless and (slot := self._choose(gate)) is not None:
            touched.append(slot)
            self._assign(slot, gate.homeless.popleft())
        self._send_all(touched)
        if self._closed and not any(slot.state == SERVING for slot in gate.slots):
            self._give_up(gate)

    def _shelter(self, slot: Slot, connections: list[Handed]) -> bool:
        """They are the dispatcher's again; False where one of them can't be, by what the worker has said."""
        fits = True
        for handed in connections:
            gate = self._gates[handed.listener]
            fits = slot.waiting.pop(handed.id, None) is not None and fits
            if slot.connections.pop(handed.id, None) is None:
                gate.open += 1  # the worker has told its end, and had never taken it
            if handed.fd == LOST:
                log.error("%s: a connection was lost at the limit of open descriptors", gate.name, extra=gate.tags)
                gate.open -= 1
                self._uncount((handed.id,))
            else:
                gate.homeless.append(handed)
        return fits

    def _take_back(self, slot: Slot) -> int:
        """Whatever the worker has not taken; how many connections."""
        assert slot.channel is not None
        count, fits = 0, True
        while (connections := slot.channel.take_back()) is not None:
            count += len(connections)
            fits = self._shelter(slot, connections) and fits
        if not fits and slot.pid:
            self._condemn(slot, TAKEN_WHAT_IT_HAD_NOT)
        return count

    def _move(self, slot: Slot, to: Slot) -> int:
        """What the worker has not taken goes to another, as far as that has room; how many connections."""
        assert slot.channel is not None
        count, fits = 0, True
        while to.has_room() and (connections := slot.channel.take_back()) is not None:
            count += len(connections)
            fits = self._shelter(slot, connections) and fits
            for gate in self._gates:
                while gate.homeless and to in gate.slots and to.has_room():
                    self._assign(to, gate.homeless.popleft())
        self._send_all([to])
        if not fits:
            self._condemn(slot, TAKEN_WHAT_IT_HAD_NOT)
        return count

    def homeless(self) -> int:
        """Connections that are accepted and wait for a worker to have room."""
        return sum(len(gate.homeless) for gate in self._gates)

    def give_up_homeless(self) -> None:
        """The pool ends, and nobody is left who could serve them."""
        for gate in self._gates:
            self._give_up(gate)

    def _give_up(self, gate: Gate) -> None:
        if gate.homeless:
            count = len(gate.homeless)
            lost = counted(count, "connection that no worker has taken is", "connections that no worker has taken are")
            log.warning("%s: %s closed", gate.name, lost, extra=gate.tags)
        while gate.homeless:
            handed = gate.homeless.popleft()
            os.close(handed.fd)
            gate.open -= 1
            self._uncount((handed.id,))

    def _uncount(self, connections: Iterable[int]) -> None:
        """These connections no longer count towards any source's limit."""
        for admission in self._admissions:
            admission.closed(connections)

    # --- what is heard of workers

    def on_report(self, slot: Slot) -> bool:
        """Read a report, where the worker has sent one; False where there is none, or it is not to be believed."""
        if slot.channel is None or slot.condemned:
            return False
        try:
            report = slot.channel.receive()
            if report is None:
                return False
            check(slot, report, self._gates)
        except BadReport as error:
            self._condemn(slot, str(error))
            return False
        self._apply(slot, report)
        if slot.waiting and (slot.state == DRAINING or (slot.state == FULL and self._stalls.others_have_room(slot))):
            self._take_back(slot)
        if slot.asked_at:
            self._stalls.heard(slot)
        self.resume()
        return True

    def _condemn(self, slot: Slot, why: str) -> None:
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

    def _apply(self, slot: Slot, report: Report) -> None:
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
            self._gates[slot.connections.pop(number)].open -= 1
        if self._admissions:
            self._uncount(report.closed)
            slot.identified.difference_update(report.closed)
        if report.state is not None:
            slot.state = report.state
        if report.counters is not None:
            slot.counters = report.counters

    def _answer(self, slot: Slot, asked: Iterable[Question]) -> None:
        """Are these clients admitted? Before the report's closes are counted: one of these may be among them."""
        is_first = not slot.unanswered
        for number, peer in asked:
            refusal: str | None = "closed"  # its close has been told in an earlier report
            if number in slot.connections:
                admission = self._gates[slot.connections[number]].admission
                slot.identified.add(number)
                refusal = admission.admit_client(number, peer) if admission is not None else None
            slot.unanswered.append((number, refusal))
        if is_first:
            self._send_answers(slot)

    def _send_answers(self, slot: Slot) -> None:
        while slot.unanswered and slot.channel is not None:
            try:
                sent = slot.channel.answer(slot.unanswered[:MAX_ASKED_PER_REPORT])
            except OSError as error:
                slot.unanswered.clear()
                self._condemn(slot, f"it takes no answers: {error.strerror}")
                return
            if not sent:
                self._loop.call_later(CHOKED_PAUSE, partial(self._send_answers, slot))
                return
            del slot.unanswered[:MAX_ASKED_PER_REPORT]

    def worker_stopped(self, slot: Slot, stopped: bool) -> None:
        """A signal has stopped the worker, or has had it go on."""
        slot.stopped = stopped
        slot.last_heard = slot.waiting_since = self._loop.now
        if stopped and self._stalls.others_have_room(slot):
            self._take_back(slot)
        self.resume()

    def worker_gone(self, slot: Slot) -> int:
        """The worker has ended, and all its reports are read: what it had not taken goes to others.

        :returns: how many connections were lost with it.
        """
        assert slot.channel is not None
        self._take_back(slot)
        lost = len(slot.connections)
        for number in slot.connections.values():
            self._gates[number].open -= 1
        self._uncount(slot.connections)
        if self._loop.watches(slot.channel.fileno()):
            self._loop.unregister(slot.channel.fileno())
        self._loop.at_end_of_turn(slot.channel.close)
        slot.channel = None
        slot.state = EMPTY
        slot.pid = 0
        slot.stalled = slot.is_told = slot.stopped = slot.choked = slot.condemned = False
        slot.asked_at, slot.patience = 0.0, STALL_TIME
        slot.connections.clear()
        slot.identified.clear()
        slot.waiting.clear()
        slot.unanswered.clear()
        slot.counters = ()
        self.resume()
        return lost


def _end_nobody(slot: Slot) -> None:
    """Where a dispatcher has no processes."""
