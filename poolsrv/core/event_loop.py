"""The event loop: epoll from descriptor to callback, timers, and calls deferred to the end of an iteration.

Theory. One iteration (a *turn*) of the loop is: wait; call the callback of every descriptor that the kernel named; call
the timers that are due; make the deferred calls. Descriptors are level-triggered: a callback does one ``recv`` (a few,
if each gets as much as it has asked for) and returns; what it leaves makes the next ``wait`` return at once. So no
extra system call is needed to see EAGAIN, and no connection can starve the others.

A descriptor's number can come back within one batch of events: when a callback closes descriptor 9 and another
accepts, the new connection is 9, and an event for the old 9 that is still in the batch would go to it. Therefore
nothing is closed in the middle of a batch: owners unregister at once (their callback is then no longer called), and
close the descriptor with ``at_end_of_turn``. A plugin closes its own descriptors when it likes: where one with the same
number is registered in that turn, ``register`` takes the events of the old one out of the batch.

What has arrived before a timer is due is handled before that timer: a client that was in time is not to be told that it
was late because this process got no CPU. So a timer is called only if it was due before the latest look at the
descriptors began (``_looked``). ``poll`` alone does not say so much: interrupted for longer than its timeout, by a stop
and SIGCONT, it returns nothing, without another look.

Fork. The epoll descriptor is shared with a forked child, and so is the interest list behind it: a child that
unregistered a descriptor would take it from its parent. ``close`` therefore closes the child's copy and forgets.
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable
from itertools import count
from typing import Final

from .native import mypyc_attr

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
ERROR: Final = select.EPOLLERR
HANGUP: Final = select.EPOLLHUP
PEER_FINISHED: Final = select.EPOLLRDHUP
ONCE: Final = select.EPOLLONESHOT  # with another one: until ``modify``, only the first event is reported

Callback = Callable[[], object]
EventCallback = Callable[[int], object]

# Events taken by one wait: this limits how long an iteration can be, and so how late a timer.
MAX_EVENTS: Final = 512
MAX_WAIT: Final = 3600.0  # seconds; epoll takes its timeout in a C int of milliseconds


class Timer:
    """A callback that is due at a time of ``time.monotonic``, unless ``cancel`` is called before."""

    __slots__ = ("_loop", "callback", "due")

    def __init__(self, loop: EventLoop, due: float, callback: Callback) -> None:
        self._loop = loop
        self.due = due
        self.callback: Callback | None = callback

    def cancel(self) -> None:
        """Do not call the callback. Harmless if it was called or cancelled before."""
        if self.callback is not None:
            self.callback = None
            self._loop._count_cancelled()


@mypyc_attr(allow_interpreted_subclasses=True)
class EventLoop:
    """The loop of a process; the module's docstring has its rules.

    :ivar after_turn: called last in every iteration; for the owner of the loop.
    :ivar long_turn: seconds; ``on_long_turn(took)`` is called after an iteration that has taken longer, if a timer is
        set: then the clock is read anyway.
    :ivar now: when the latest wait ended, in seconds of ``time.monotonic``.
    :ivar turns: the number of iterations.
    :ivar events: the number of events dispatched, counted per batch.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, EventCallback] = {}
        self._batch: list[tuple[int, int]] = []  # the events of this turn
        self._left: dict[int, float] = {}  # by number: ``now`` of the turn in which it was last unregistered
        self._timers: list[tuple[float, int, Timer]] = []
        self._cancelled = 0
        self._sequence = count()
        self._put_off: list[Callback] = []
        self._stopped = False
        self._before: list[Callable[[list[tuple[int, int]]], object]] = []
        self.after_turn: Callback | None = None
        self.long_turn = float("inf")
        self.on_long_turn: Callable[[float], object] | None = None
        self._looked = self.now = time.monotonic()
        self.turns = 0
        self.events = 0

    # --- descriptors

    def register(self, fd: int, interest: int, callback: EventCallback) -> None:
        """Call ``callback(events)`` when ``fd`` has any of the events in ``interest``, an error or a hang-up. Its first
        event is one of a later turn: those in the current batch are of what had its number before.

        :raises OSError: as ``epoll_ctl(2)``.
        """
        self._epoll.register(fd, interest)
        # The kernel did not know the file yet: if there is a callback, its descriptor was closed without a word.
        if self._left.get(fd) == self.now or fd in self._callbacks:
            self._take_out(fd)
        self._callbacks[fd] = callback

    def modify(self, fd: int, interest: int) -> None:
        """Watch the descriptor for other events."""
        self._epoll.modify(fd, interest)

    def unregister(self, fd: int) -> None:
        """Stop watching a descriptor, before it is closed. Its events in the current batch are no longer delivered.

        The kernel forgets a file by itself only when its last copy is closed, whichever process has it (epoll(7)).
        """
        del self._callbacks[fd]
        self._left[fd] = self.now
        self._epoll.unregister(fd)

    def set_callback(self, fd: int, callback: EventCallback) -> None:
        """Replace the callback of a registered descriptor."""
        self._callbacks[fd] = callback

    def callback_of(self, fd: int) -> EventCallback | None:
        """The callback of a descriptor; None if it is not registered."""
        return self._callbacks.get(fd)

    def watches(self, fd: int) -> bool:
        """Whether the descriptor is registered."""
        return fd in self._callbacks

    def _take_out(self, fd: int) -> None:
        batch = self._batch
        for index, (number, _) in enumerate(batch):
            if number == fd:
                batch[index] = (-1, 0)  # nobody's

    # --- time

    def call_later(self, seconds: float, callback: Callback) -> Timer:
        """Call ``callback()`` once, ``seconds`` (not below 0) after the end of the latest wait."""
        timer = Timer(self, self.now + max(seconds, 0.0), callback)
        heapq.heappush(self._timers, (timer.due, next(self._sequence), timer))
        return timer

    def at_end_of_turn(self, callback: Callback) -> None:
        """Call ``callback()`` after the last event of this iteration, before the next wait."""
        self._put_off.append(callback)

    def before_next_turn(self, callback: Callable[[list[tuple[int, int]]], object]) -> None:
        """Call ``callback(events)`` once, after the next wait, before its events are dispatched. From any thread."""
        self._before.append(callback)

    # --- running

    def run(self) -> None:
        """Run until ``stop`` has been called."""
        while not self._stopped:
            self.dispatch(self.wait())
        self._stopped = False

    def turn(self, longest: float = MAX_WAIT) -> None:
        """Run one iteration, for callers with their own loop.

        :param longest: seconds to wait at most if nothing happens.
        """
        self.dispatch(self.wait(longest))

    def stop(self) -> None:
        """Make ``run`` return at the end of this iteration."""
        self._stopped = True

    def wait(self, longest: float = MAX_WAIT) -> list[tuple[int, int]]:
        """Wait for events or for the next timer; return the events as ``(descriptor, mask)``."""
        if self._put_off:
            longest = 0.0
            self._looked = self.now
        elif self._timers:
            longest = self._until_next_timer(longest)
        events = self._epoll.poll(longest, MAX_EVENTS)
        self.now = time.monotonic()
        if not events and longest:
            self._looked = self.now
            events = self._epoll.poll(0.0, MAX_EVENTS)
        if self._before:
            self._call_before(events)
        return events

    def dispatch(self, events: list[tuple[int, int]]) -> None:
        """Run the rest of the iteration: callbacks, timers, deferred calls. Separate from ``wait``, for tests."""
        self._batch = events
        find = self._callbacks.get
        for fd, mask in events:
            callback = find(fd)
            if callback is not None:
                callback(mask)
        self.turns += 1
        self.events += len(events)
        if self._timers and self._timers[0][0] <= self._looked:
            self._call_timers()
        if self._put_off:
            self._call_put_off()
        if self.after_turn is not None:
            self.after_turn()

    def _call_before(self, events: list[tuple[int, int]]) -> None:
        before, self._before = self._before, []
        for call in before:
            call(events)

    def _call_put_off(self) -> None:
        # Closing a connection takes up to three passes. What is deferred after that waits for the next iteration, so
        # that deferred calls can't hold up the events.
        for _ in range(3):
            put_off, self._put_off = self._put_off, []
            for call in put_off:
                call()
            if not self._put_off:
                break

    def _until_next_timer(self, longest: float) -> float:
        timers = self._timers
        while timers[0][2].callback is None:
            heapq.heappop(timers)
            self._cancelled -= 1
            if not timers:
                return longest
        self._looked = now = time.monotonic()
        if now - self.now > self.long_turn and self.on_long_turn is not None:
            self.on_long_turn(now - self.now)
        left = timers[0][0] - now
        if left <= 0:
            return 0.0
        return left if left < longest else longest

    def _call_timers(self) -> None:
        looked = self._looked
        first_new = next(self._sequence)  # call_later(0) in a callback waits for the next iteration
        # self._timers is looked up each time: a callback that cancels timers may have had it rebuilt.
        while self._timers and self._timers[0][0] <= looked and self._timers[0][1] < first_new:
            timer = heapq.heappop(self._timers)[2]
            callback, timer.callback = timer.callback, None
            if callback is None:
                self._cancelled -= 1
            else:
                callback()

    def _count_cancelled(self) -> None:
        # A cancelled timer stays in the heap until it is due; a time limit that is nearly always cancelled, like the
        # one of a program, must not fill it. Rebuilding when half of it is dead costs O(1) for each cancelled timer.
        self._cancelled += 1
        if self._cancelled > 64 and self._cancelled * 2 > len(self._timers):
            self._timers = [entry for entry in self._timers if entry[2].callback is not None]
            heapq.heapify(self._timers)
            self._cancelled = 0

    # --- the end

    def reopen(self) -> None:
        """After ``close``: be as new. For a loop that was made before a fork, for a child."""
        self._epoll = select.epoll()
        self.now = time.monotonic()

    def close(self) -> None:
        """Forget everything, and close the epoll descriptor; also in a forked child (see the module's docstring)."""
        self._callbacks.clear()
        self._batch = []
        self._left.clear()
        self._timers.clear()
        self._put_off.clear()
        self._epoll.close()

    def abandon(self, then: Callback) -> None:
        """In a copy of the process that has not been meant: as ``close``, and ``then()`` at the end of this turn."""
        self.close()
        self.after_turn = then
