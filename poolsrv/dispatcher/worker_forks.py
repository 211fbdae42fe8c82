"""Forks the workers that are due: their descriptors first, then one fork after the other.

Theory. After a fork, the child and its parent have the same memory. A page of it is copied once either of them writes
to it, and counting a reference is writing. What an idle worker has to itself is mostly such copies: of pages that it
has written to, and of those that the dispatcher has. So the dispatcher makes the worker before it forks
(``WorkerProcess``), and does nothing between two forks that can be done before the first or after the last.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence

from ..config.model import APART
from ..core import forked_copies
from ..core.stack_dump import StackDumpFile
from ..ipc.worker_channel import DispatcherEnd
from .worker_slot import WorkerSlot


class WorkerFork:
    """A worker that is about to be forked.

    :param asks: whether it may ask about admission.
    :param connect: as of ``WorkerManager``.
    :raises OSError: there are no descriptors left.
    :ivar dump_file: where it dumps its stack.
    :ivar questions: on which the worker apart can ask.
    :ivar pid: once it has been forked; 0 in the child.
    :ivar error: why it could not be forked.
    """

    def __init__(self, slot: WorkerSlot, asks: bool, connect: Callable[[], socket.socket]) -> None:
        self.slot = slot
        self.pid = -1
        self.error: OSError | None = None
        self.questions: socket.socket | None = None
        self.channel = DispatcherEnd(answers=asks)
        try:
            self.dump_file = StackDumpFile()
        except OSError:
            self.channel.close()
            raise
        try:
            if slot.index == APART:
                self.questions = connect()
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Close everything."""
        self.channel.close()
        self.dump_file.close()
        if self.questions is not None:
            self.questions.close()


def fork_all(forks: Sequence[WorkerFork]) -> WorkerFork | None:
    """Fork them.

    :returns: in a child, its own one; in the parent None.
    """
    for one in forks:
        try:
            one.pid = forked_copies.fork()
        except OSError as error:
            one.error = error
        else:
            if one.pid == 0:
                return one
    return None


def close_others(forks: Sequence[WorkerFork], own: WorkerFork) -> None:
    """In a child: close its copies of what belongs to the others."""
    for one in forks:
        if one is not own:
            one.close()
