"""Accepts connections at the listening sockets while a worker has room for them.

If no worker of a listener has room, or if a limit makes clients wait, its sockets are not polled: the listener is
*paused*, and connections stay in the kernel's queue. The pause ends when the dispatcher finds that something has
changed.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final

from ..core.event_loop import READ, EventLoop
from ..ipc.worker_channel import AcceptedConnection
from ..net.accepting import OF_THE_CONNECTION
from .admission import AdmissionControl
from .dispatcher import Dispatcher
from .listener import Listener
from .worker_slot import WorkerSlot

log = logging.getLogger("poolsrv.dispatcher")

STARVED_PAUSE: Final = 0.5  # seconds without accepting after the system has run out of descriptors
MAX_ACCEPTS: Final = 256  # per event, where clients may be refused: the workers' room does not bound a flood of those


class Acceptor:
    """Accepts for all listeners of a pool, at the sockets that are not workers' (kernel_dispatch.py).

    :param first_id: the number of the first connection.
    :ivar last_id: the number of the latest connection.
    """

    def __init__(self, loop: EventLoop, dispatcher: Dispatcher, listeners: list[Listener], first_id: int) -> None:
        self.last_id = first_id - 1
        self._loop = loop
        self._dispatcher = dispatcher
        self._listeners = listeners
        self._retry_is_due = False
        self._starvation_logged = False

    def open(self) -> None:
        """Begin to accept."""
        for listener in self._listeners:
            listener.is_open = True
            for bound in listener.sockets:
                if bound.share is None:
                    if not bound.held.listens:
                        bound.socket.listen(listener.config.backlog)
                    self._loop.register(bound.socket.fileno(), READ, self.callback(listener, bound.socket))

    def close(self, listeners: Iterable[Listener] | None = None) -> None:
        """Stop accepting at these listeners; None: at all of them. The caller closes the sockets."""
        for listener in self._listeners if listeners is None else listeners:
            for bound in listener.sockets if listener.is_open else ():
                if bound.share is None:
                    self._loop.unregister(bound.socket.fileno())
            listener.is_open = False

    def callback(self, listener: Listener, listening_socket: socket.socket) -> Callable[[int], None]:
        """Return what is to be called when a listening socket is readable."""
        if listener.admission is None:
            return partial(self._accept, listener, listening_socket)
        return partial(self._accept_within_limits, listener, listener.admission, listening_socket)

    def allocate(self, count: int) -> int:
        """Reserve ids for connections.

        :returns: the first one.
        """
        first = self.last_id + 1
        self.last_id += count
        return first

    def _accept(self, listener: Listener, listening_socket: socket.socket, mask: int) -> None:
        """Accept until the kernel's queue is empty or no worker has room, then send."""
        counts, dispatcher, now = listener.counts, self._dispatcher, self._loop.now
        alone = listener.arrivals.expects_one(self._loop.turns)
        before = number = self.last_id
        assigned: list[WorkerSlot] = []
        try:
            while True:
                slot = None if listener.unassigned else listener.pick_worker()
                if slot is None:
                    listener.pause()
                    break
                try:
                    # accept() would make a socket object, which takes as long as the rest of this loop.
                    fd, peer = listening_socket._accept()  # type: ignore[attr-defined]
                except OSError as error:
                    if self._may_accept_after(error):
                        continue
                    break
                number += 1
                if not slot.outbox:
                    assigned.append(slot)
                dispatcher.assign(slot, listener, AcceptedConnection(fd, listener.number, number, peer, now))
                if alone:
                    break
        finally:
            self.last_id = number
            counts.open += number - before
            counts.accepted += number - before
        if not alone:
            listener.arrivals.found(number - before)
        dispatcher.flush(assigned)

    def _accept_within_limits(
        self, listener: Listener, admission: AdmissionControl, listening_socket: socket.socket, mask: int
    ) -> None:
        """Do the same where limits may make clients wait, or refuse them."""
        counts, dispatcher, now = listener.counts, self._dispatcher, self._loop.now
        alone = listener.arrivals.expects_one(self._loop.turns)
        before = self.last_id
        assigned: list[WorkerSlot] = []
        for _ in range(1 if alone else MAX_ACCEPTS):
            if (reason := admission.must_wait()) is not None:
                admission.waits(reason)
            slot = listener.pick_worker() if not (listener.unassigned or reason) else None
            if slot is None and not admission.is_full():
                listener.pause()
                break
            try:
                fd, peer = listening_socket._accept()  # type: ignore[attr-defined]
            except OSError as error:
                if self._may_accept_after(error):
                    continue
                break
            self.last_id += 1
            if not admission.admit(self.last_id, fd, peer):
                continue
            assert slot is not None
            counts.open += 1
            counts.accepted += 1
            if not slot.outbox:
                assigned.append(slot)
            dispatcher.assign(slot, listener, AcceptedConnection(fd, listener.number, self.last_id, peer, now))
        if not alone:
            listener.arrivals.found(self.last_id - before)
        dispatcher.flush(assigned)

    def _may_accept_after(self, error: OSError) -> bool:
        """Tell whether the kernel's queue may have more although accept(2) has failed."""
        if isinstance(error, BlockingIOError):
            self._starvation_logged = False
            return False
        if error.errno in OF_THE_CONNECTION:
            return True
        self._starve(error)
        return False

    def _starve(self, error: OSError) -> None:
        """Stop polling for a moment, for neither this process nor the system has descriptors left. Log it once."""
        for listener in self._listeners:
            if listener.is_open:
                listener.starved = True
                listener.pause()
        if not self._starvation_logged:
            self._starvation_logged = True
            log.warning("can't accept connections (%s): pausing", error.strerror, extra={"reason": error.strerror})
        if not self._retry_is_due:
            self._retry_is_due = True
            self._loop.call_later(STARVED_PAUSE, self._try_again)

    def _try_again(self) -> None:
        self._retry_is_due = False
        for listener in self._listeners:
            listener.starved = False
        self._dispatcher.resume()
