"""A dispatcher's books, with the workers' ends of the channels in this process: no workers, no sockets that listen."""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from poolsrv.config.model import ListenerConfig
from poolsrv.core.event_loop import EventLoop
from poolsrv.dispatcher.dispatcher import Dispatcher
from poolsrv.dispatcher.listener import Listener
from poolsrv.dispatcher.worker_slot import STARTING, WorkerSlot
from poolsrv.ipc.worker_channel import LOST, AcceptedConnection, DispatcherEnd, Report, WorkerEnd


class Books:
    """Some slots and listeners, their dispatcher, and what it has asked for.

    :ivar killed: the slots whose workers it wants to be killed, in order.
    :ivar workers: the other end of each slot's channel, by the slot's number.
    """

    def __init__(self, configs: Sequence[ListenerConfig], workers: int = 2, dispatch: str = "round-robin") -> None:
        self.loop = EventLoop()
        self.slots = [WorkerSlot(index, state=STARTING, pid=1000 + index) for index in range(workers)]
        self.listeners = [
            Listener(self.loop, number, config, [], self.slots, dispatch) for number, config in enumerate(configs)
        ]
        self.dispatcher = Dispatcher(self.loop, self.listeners, self.slots)
        self.killed: list[WorkerSlot] = []
        self.dispatcher.kill_worker = self.killed.append
        self.workers: list[WorkerEnd] = []
        self._last_id = 0
        for slot in self.slots:
            self.start(slot)

    def start(self, slot: WorkerSlot) -> None:
        """Put a worker that has not said anything into an empty slot."""
        slot.channel = DispatcherEnd(answers=True)
        assert slot.channel._admission_sockets is not None
        end = WorkerEnd(slot.channel._worker_socket, slot.channel._admission_sockets[1])
        if slot.index < len(self.workers):
            self.workers[slot.index] = end
        else:
            self.workers.append(end)

    def new_id(self) -> int:
        """The id of the next connection."""
        self._last_id += 1
        return self._last_id

    def give(self, *numbers: int, listener: int = 0) -> None:
        """Accept connections with these ids."""
        for number in numbers:
            self.listeners[listener].counts.open += 1
            fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            waiting = self.listeners[listener].unassigned
            waiting.append(AcceptedConnection(fd, listener, number, ("127.0.0.1", number)))
        self.dispatcher.resume()

    def take(self, index: int, most: int = 1 << 20) -> list[int]:
        """Have a worker receive what has been sent to it, at most so many messages."""
        taken = []
        while most and (handed := self.workers[index].receive()):
            most -= 1
            for connection in handed:
                os.close(connection.fd)
                taken.append(connection.id)
        return taken

    def say(self, report: Report, index: int = 0) -> bool:
        """Have a worker report."""
        assert self.workers[index].report(report)
        return self.dispatcher.on_report(self.slots[index])

    def write(self, data: bytes, *descriptors: int, index: int = 0) -> bool:
        """Send bytes in the place of a report."""
        socket.send_fds(self.workers[index]._socket, [data], descriptors)
        return self.dispatcher.on_report(self.slots[index])

    def check(self) -> None:
        """What the books must be like at any time between two turns."""
        slots = self.dispatcher._slots
        open_ = Counter(number for slot in slots for number in slot.connections.values())
        seen: set[int] = set()
        for slot in slots:
            assert not slot.outbox
            assert slot.waiting.items() <= slot.connections.items() or slot.condemned
            assert slot.peer_known <= slot.connections.keys() or slot.condemned
            assert seen.isdisjoint(slot.connections)
            seen |= slot.connections.keys()
            assert all(type(count) is int and count >= 0 for count in slot.counters)
        for listener in self.listeners:
            waiting = [connection.id for connection in listener.unassigned]
            assert seen.isdisjoint(waiting)
            assert len(set(waiting)) == len(waiting)
            assert all(connection.fd != LOST for connection in listener.unassigned)
            assert listener.counts.open == open_[listener.number] + len(waiting), listener.name
            self._check_sources(listener, seen.union(waiting))

    def _check_sources(self, listener: Listener, known: set[int]) -> None:
        sources = listener.admission._sources if listener.admission is not None else None
        if sources is None:
            return
        assert Counter(sources._source_of.values()) == Counter(sources._open)
        assert sources._source_of.keys() <= known
        most = listener.config.max_per_source
        assert not most or max(sources._open.values(), default=0) <= most

    def close(self) -> None:
        """Close everything."""
        for slot in self.slots:
            if slot.channel is not None:
                with suppress(EOFError, OSError):  # it was shut down, or its worker is gone
                    self.take(slot.index)
        self.dispatcher.drop_unassigned()
        for slot in self.slots:
            if slot.channel is not None:
                slot.channel.close()
        self.loop.turn(0)
        self.loop.close()
