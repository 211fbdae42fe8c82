"""Calls that block, and calls from other threads into the loop."""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable

# Before the fork: a worker may have no descriptors left to import it, and its user no right to read it.
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from ..core.event_loop import READ, EventLoop

BLOCKING_THREADS: Final = 4


class BlockingThreads:
    """A worker's small thread pool, made when it is first used, and the way back into the loop.

    :param guarded: called as ``guarded(what, callback)`` for each call from another thread.
    """

    def __init__(self, loop: EventLoop, guarded: Callable[[str, Callable[[], object]], object]) -> None:
        self._loop = loop
        self._guarded = guarded
        self._pool: ThreadPoolExecutor | None = None
        self._calls: deque[tuple[str, Callable[[], object]]] = deque()
        self._event: int | None = None
        self._is_closed = False

    def open(self) -> None:
        """Have the loop notice calls, earlier ones included."""
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._loop.register(self._event, READ, self._on_calls)
        if self._calls:
            os.eventfd_write(self._event, 1)

    def call_soon(self, callback: Callable[[], object], what: str = "call_soon_threadsafe") -> None:
        """Call ``callback()`` in the loop, soon; from any thread.

        :param what: what the log and the metrics call it.
        """
        self._calls.append((what, callback))
        event = self._event
        if event is not None:
            os.eventfd_write(event, 1)

    def submit(self, function: Callable[[], Any], done: Callable[[Future[Any]], object]) -> None:
        """Call ``function()`` in a thread, then ``done(future)`` in the loop.

        If no thread can be started, the limit of processes having been reached, the future has an OSError (EAGAIN).
        """
        if self._pool is None:
            self._pool = ThreadPoolExecutor(BLOCKING_THREADS, thread_name_prefix="blocking")
        future: Future[Any] = Future()
        try:
            call = self._pool.submit(_run, function, future)
            call.add_done_callback(lambda call: call.cancelled() and future.cancel())
        except RuntimeError as error:
            if self._is_closed:
                raise
            # The call may be in the queue of the pool all the same. It is not to run after all: it has failed.
            if future.cancel():
                future = Future()
                future.set_exception(OSError(errno.EAGAIN, str(error)))
        future.add_done_callback(lambda future: self.call_soon(partial(done, future), "done"))

    def close(self, wait: bool = False) -> None:
        """Start no more calls.

        :param wait: whether to wait for those that run, and to give everything back: for a process that lives on.
        """
        self._is_closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=wait, cancel_futures=True)
        if wait and self._event is not None:
            self._loop.unregister(self._event)
            os.close(self._event)
            self._event = None

    def _on_calls(self, mask: int) -> None:
        assert self._event is not None
        os.eventfd_read(self._event)
        for _ in range(len(self._calls)):
            self._guarded(*self._calls.popleft())


def _run(function: Callable[[], Any], future: Future[Any]) -> None:
    """Call it, in a thread, unless the call has been cancelled."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except BaseException as error:  # noqa: BLE001 - it is told in the loop
        future.set_exception(error)
    else:
        future.set_result(result)
