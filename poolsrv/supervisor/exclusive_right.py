"""The right to have exclusive workers, which one pool has at a time.

Theory. If a listener is exclusive, only one instance of its plugins runs at any time, even during a reload. So a new
pool starts all its other workers first, and then *claims* the right. Every other pool is asked to *release* it: its
exclusive workers drain and end, and clients wait in the kernel's queue. The right is *granted* once all of them have
answered or ended, and nothing is left of a dispatcher that was killed: its workers are this process's children then,
and may still run. If the claimant fails, the pool that serves may *resume*, once nothing is left of the claimant.

It is one right for all exclusive listeners of a pool, so a listener may be renamed, or move to another address.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence

from ..ipc.pool_link import BadMessage
from ..ipc.pool_protocol import SERVING
from .pool import PoolProcess

log = logging.getLogger("poolsrv.supervisor")


class ExclusiveRight:
    """Who has the right, and who waits for it.

    :param orphans_left: whether this process has children that a dead dispatcher has left.
    """

    def __init__(self, orphans_left: Callable[[], bool]) -> None:
        self._orphans_left = orphans_left
        self._claimant: PoolProcess | None = None  # until it serves
        self._is_granted = False
        self._asked: set[PoolProcess] = set()  # have not answered yet
        self._number = 0  # of the claim
        self._former: PoolProcess | None = None  # may resume, once that is possible

    def claim(self, pool: PoolProcess, plugins: Sequence[str], others: Iterable[PoolProcess]) -> None:
        """A pool can serve but for its exclusive listeners.

        :param plugins: the names of their plugins. Others may have them on listeners that are not exclusive.
        :param others: all other pools.
        :raises BadMessage: it has claimed the right before.
        """
        if pool is self._claimant:
            raise BadMessage("'claims' a second time")
        self._claimant, self._is_granted, self._former = pool, False, None
        self._number += 1
        self._asked = set(others)
        pool.wait_for_others()
        for other in self._asked:
            other.send("release", number=self._number, plugins=plugins)

    def released(self, pool: PoolProcess, number: int) -> None:
        """A pool has no exclusive workers any more."""
        if number == self._number:
            self._asked.discard(pool)

    def served(self, pool: PoolProcess) -> None:
        """A pool serves."""
        if pool is self._claimant:
            self._claimant = None

    def ended(self, pool: PoolProcess, serving: PoolProcess | None) -> None:
        """A pool has ended.

        :param serving: the pool that serves.
        """
        self._asked.discard(pool)
        if pool is self._claimant:
            self._claimant, self._former = None, serving
            self._asked.clear()

    def review(self) -> None:
        """Grant the right, or have the former pool resume, if nothing stands in the way any more."""
        claimant, former = self._claimant, self._former
        if claimant is not None and not (self._is_granted or self._asked or self._orphans_left()):
            self._is_granted = True
            claimant.go_on()
            claimant.send("granted")
        elif claimant is None and former is not None and not self._orphans_left():
            self._former = None
            if former.state == SERVING:
                former.send("resume")
