"""Accepts in a worker, at the sockets that are its own (``dispatch = "kernel"``).

The dispatcher holds the same sockets (dispatcher/kernel_dispatch.py). It empties the queues of a worker that does not
accept: nothing is lost where this one stops. It begins when it has been granted ids for its connections, and so has
heard that its pool serves.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..config.model import has_to_ask
from ..core import forked_copies
from ..core.event_loop import READ, EventLoop
from ..ipc.worker_channel import MAX_PER_MESSAGE, Grant
from ..net.accepting import OF_THE_CONNECTION, Arrivals, close_with_reset
from ..net.access_list import AccessList, number_of
from ..net.addresses import client_name

if TYPE_CHECKING:
    from .descriptor_room import DescriptorRoom
    from .reporter import Reporter
    from .service import Service

log = logging.getLogger("poolsrv.worker")

_original: Final = forked_copies.original


class OwnSocket(NamedTuple):
    """A listening socket of a worker.

    :ivar number: among all such sockets of the pool, as reports name it.
    :ivar listener: the listener's number in the config.
    :ivar socket: non-blocking.
    """

    number: int
    listener: int
    socket: socket.socket


class KernelAcceptor:
    """Accepts at a worker's own sockets, if it has any.

    :param services: of all listeners.
    :param has_room: whether there are descriptors; otherwise it has seen to it that the worker takes none for a while.
    :param no_room: called with the reason if the system has none.
    :ivar sockets: the worker's; none once it is closed.
    :ivar accepted: connections since the worker's start.
    """

    def __init__(
        self,
        loop: EventLoop,
        services: Sequence[Service],
        reporter: Reporter,
        room: DescriptorRoom,
        *,
        has_room: Callable[[], bool],
        no_room: Callable[[str], object],
    ) -> None:
        self._loop = loop
        self.sockets: list[OwnSocket] = []
        self._services = services
        self._reporter = reporter
        self._room = room
        self._has_room = has_room
        self._no_room = no_room
        self._next = self._end = 0  # ids that are left
        self._grants: deque[Grant] = deque()  # those after them
        self._granted = 0  # the end of the last one
        self._polls = False
        self._paused = False
        self.accepted = 0

    # --- when it accepts

    def granted(self, grant: Grant) -> None:
        """Begin to accept, or go on, with these ids."""
        if grant.first < self._granted:
            return  # told twice
        self._grants.append(grant)
        self._granted = grant.end
        self._poll()

    def pause(self) -> None:
        """Accept no more, until ``resume``: there are no descriptors."""
        self._paused = True
        self._unpoll()

    def resume(self) -> None:
        """Accept again."""
        self._paused = False
        self._poll()

    def close(self) -> None:
        """Accept no more, for good: the dispatcher takes over what waits."""
        self._unpoll()
        for own in self.sockets:
            self._loop.at_end_of_turn(own.socket.close)
        self.sockets.clear()

    def close_inherited(self) -> None:
        """In a copy of the process: close the sockets."""
        for own in self.sockets:
            own.socket.close()
        self.sockets.clear()

    def _poll(self) -> None:
        if self._polls or self._paused or not (self._grants or self._next < self._end):
            return
        self._polls = True
        for own in self.sockets:
            config = self._services[own.listener].config
            access, asks = None, has_to_ask(config)
            if (config.allow or config.deny) and not asks:
                access = AccessList(config.allow, config.deny)
            take = own.socket._accept  # type: ignore[attr-defined]
            accept = partial(self._accept, own.number, own.listener, take, Arrivals(), access, asks)
            self._loop.register(own.socket.fileno(), READ, accept)

    def _unpoll(self) -> None:
        if self._polls:
            self._polls = False
            for own in self.sockets:
                self._loop.unregister(own.socket.fileno())

    # --- accepting

    def _accept(
        self,
        socket_number: int,
        listener: int,
        accept: Callable[[], tuple[int, Any]],
        arrivals: Arrivals,
        access: AccessList | None,
        asks: bool,
        mask: int,
    ) -> None:
        """Accept until the kernel's queue is empty, at most as many as a message of the dispatcher would bring.

        :param asks: whether a question about a connection may be reported while it is opened: after its accept.
        """
        if not _original[0]:
            forked_copies.end_if_copy("a listening socket")
        if not self._has_room():
            return
        now, reporter, serve = self._loop.now, self._reporter, self._services[listener].open
        alone = arrivals.expects_one(self._loop.turns)
        count, untold, fd = 0, 0, -1
        # The first one after a pause is reported before a plugin sees it: should it hang or die then, that is known.
        is_first = reporter.is_quiet()
        try:
            while True:
                number = self._next
                if number == self._end:
                    if not self._next_grant():
                        break
                    number = self._next
                try:
                    fd, peer = accept()
                except OSError as error:
                    if error.errno in OF_THE_CONNECTION:
                        continue
                    if error.errno != errno.EAGAIN:
                        self._failed(error)
                    break
                count += 1
                if access is not None and (reason := _refusal(access, peer)) is not None:
                    close_with_reset(fd, peer)
                    reporter.refused.append((socket_number, reason, client_name(peer)))
                else:
                    self._next = number + 1
                    if asks or is_first:
                        reporter.has_accepted(socket_number, 1)
                        self.accepted += 1
                        if is_first:
                            is_first = False
                            reporter.tell()
                    else:
                        untold += 1
                    serve(fd, number, peer, now)
                if alone or count == MAX_PER_MESSAGE or not self._polls:
                    break
        finally:
            if untold:
                reporter.has_accepted(socket_number, untold)
                self.accepted += untold
            if count:
                self._room.accepted(count, fd)
        if not alone:
            arrivals.found(count)

    def _next_grant(self) -> bool:
        if not self._grants:
            self._unpoll()  # until there are more
            return False
        self._next, self._end = self._grants.popleft()
        return True

    def _failed(self, error: OSError) -> None:
        """accept(2) has failed, and not because of a connection."""
        # EINVAL: it has been shut down. Its address is given up, and this worker will hear that it is to end.
        self._no_room("" if error.errno == errno.EINVAL else error.strerror or str(error))


def _refusal(access: AccessList, peer: Any) -> str | None:
    address = number_of(peer[0]) if type(peer) is tuple else None
    return access.refusal(*address) if address is not None else None
