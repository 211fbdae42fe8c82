"""Kernel dispatch, as the dispatcher sees it: which worker accepts at which socket, and what is done if none does.

Theory. Each address has a socket for each worker (shares.py), and the kernel chooses the socket of a new connection. A
worker accepts at its own sockets (worker/kernel_acceptor.py), and reports what it has accepted: the books are kept as
for connections that the dispatcher has sent.

All sockets stay open here. If no worker accepts at a socket, the dispatcher *takes it over*: it polls it, and passes
the connections on in the classic way, to workers that have room. That is so if the worker is dead, starts, drains, has
been removed, is stopped by a signal, or has no descriptors. It is so as well if the worker is stuck. That shows only in
the socket's queue: the dispatcher has the kernel tell it once of a connection (EPOLLONESHOT), and looks at the queue a
moment later. If nothing is accepted for ``STALL_TIME``, while others respond, the worker is stalled until it reports. A
server at rest is not woken by this, and a busy one a few times in a second.

Sockets may be more or fewer than workers, after a reload or SIGTTIN. The spare ones are shared out when a worker is
forked, and several workers accept at one socket if there are too few.

Connections have ids that are unique in a run of the server, so workers use those that they are granted. With the first
grant a worker hears that the pool serves: before that, it could lose what it has accepted if another one can't start.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Container, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import msgspec

from ..core.accept_queue import accept_queue
from ..core.event_loop import HANGUP, ONCE, READ, EventLoop, Timer
from ..ipc.worker_channel import SERVING, Accepted, Refused
from ..net.addresses import format_peer
from ..worker.kernel_acceptor import OwnSocket
from .bound import Bound
from .listener import Listener
from .worker_slot import STALL_TIME, WorkerSlot

log = logging.getLogger("poolsrv.dispatcher")


class WorkersSocket(msgspec.Struct, eq=False):
    """A socket at which a worker accepts.

    :ivar number: among those of the pool.
    :ivar share: its number among those of its address.
    :ivar shares: how many these are.
    :ivar address: the real one.
    :ivar accepted: connections that a worker has accepted.
    :ivar passed_on: connections that the dispatcher has accepted in its place.
    :ivar taken_over: whether the dispatcher accepts now.
    :ivar seen: what workers had accepted and refused when that was last looked at.
    :ivar waits_since: since when nothing of what waits in its queue has been accepted, in the loop's time.
    """

    number: int
    listener: Listener
    bound: Bound
    share: int
    shares: int
    accept: Callable[[int], object]
    address: tuple[Any, ...]
    accepted: int = 0
    refused: int = 0
    passed_on: int = 0
    taken_over: bool = False
    seen: int = 0
    waits_since: float = 0.0

    def is_for(self, slot: WorkerSlot) -> bool:
        """Tell whether a worker that is started now accepts here."""
        slots = self.listener.slots
        if slot not in slots:
            return False
        step = min(len(slots), self.shares)
        return slots.index(slot) % step == self.share % step


class KernelDispatch:
    """The sockets at which workers accept.

    :param callback: returns what is to be called when a listener's socket is readable that the dispatcher polls.
    :param allocate: reserves so many ids for connections, and returns the first.
    :ivar sockets: by number.
    """

    def __init__(
        self,
        loop: EventLoop,
        listeners: Sequence[Listener],
        callback: Callable[[Listener, socket.socket], Callable[[int], object]],
        allocate: Callable[[int], int],
    ) -> None:
        self.sockets: list[WorkersSocket] = []
        self._loop = loop
        self._allocate = allocate
        self._is_open = False
        self._watched: list[WorkersSocket] = []  # that have had a connection in their queue
        self._timer: Timer | None = None
        for listener in listeners:
            shares: dict[str, int] = {}
            for bound in listener.sockets:
                if bound.share is not None:
                    shares[str(bound)] = bound.share + 1
            for bound in listener.sockets:
                if bound.share is not None:
                    accept = callback(listener, bound.socket)
                    number = len(self.sockets)
                    count, address = shares[str(bound)], bound.socket.getsockname()
                    self.sockets.append(WorkersSocket(number, listener, bound, bound.share, count, accept, address))

    # --- begin and end

    def open(self) -> None:
        """Have all workers accept, for the pool serves.

        :raises OSError: a new socket can't listen.
        """
        for own in self.sockets:
            if not own.bound.held.listens:
                own.bound.socket.listen(own.listener.config.backlog)
        self._is_open = True
        for own in self.sockets:
            self._loop.register(own.bound.socket.fileno(), READ | ONCE, partial(self._ready, own))
        for slot in {id(slot): slot for own in self.sockets for slot in own.listener.slots}.values():
            self._grant_if_due(slot)
        self.review()

    def close(self) -> None:
        """Accept no more. The caller closes the sockets."""
        if self._is_open:
            self._is_open = False
            for own in self.sockets:
                self._loop.unregister(own.bound.socket.fileno())
                if own.taken_over:
                    own.listener.polled.remove(own.bound)
                own.taken_over = False

    def give_up(self, keys: Sequence[str] | None) -> None:
        """Have addresses answer no more, also if a worker that is stuck has their sockets open.

        :param keys: of the sockets; None: of all.
        """
        for own in self.sockets:
            if keys is None or own.bound.held.key in keys:
                with suppress(OSError):
                    own.bound.socket.shutdown(socket.SHUT_RD)

    # --- workers

    def numbers_for(self, slot: WorkerSlot) -> frozenset[int]:
        """Tell at which sockets a worker is to accept that is started now."""
        return frozenset(own.number for own in self.sockets if own.is_for(slot))

    def hand_out(self, numbers: Container[int]) -> list[OwnSocket]:
        """In the worker's process: take its sockets, those with these numbers, away from what was the dispatcher's.

        They are not copied: there may be no descriptor left for a copy.
        """
        return [
            OwnSocket(own.number, own.listener.number, socket.socket(fileno=own.bound.socket.detach()))
            for own in self.sockets
            if own.number in numbers
        ]

    def changed(self, slot: WorkerSlot) -> None:
        """Learn that a worker's state has changed."""
        self._grant_if_due(slot)
        self.review()

    def _grant_if_due(self, slot: WorkerSlot) -> None:
        channel, granted = slot.channel, slot.granted
        if channel is None or slot.state != SERVING or not slot.own_sockets or not self._is_open:
            return
        if channel.grant_is_lost and granted.latest is not None:
            channel.grant_is_lost = not channel.grant(granted.latest)
        elif granted.is_low():
            channel.grant_is_lost = not channel.grant(granted.add(self._allocate))

    def report(self, slot: WorkerSlot, accepted: Sequence[Accepted], refused: Sequence[Refused]) -> None:
        """Enter what a worker has accepted and refused by itself; report_check.py has checked it."""
        for number, count in accepted:
            own = self.sockets[number]
            own.accepted += count
            listener = own.listener
            listener.counts.open += count
            listener.counts.accepted += count
            slot.given += count
            for ids in slot.granted.take(count):
                slot.connections.update(dict.fromkeys(ids, listener.number))
        for number, reason, peer in refused:
            own = self.sockets[number]
            own.refused += 1
            if own.listener.admission is not None:
                own.listener.admission.refused_by_worker(reason, format_peer(peer))
        if slot.granted.is_low():
            self._grant_if_due(slot)

    def balance(self, bound: Bound) -> tuple[list[int], int, int]:
        """Return which workers accept at a socket, how many connections they have, and how many were passed on."""
        for own in self.sockets:
            if own.bound is bound:
                return [slot.index for slot in self._owners(own)], own.accepted, own.passed_on
        return [], 0, 0

    # --- who accepts

    def review(self) -> None:
        """Take over the sockets at which no worker accepts, and give back the others."""
        if not self._is_open:
            return
        for own in self.sockets:
            if own.taken_over != (not self._owners(own)):
                if own.taken_over:
                    self._give_back(own)
                else:
                    self._take_over(own)

    def _owners(self, own: WorkersSocket) -> list[WorkerSlot]:
        return [slot for slot in own.listener.slots if slot.accepts() and own.number in slot.own_sockets]

    def _take_over(self, own: WorkersSocket) -> None:
        own.taken_over = True
        own.listener.polled.append(own.bound)
        self._loop.modify(own.bound.socket.fileno(), 0 if own.listener.counts.paused else READ)

    def _give_back(self, own: WorkersSocket) -> None:
        own.taken_over = False
        own.listener.polled.remove(own.bound)
        self._loop.modify(own.bound.socket.fileno(), READ | ONCE)

    def _ready(self, own: WorkersSocket, mask: int) -> None:
        if mask & HANGUP:
            self._listen_again(own)
        elif own.taken_over:
            before = own.listener.counts.accepted
            own.accept(mask)
            own.passed_on += own.listener.counts.accepted - before
        else:
            own.seen, own.waits_since = own.accepted + own.refused, self._loop.now
            if own not in self._watched:
                self._watched.append(own)
            if self._timer is None:
                self._timer = self._loop.call_later(STALL_TIME / 2, self._look)

    def _listen_again(self, own: WorkersSocket) -> None:
        """A plugin has shut the socket down, which it shares with this process."""
        with suppress(OSError):  # EINVAL: it has kept its port, which it does unless the kernel had chosen that
            own.bound.socket.bind(own.address)
        own.bound.socket.listen(own.listener.config.backlog)
        name, tags = own.listener.name, own.listener.tags
        log.error("%s: a worker has shut the socket of %s down: it listens again", name, own.bound, extra=tags)
        if not own.taken_over:
            self._loop.modify(own.bound.socket.fileno(), READ | ONCE)

    # --- stuck workers

    def _look(self) -> None:
        """See whether workers accept what waits for them."""
        self._timer = None
        watched, self._watched = self._watched, []
        for own in watched if self._is_open else ():
            if own.taken_over:
                continue
            queue = accept_queue(own.bound.socket)
            if queue is None or not queue.queued:
                self._loop.modify(own.bound.socket.fileno(), READ | ONCE)
                continue
            self._watched.append(own)
            done = own.accepted + own.refused
            if done != own.seen:
                own.seen, own.waits_since = done, self._loop.now
            else:
                self._look_at_owners(own)
        if self._watched:
            self._timer = self._loop.call_later(STALL_TIME / 2, self._look)

    def _look_at_owners(self, own: WorkersSocket) -> None:
        """Nothing has been accepted: others get it, if that has lasted, and if they respond themselves."""
        owners = self._owners(own)
        others = [slot for slot in own.listener.slots if slot.has_room() and slot not in owners]
        if self._loop.now - own.waits_since < STALL_TIME or not any(
            slot.last_report_at > own.waits_since for slot in others
        ):
            for slot in others:
                if slot.channel is not None:
                    slot.channel.ask()
            return
        for slot in owners:
            slot.stalled = slot.stall_logged = True
            if slot.channel is not None:
                slot.channel.ask()  # so that it reports once it goes on
            log.warning(
                "worker %d (pid %d) accepts no connections: others get them until it responds",
                slot.index,
                slot.pid,
                extra=slot.tags,
            )
        self.review()
