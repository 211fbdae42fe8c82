"""How connections come into a worker: from its channel and from its own sockets, while it has descriptors for them.

``Intake._take`` receives connections from the dispatcher, and ``Service.open`` makes a ``Connection`` of each.

A worker that has no room (descriptor_room.py) says so and takes nothing, until it has some again. If plugins hold the
descriptors, room may never come back: such a worker *gives way*, which is to drain.

A worker that drains takes what is in its channel, and nothing after it: others or its successor serve that. But if the
whole pool drains, nobody else can serve what this worker had no room for, or what another one has left behind at its
death. Then the dispatcher says so (``DRAIN_POOL_SIGNAL``), and a worker takes such connections until it ends.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from ..core import forked_copies
from ..core.event_loop import HANGUP, READ, EventLoop
from ..core.throttle import Throttle
from ..ipc.worker_channel import DRAINING, FULL, LOST, SERVING, AcceptedConnection, WorkerEnd
from .descriptor_room import DescriptorRoom, descriptor_limit
from .kernel_acceptor import KernelAcceptor
from .reporter import Reporter
from .service import Service

log = logging.getLogger("poolsrv.worker")
RECOUNT_AFTER: Final = 0.1  # seconds until descriptors are counted again while there is no room
FULL_LOG_INTERVAL: Final = 10.0  # seconds; at the limit, room comes and goes with each connection
LONG_TURN: Final = 0.05  # seconds

_original: Final = forked_copies.original


class Intake:
    """Takes the connections of one worker.

    :param give_way: called once, when plugins hold the descriptors; it has the worker drain.
    :param gone: called when the dispatcher has ended; it stops this.
    :ivar acceptor: accepts at the worker's own sockets.
    :ivar accepted: connections that have come through the channel.
    """

    def __init__(
        self,
        loop: EventLoop,
        channel: WorkerEnd,
        services: Sequence[Service],
        reporter: Reporter,
        room: DescriptorRoom,
        *,
        give_way: Callable[[], object],
        gone: Callable[[], object],
    ) -> None:
        self._loop = loop
        self._channel = channel
        self._services = services
        self._reporter = reporter
        self._room = room
        self._drain_worker = give_way
        self._gone = gone
        no_room = self._system_has_no_room
        self.acceptor = KernelAcceptor(loop, services, reporter, room, has_room=self._has_room, no_room=no_room)
        self.accepted = 0
        self._taking = True
        self._gives_way = False
        self._draining = False
        self._stopped = False
        self._reads = True  # the channel, while there is room
        self._received_in = -1  # the iteration of the loop, and when, in seconds of its clock
        self._received_at = 0.0
        self._full_message = Throttle(FULL_LOG_INTERVAL)

    # --- its life

    def drain(self) -> None:
        """Take what is in the channel, as far as there is room, and nothing after it."""
        self.acceptor.close()
        while not self._gives_way and self.take_rest():
            pass
        self._draining = True
        self._close_channel()

    def take_late(self) -> None:
        """Take connections again after ``drain``, for nobody else does."""
        if not self._stopped:
            self._reads = True
            if self._taking:
                self._loop.modify(self._channel.fileno(), READ)
            else:
                self._look_for_room()

    def take_rest(self) -> bool:
        """Take more of what is in the channel, if there is room; False where nothing was taken."""
        return self._reads and self._has_room() and self._take()

    def stop(self) -> None:
        """Take nothing more, for good."""
        self._stopped = True
        self.acceptor.close()
        self._close_channel()

    def _close_channel(self) -> None:
        self._reads = False
        if self._loop.watches(self._channel.fileno()):
            self._loop.modify(self._channel.fileno(), 0)  # its hang-up is still reported

    def close_inherited(self) -> None:
        """In a copy of the worker: close its copies of what connections come from."""
        self._channel.close()
        self.acceptor.close_inherited()

    # --- the channel

    def on_channel(self, mask: int) -> None:
        """Take connections: the loop's callback, for ``READ``."""
        if not _original[0]:
            forked_copies.end_if_copy("the channel")
        if mask & READ and self._reads:
            loop = self._loop
            if self._has_room():
                self._take()
                # In two iterations running, and long ones: something keeps this worker busy. What waits in the channel
                # is not to wait for an iteration for each message.
                if loop.now - self._received_at > LONG_TURN and loop.turns - self._received_in == 1:
                    self._take_more()
            self._received_in, self._received_at = loop.turns, loop.now
        elif mask & HANGUP:
            self._dispatcher_gone()

    def _take_more(self) -> None:
        """Take all that waits, unless opening the connections takes long itself."""
        began = time.monotonic()
        while self._taking and self.take_rest() and time.monotonic() - began < LONG_TURN:
            pass

    def _take(self) -> bool:
        """Receive one message's connections and begin to serve them; False where there was no message."""
        try:
            handed = self._channel.receive()
        except EOFError:
            self._dispatcher_gone()
            return False
        is_late = self._draining
        if not handed:
            # The dispatcher asks for a sign of life, or has found this worker slow and reclaimed the connections.
            self._reporter.state = DRAINING if is_late else SERVING
            if self._channel.grant is not None:
                self.acceptor.granted(self._channel.grant)
                self._channel.grant = None
            return handed is not None
        self._reporter.taken += len(handed)
        room, services = self._room, self._services
        room.taken(handed)
        for accepted in handed:
            if accepted.fd == LOST:
                self._reporter.closed.append(accepted.id)
            else:
                self.accepted += 1
                services[accepted.listener].open(accepted.fd, accepted.id, accepted.peer, accepted.accepted_at)
        if is_late:
            self._tell_late(handed)
        if room.lost:
            self._give_way()
        return True

    def _tell_late(self, handed: Sequence[AcceptedConnection]) -> None:
        """Have plugins know of connections that came while the worker drains that it does."""
        for accepted in handed:
            service = self._services[accepted.listener]
            if accepted.id in service.connections:
                service.opened_after_drain(service.connections[accepted.id])

    def _dispatcher_gone(self) -> None:
        if self._loop.watches(self._channel.fileno()):
            self._loop.unregister(self._channel.fileno())
            self._gone()

    # --- descriptors

    def _has_room(self) -> bool:
        """Whether a message can be received (descriptor_room.py); where not, the dispatcher is told."""
        if not self._room.is_there():
            self._stop_taking()
            return False
        if not self._taking:
            self._taking = True
            self._loop.modify(self._channel.fileno(), READ)
            if not self._draining:
                self._reporter.state = SERVING
                self.acceptor.resume()
            log.debug("descriptors are free again: taking connections")
        return True

    def _stop_taking(self) -> None:
        if self._taking:
            self._pause()
            if self._room.is_leaking():
                self._loop.at_end_of_turn(self._give_way)
            elif self._full_message.allows(self._loop.now):
                log.warning(
                    "close to the limit of %d open descriptors: taking no connections while it is so",
                    descriptor_limit(),
                )

    def _pause(self) -> None:
        self._taking = False
        if not self._draining:
            self._reporter.state = FULL
        self._loop.modify(self._channel.fileno(), 0)
        self._loop.call_later(RECOUNT_AFTER, self._look_for_room)
        self.acceptor.pause()

    def _system_has_no_room(self, reason: str) -> None:
        """Accepting has failed: others may be luckier. What has been shut down is not worth a line."""
        if self._taking:
            self._pause()
            if reason and self._full_message.allows(self._loop.now):
                log.warning("can't accept connections (%s): taking none for a moment", reason, extra={"reason": reason})

    def _look_for_room(self) -> None:
        if self._reads and not self._has_room():
            if self._room.is_leaking():
                self._give_way()
            self._loop.call_later(RECOUNT_AFTER, self._look_for_room)

    def _give_way(self) -> None:
        """Have the worker drain: plugins hold the descriptors, and closing connections would not free any."""
        if self._gives_way or self._draining or self._stopped:
            return
        self._gives_way = True
        lost = f", connections lost: {self._room.lost}" if self._room.lost else ""
        log.error(
            "plugins hold the descriptors, of which there are %d%s: taking no more connections, draining",
            descriptor_limit(),
            lost,
            extra={"reason": "descriptors"},
        )
        if self._taking:
            self._pause()
        self._drain_worker()
