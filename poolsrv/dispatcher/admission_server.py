"""Answers workers that ask whether a client is admitted; worker/admission_client.py is the other side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from ..core.event_loop import EventLoop
from ..ipc.worker_channel import MAX_ASKED_PER_REPORT, Question
from .listener import Listener
from .worker_slot import WorkerSlot

RETRY_DELAY: Final = 0.02  # seconds after the kernel has refused a message


class AdmissionServer:
    """A part of the dispatcher.

    :param condemn: called with the slot of a worker that can't be answered, and the reason.
    """

    def __init__(
        self, loop: EventLoop, listeners: Sequence[Listener], condemn: Callable[[WorkerSlot, str], object]
    ) -> None:
        self._loop = loop
        self._listeners = listeners
        self._condemn = condemn

    def answer(self, slot: WorkerSlot, questions: Iterable[Question]) -> None:
        """Answer the questions of a report, before its closed connections are counted: it may ask about one of these.

        :param questions: checked; see report_check.py.
        """
        is_first = not slot.unanswered
        for number, peer in questions:
            refusal: str | None = "closed"  # as an earlier report says
            if number in slot.connections:
                admission = self._listeners[slot.connections[number]].admission
                slot.peer_known.add(number)
                refusal = admission.admit_client(number, peer) if admission is not None else None
            slot.unanswered.append((number, refusal))
        if is_first:
            self._send(slot)

    def _send(self, slot: WorkerSlot) -> None:
        while slot.unanswered and slot.channel is not None:
            try:
                sent = slot.channel.answer(slot.unanswered[:MAX_ASKED_PER_REPORT])
            except OSError as error:
                slot.unanswered.clear()
                self._condemn(slot, f"it takes no answers: {error.strerror}")
                return
            if not sent:
                self._loop.call_later(RETRY_DELAY, partial(self._send, slot))
                return
            del slot.unanswered[:MAX_ASKED_PER_REPORT]
