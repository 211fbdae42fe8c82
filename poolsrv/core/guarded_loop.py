"""The event loop of a process that a bug must not end: the supervisor's and the dispatcher's.

An exception of a callback is a fault of the engine here. It is logged, and the loop goes on: only the work of that call
is lost. A descriptor whose callback has raised rests for a moment: its event is mostly still there, and the loop would
spin. A worker does not need this: it catches a plugin's faults where it calls the plugin, and a worker whose engine
fails is replaced.
"""

from __future__ import annotations

import logging
import select
import time
from collections.abc import Callable
from functools import partial

from .event_loop import ERROR, HANGUP, EventCallback, EventLoop
from .words import counted

REST = 1.0  # seconds
LOG_INTERVAL = 10.0  # seconds between two lines about faults in one place; the others are counted


class GuardedLoop(EventLoop):
    """An event loop that survives exceptions of callbacks.

    :param log: the logger of faults.
    """

    def __init__(self, log: logging.Logger) -> None:
        super().__init__()
        self._log = log
        self._interests: dict[int, int] = {}
        self._resting: set[int] = set()
        self._told: dict[tuple[str, int], tuple[float, int]] = {}  # by place: when last, and how many since

    # --- descriptors

    def register(self, fd: int, interest: int, callback: EventCallback) -> None:
        super().register(fd, interest, callback)
        self._interests[fd] = interest

    def modify(self, fd: int, interest: int) -> None:
        self._interests[fd] = interest
        if fd not in self._resting:
            super().modify(fd, interest)

    def unregister(self, fd: int) -> None:
        self._interests.pop(fd, None)
        self._resting.discard(fd)
        super().unregister(fd)

    # --- running

    def guarded(self, callback: Callable[..., object], *arguments: object) -> None:
        """Call a function, and log what it raises: for a callback that does several independent things."""
        try:
            callback(*arguments)
        except BaseException as error:  # noqa: BLE001 - of whatever kind, it is not to end the server
            self._tell(error)

    def dispatch(self, events: list[tuple[int, int]]) -> None:
        self._batch = events
        find = self._callbacks.get
        left = iter(events)
        while True:
            try:
                for fd, mask in left:
                    callback = find(fd)
                    if callback is not None:
                        callback(mask)
                break
            except BaseException as error:  # noqa: BLE001 - as above
                self._tell(error)
                if find(fd) is callback:
                    self._rest(fd, mask)
        self.turns += 1
        self.events += len(events)
        if self._timers and self._timers[0][0] <= self.now:
            self._call_timers()
        if self._put_off:
            self._call_put_off()
        if self.after_turn is not None:
            self.guarded(self.after_turn)

    def _call_put_off(self) -> None:
        for _ in range(3):  # as in the base
            put_off, self._put_off = self._put_off, []
            for call in put_off:
                self.guarded(call)
            if not self._put_off:
                break

    def _call_timers(self) -> None:
        self.guarded(super()._call_timers)  # after a fault, the rest is due in the next iteration

    # --- faults

    def _rest(self, fd: int, mask: int) -> None:
        if fd in self._resting:
            return  # changing its interest again would report its hang-up again
        callback = self._callbacks[fd]
        self._resting.add(fd)
        # The kernel reports errors and hang-ups whatever the interest is; edge-triggered, it reports each only once.
        self._epoll.modify(fd, select.EPOLLET if mask & (ERROR | HANGUP) else 0)
        self.call_later(REST, partial(self._wake, fd, callback))

    def _wake(self, fd: int, callback: EventCallback) -> None:
        if fd in self._resting and self._callbacks.get(fd) is callback:
            self._resting.discard(fd)
            self._epoll.modify(fd, self._interests[fd])

    def _tell(self, error: BaseException) -> None:
        """Log a fault; one in the same place only now and then, so that it does not fill the log."""
        place = _place(error)
        told_at, count = self._told.get(place, (float("-inf"), 0))
        now = time.monotonic()
        if now - told_at < LOG_INTERVAL:
            self._told[place] = (told_at, count + 1)
            return
        self._told[place] = (now, 0)
        since = f" ({counted(count, 'time')} more since it was last told)" if count else ""
        self._log.error("a fault of the server, which goes on%s: please report it", since, exc_info=error)


def _place(error: BaseException) -> tuple[str, int]:
    """Return the file and line where it was raised."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return (traceback.tb_frame.f_code.co_filename, traceback.tb_lineno) if traceback is not None else ("", 0)
