"""Whether a worker has descriptors for the connections that wait for it.

Theory. A receiver at its limit of open descriptors loses what did not fit (MSG_CTRUNC, unix(7)): these connections are
gone. So a worker receives only while it is sure of ``MAX_PER_MESSAGE`` free descriptors, and some more for plugins. To
count them takes a system call for each, so it is not done each time. After a count a number of connections may be
taken, and it is done sooner where something gives reason to doubt:

- The kernel gives out the lowest free number. A connection that has got a high one tells that there are few left.
- What a plugin has opened meanwhile is seen every ``PROBE_EVERY`` seconds at least, in the same way: by a duplicate.
- A plugin has failed for want of descriptors.

Where connections hold them, room comes back as they close. Where plugins hold so many that there would be none even
then, it does not: they leak. That worker is to be replaced.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from typing import Final

from ..core.event_loop import EventLoop
from ..core.native import mypyc_attr
from ..ipc.worker_channel import LOST, MAX_PER_MESSAGE, AcceptedConnection

SPARE: Final = 16  # kept free for what plugins open
PER_CONNECTION: Final = 5  # with a program: itself, three pipes, a pidfd
PROBE_EVERY: Final = 0.002  # seconds
_OUT_OF_DESCRIPTORS: Final = frozenset({errno.EMFILE, errno.ENFILE})


@mypyc_attr(allow_interpreted_subclasses=True)
class DescriptorRoom:
    """The free descriptors of one worker, as far as they are known.

    :param of_connections: how many the engine has open for connections: they come back.
    :ivar probe: any open descriptor.
    :ivar lost: connections that did not fit.
    """

    def __init__(self, loop: EventLoop, of_connections: Callable[[], int]) -> None:
        self.probe = -1
        self.lost = 0
        self._loop = loop
        self._of_connections = of_connections
        self._allowance = 0  # connections that may be taken before descriptors are counted again
        self._sure_until = 0.0
        self._high = 0  # a number from which on few are left
        self._free = 0
        self._had_room = False

    def is_there(self) -> bool:
        """Whether a full message can be received."""
        if self._allowance >= MAX_PER_MESSAGE and (self._loop.now < self._sure_until or self._looks_free()):
            return True
        return self._count()

    def taken(self, handed: list[AcceptedConnection]) -> None:
        """A message has been received."""
        self._allowance -= len(handed)
        fd = handed[-1].fd
        if fd >= self._high or fd == LOST:
            self._allowance = 0
            self.lost += sum(one.fd == LOST for one in handed)

    def accepted(self, count: int, last: int) -> None:
        """The worker has accepted so many itself; the last one has this descriptor."""
        self._allowance -= count
        if last >= self._high:
            self._allowance = 0

    def doubt(self, error: BaseException) -> None:
        """A plugin has raised this: where it is for want of descriptors, count them before the next message."""
        if isinstance(error, OSError) and error.errno in _OUT_OF_DESCRIPTORS:
            self._allowance = 0

    def is_leaking(self) -> bool:
        """Whether there would be no room even if all connections were closed; after ``is_there`` has said no."""
        return self.lost > 0 or (self._had_room and self._free + self._of_connections() < MAX_PER_MESSAGE)

    def _looks_free(self) -> bool:
        try:
            lowest = os.dup(self.probe)
        except OSError:
            return False
        os.close(lowest)
        self._sure_until = self._loop.now + PROBE_EVERY
        return lowest < self._high

    def _count(self) -> bool:
        limit = descriptor_limit()
        self._free = limit - _count_open(limit) - SPARE
        self._high = limit - SPARE - 3 * MAX_PER_MESSAGE
        if self._free < MAX_PER_MESSAGE:
            self._allowance = 0
            return False
        self._allowance = max(self._free // PER_CONNECTION, MAX_PER_MESSAGE)
        self._sure_until = self._loop.now + PROBE_EVERY
        self._had_room = True
        return True


def descriptor_limit() -> int:
    """The soft limit of open descriptors of this process."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _count_open(limit: int) -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:  # none is left to open that folder with
        return limit
