"""Decides which slots may have a worker now: of an exclusive listener, only one instance may exist at any time.

Theory. The pool's first worker serves the exclusive listeners. It is replaced only after it has ended, together with
the programs that it has left. Before it is first started, the other pools are asked (supervisor/exclusive_right.py):
the pool *claims* the right when its other workers serve. If a later pool claims it, this one *holds back* its exclusive
workers: those that run drain, and none is started until the supervisor allows it. Its other workers go on serving.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from ..worker.spec import ListenerSpec
from .worker_slot import EMPTY, STARTING, WorkerSlot

log = logging.getLogger("poolsrv.pool")


class ExclusiveWorkers:
    """What the worker manager asks before it starts a worker.

    :param by_pid: the workers that run, those that leave included.
    :param leftovers: whether this process has children that a dead worker has left: programs of its plugins.
    :param claim: called once with the names of the exclusive listeners' plugins.
    :param released: called with the number of a request, when no worker is left that it is about.
    """

    def __init__(
        self,
        listeners: Sequence[ListenerSpec],
        by_pid: Mapping[int, WorkerSlot],
        leftovers: Callable[[], bool],
        claim: Callable[[list[str]], object],
        released: Callable[[int], object],
    ) -> None:
        self._listeners = listeners
        self._exclusive = [listener for listener in listeners if listener.config.exclusive]
        self._by_pid = by_pid
        self._leftovers = leftovers
        self._claim = claim
        self._released = released
        self._held = list(self._exclusive)  # listeners whose workers are not to run
        self._has_to_claim = bool(self._exclusive)
        self._request: int | None = None  # the number of the request that has not been answered

    def may_start(self, slot: WorkerSlot) -> bool:
        """Tell whether a worker may be started in the slot now."""
        if self.is_held(slot):
            return False
        if not any(listener.config.is_for(slot.index) for listener in self._exclusive):
            return True
        return not (any(other.index == slot.index for other in self._by_pid.values()) or self._leftovers())

    def is_held(self, slot: WorkerSlot) -> bool:
        """Tell whether the slot's worker is not to run."""
        return any(listener.config.is_for(slot.index) for listener in self._held)

    def claim_if_due(self, slots: Iterable[WorkerSlot]) -> None:
        """Claim the right, if there is need, once all other workers serve."""
        if self._has_to_claim and not any(slot.state in (EMPTY, STARTING) and not self.is_held(slot) for slot in slots):
            self._has_to_claim = False
            self._claim(sorted({plugin.name for listener in self._exclusive for plugin in listener.hooks.plugins}))

    def granted(self) -> None:
        """Let them start."""
        self._held = []
        self._request = None

    def hold_back(self, request: int, plugins: Sequence[str], slots: Iterable[WorkerSlot] = ()) -> list[WorkerSlot]:
        """Let none start, nor a worker that serves one of these plugins; ``tell_released`` says when none runs.

        :param slots: of the pool.
        :returns: those whose workers have to drain.
        """
        names = set(plugins)
        self._held = [
            listener
            for listener in self._listeners
            if listener.config.exclusive or names.intersection(plugin.name for plugin in listener.hooks.plugins)
        ]
        self._request = request
        running = [slot for slot in slots if slot.pid and self.is_held(slot)]
        for slot in running:
            log.info(
                "worker %s (pid %d) is exclusive, and another pool takes over: draining",
                slot.label,
                slot.pid,
                extra=slot.tags,
            )
        return running

    def tell_released(self) -> None:
        """Say that no such worker runs, if that is so and has been asked for."""
        if self._request is None or any(self.is_held(slot) for slot in self._by_pid.values()) or self._leftovers():
            return
        request, self._request = self._request, None
        self._released(request)
