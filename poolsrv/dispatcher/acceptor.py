"""The intake: accepts connections at the listening sockets, as long as there is a worker for them.

Where no worker of a listener has room, or a limit has whoever comes wait, its sockets are not polled: that is a gate's
*pause*, and connections stay in the kernel's queue. It ends when the dispatcher finds that something has changed.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable
from functools import partial
from typing import Final

from ..core.event_loop import READ, EventLoop
from ..ipc.worker_channel import AcceptedConnection
from .admission import AdmissionControl
from .listener import Listener
from .worker_slot import WorkerSlot

log = logging.getLogger("poolsrv.dispatcher")

STARVED_PAUSE: Final = 0.5  # seconds without accepting after the system has run out of descriptors
MAX_ACCEPTS: Final = 256  # in one turn, where some may be refused: the workers' room does not end a flood of those

# accept(2): these tell of the new connection, which is gone; EPERM is a firewall's.
_OF_THE_CONNECTION: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPROTO,
        errno.EPERM,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
    }
)


class Acceptor:
    """Of a whole pool; a part of its dispatcher.

    :param choose: the worker for the next connection of a gate; None: nobody has room.
    :param assign: called with that worker and the connection.
    :param send_all: called with those workers at the end of a turn.
    :param resume: called when the system may have descriptors again.
    :param first_id: the number of the first connection.
    """

    def __init__(
        self,
        loop: EventLoop,
        listeners: list[Listener],
        choose: Callable[[Listener], WorkerSlot | None],
        assign: Callable[[WorkerSlot, AcceptedConnection], object],
        send_all: Callable[[list[WorkerSlot]], object],
        resume: Callable[[], object],
        first_id: int,
    ) -> None:
        self.last_id = first_id - 1
        self._loop = loop
        self._listeners = listeners
        self._choose = choose
        self._assign = assign
        self._send_all = send_all
        self._resume = resume
        self._is_open = False
        self._starved = False
        self._starvation_told = False

    def open(self) -> None:
        """Begin to accept."""
        self._is_open = True
        for listener in self._listeners:
            for bound in listener.sockets:
                if listener.admission is None:
                    accept = partial(self._accept_all, listener, bound.socket)
                else:
                    accept = partial(self._accept_within_limits, listener, listener.admission, bound.socket)
                self._loop.register(bound.socket.fileno(), READ, accept)

    def close(self) -> None:
        """Accept no more; the sockets are the caller's to close."""
        for listener in self._listeners:
            for bound in listener.sockets if self._is_open else ():
                self._loop.unregister(bound.socket.fileno())
        self._is_open = False

    def resume(self, listener: Listener) -> None:
        """Poll the sockets of a gate again, if whoever comes can be served."""
        if (
            self._is_open
            and not (listener.unassigned or self._starved or listener.must_wait())
            and any(slot.has_room() for slot in listener.slots)
        ):
            listener.paused = False
            for bound in listener.sockets:
                self._loop.modify(bound.socket.fileno(), READ)

    def _accept_all(self, listener: Listener, listening_socket: socket.socket, mask: int) -> None:
        """Accept until the kernel's queue is empty or no worker has room, and send them off."""
        choose, assign = self._choose, self._assign
        alone = listener.expects_one(self._loop.turns)
        before = self.last_id
        touched: list[WorkerSlot] = []
        while True:
            slot = choose(listener) if not listener.unassigned else None
            if slot is None:
                self._pause(listener)
                break
            try:
                # accept() would make a socket object, which takes as long as all the rest of this loop.
                accepted, peer = listening_socket._accept()  # type: ignore[attr-defined]
            except OSError as error:
                if self._may_accept_after(error):
                    continue
                break
            self.last_id += 1
            listener.open += 1
            listener.accepted += 1
            if not slot.outbox:
                touched.append(slot)
            assign(slot, AcceptedConnection(accepted, listener.number, self.last_id, peer))
            if alone:
                break
        if not alone:
            listener.found(self.last_id - before)
        self._send_all(touched)

    def _accept_within_limits(
        self, listener: Listener, admission: AdmissionControl, listening_socket: socket.socket, mask: int
    ) -> None:
        """The same, where limits may have whoever comes wait or be refused."""
        choose, assign = self._choose, self._assign
        alone = listener.expects_one(self._loop.turns)
        before = self.last_id
        touched: list[WorkerSlot] = []
        for _ in range(1 if alone else MAX_ACCEPTS):
            if (reason := admission.must_wait()) is not None:
                admission.waits(reason)
            slot = choose(listener) if not (listener.unassigned or reason) else None
            if slot is None and not admission.is_full():
                self._pause(listener)
                break
            try:
                accepted, peer = listening_socket._accept()  # type: ignore[attr-defined]
            except OSError as error:
                if self._may_accept_after(error):
                    continue
                break
            self.last_id += 1
            if not admission.admit(self.last_id, accepted, peer):
                continue
            assert slot is not None
            listener.open += 1
            listener.accepted += 1
            if not slot.outbox:
                touched.append(slot)
            assign(slot, AcceptedConnection(accepted, listener.number, self.last_id, peer))
        if not alone:
            listener.found(self.last_id - before)
        self._send_all(touched)

    def _may_accept_after(self, error: OSError) -> bool:
        """Whether there may be more in the kernel's queue, although accept(2) has failed."""
        if isinstance(error, BlockingIOError):
            self._starvation_told = False
            return False
        if error.errno in _OF_THE_CONNECTION:
            return True
        self._starve(error)
        return False

    def _pause(self, listener: Listener) -> None:
        if not listener.paused:
            listener.paused = True
            for bound in listener.sockets:
                self._loop.modify(bound.socket.fileno(), 0)

    def _starve(self, error: OSError) -> None:
        """No descriptors left, here or in the system: stop polling for a moment, say so once."""
        for listener in self._listeners:
            self._pause(listener)
        if not self._starvation_told:
            self._starvation_told = True
            log.warning("can't accept connections (%s): pausing", error.strerror, extra={"reason": error.strerror})
        if not self._starved:
            self._starved = True
            self._loop.call_later(STARVED_PAUSE, self._try_again)

    def _try_again(self) -> None:
        self._starved = False
        self._resume()
