"""Asks the dispatcher whether a client behind a proxy is admitted.

With the PROXY protocol, the dispatcher has accepted a connection of the proxy. Only the worker learns which client it
is for, and only the dispatcher knows what else that client has open. So the worker asks with its next report, and
serves the connection once it has the answer. Answers come through a socket of their own: a worker that takes no
connections at the moment still gets them.
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

    def begin(self) -> None:
        """Begin to receive answers."""
        self._loop.register(self._channel.answers_fileno(), READ, self._on_answers)

    def ask_admission(self, connection: Connection, admitted: Callable[[], object]) -> None:
        """Ask about a connection whose client is now known: ``peer``.

        :param admitted: called if it is, unless the connection is closed by then. If it is not, the connection is
            closed with a reset, and no plugin is told of it. A client on a unix socket is admitted at once: a path is
            no source.
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
            self._loop.unregister(self._channel.answers_fileno())  # and the worker ends
            return
        for number, refusal in answers:
            connection, admitted = self._waiting.pop(number)
            if connection._is_closed():
                continue
            if refusal is None:
                admitted()
            else:
                connection._refuse(refusal)
