"""A worker's questions to the dispatcher: is the client admitted that a proxy speaks for?

Behind a proxy that says who its client is (the PROXY protocol), the dispatcher has accepted a connection of the proxy.
Only the worker learns whose it really is, and only the dispatcher knows what else that client has open. So the worker
asks, with its next report, and begins with the connection once the answer is there. Answers come by a socket of their
own: a worker that takes no connections for the moment still gets them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core.event_loop import READ, EventLoop
from ..ipc.worker_channel import WorkerEnd
from .reporter import Reporter

if TYPE_CHECKING:
    from .connection import Connection


class AdmissionClient:
    """Runs in the worker."""

    def __init__(self, loop: EventLoop, channel: WorkerEnd, reporter: Reporter) -> None:
        self._loop = loop
        self._channel = channel
        self._reporter = reporter
        self._waiting: dict[int, tuple[Connection, Callable[[], object]]] = {}
        loop.register(channel.answers_fileno(), READ, self._on_answers)

    def ask_admission(self, connection: Connection, admitted: Callable[[], object]) -> None:
        """Ask about a connection whose client is now known: ``peer``.

        :param admitted: called if it is, unless the connection is closed by then. If it is not, it is closed, with a
            reset, and no plugin hears of it. A unix socket's path is no source: it is admitted at once.
        """
        if connection.peer[0].startswith("unix:"):
            admitted()
            return
        self._waiting[connection.id] = (connection, admitted)
        if not self._reporter.asked:
            self._loop.at_end_of_turn(self._reporter.tell)
        self._reporter.asked.append((connection.id, connection.peer))

    def _on_answers(self, mask: int) -> None:
        try:
            answers = self._channel.receive_answers()
        except EOFError:
            self._loop.unregister(self._channel.answers_fileno())  # the worker hears of it too, and ends
            return
        for number, refusal in answers:
            connection, admitted = self._waiting.pop(number)
            if connection._is_closed():
                continue
            if refusal is None:
                admitted()
            else:
                connection._refuse(refusal)
