"""The ids that a worker may give to connections that it accepts by itself."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from ..ipc.worker_channel import Grant

FIRST_BLOCK: Final = 1024
LARGEST_BLOCK: Final = 65536  # what a worker reports at once can't be more


class GrantedIds:
    """Those of one worker. It uses them in order.

    :ivar left: how many have not been reported as used.
    :ivar latest: the latest grant; None if there is none.
    """

    def __init__(self) -> None:
        self.left = 0
        self.latest: Grant | None = None
        self._blocks: deque[range] = deque()
        self._size = FIRST_BLOCK // 2

    def is_low(self) -> bool:
        """Tell whether it is time for more."""
        return self.left < self._size // 2 or self.latest is None

    def add(self, allocate: Callable[[int], int]) -> Grant:
        """Grant more.

        :param allocate: reserves so many ids, and returns the first.
        """
        self._size = min(2 * self._size, LARGEST_BLOCK)
        first = allocate(self._size)
        self.latest = Grant(first, first + self._size)
        self._blocks.append(range(*self.latest))
        self.left += self._size
        return self.latest

    def next(self, count: int) -> list[range]:
        """Return the next ids, of which there must be so many."""
        found = []
        for block in self._blocks:
            if not count:
                break
            found.append(block[:count])
            count -= len(found[-1])
        return found

    def take(self, count: int) -> list[range]:
        """Return the next ids, which the worker has used."""
        taken = self.next(count)
        self.left -= count
        for one in taken:
            rest = self._blocks.popleft()[len(one) :]
            if rest:
                self._blocks.appendleft(rest)
        return taken
