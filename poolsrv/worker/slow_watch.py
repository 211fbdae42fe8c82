"""Slow hooks: names the plugin whose hook or callback holds up a worker, while it runs and when it has returned.

Theory. Reading a clock around each call would slow down every event. Instead, a thread wakes up three times in
``slow_hook``. If the loop has not finished an iteration since, the thread looks at its stack for a call of plugin code.
If it is the same call as before, it has been running since then. The loop itself logs and counts what the thread has
seen. At the end of an iteration it notices that it was a long one, from a reading of the clock that it needs anyway.

While nothing happens the thread sleeps, without a wake-up, until the loop has events again.

Where the engine is compiled, its functions have no frames. Then the function that runs the loop stands for the loop.
What is called is told by those that stay in plain Python for that (net/guarded_calls.py, worker/hooks.py), and the
listener by a connection among the plugin's own variables.

A call is a frame. The thread that drops the last reference to a frame runs the destructors of its variables, which may
be a plugin's. So the watching thread keeps the frames that it has seen until the loop's thread has released them.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from _thread import allocate_lock, get_ident, start_new_thread
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Final, Protocol

import pluggy

from ..core.event_loop import EventLoop
from .connection import Connection
from .culprits import frames_from
from .hooks import HOOK_NAMES, Hooks, owner
from .metrics import PluginOf

if TYPE_CHECKING:
    from .engine_metrics import ListenerMetrics

log = logging.getLogger("poolsrv.plugins")

LOOKS: Final = 3  # within slow_hook: a call that takes as long is seen at least twice
LOOKS_UNTIL_SLEEP: Final = 10  # at a loop that does nothing
MOST_FRAMES: Final = 6  # that are shown
_ENGINE: Final = (str(Path(__file__).parent.parent) + os.sep, str(Path(pluggy.__file__).parent) + os.sep)
# Of the loop; None where it is compiled, and has no frames.
_WAIT: Final = getattr(EventLoop.wait, "__code__", None)
_DISPATCH: Final = getattr(EventLoop.dispatch, "__code__", None)
# Functions of the engine that call plugins, and the hook; others have it in a variable.
_CALLERS: Final = {"_on_event": "on_readable", "_begin": "on_connection_init"}
_VARIABLES: Final = ("what", "hook")
_WITHOUT_FRAMES: Final = "on_readable"  # what compiled code calls by itself, besides functions with a hook's name


class WatchedListener(Protocol):
    """A listener in this worker."""

    name: str
    hooks: Hooks
    metrics: ListenerMetrics


class _Call:
    """A call of plugin code that has been seen.

    :ivar since: when it was seen first.
    :ivar until: when it was seen last.
    :ivar told: the log says that it is running.
    """

    __slots__ = ("frame", "hook", "listener", "plugin", "since", "told", "until")

    def __init__(self, frame: FrameType, since: float, until: float) -> None:
        self.frame: FrameType | None = frame
        self.since = since
        self.until = until
        self.plugin = ""
        self.listener = ""
        self.hook = ""
        self.told = False


class SlowWatch:
    """Watches the loop of the thread that calls ``begin``.

    :param limit: seconds, above 0, from which on a call is slow.
    """

    def __init__(self, loop: EventLoop, listeners: Sequence[WatchedListener], limit: float) -> None:
        self._loop = loop
        self._listeners = listeners
        self._limit = limit
        self._period = limit / LOOKS
        self._thread = 0
        self._runner: FrameType | None = None  # runs a compiled loop
        self._calls: list[_Call] = []  # of this iteration
        self._looked_at = self._cpu = 0.0
        self._busy = allocate_lock()  # held while the thread is to sleep

    def begin(self) -> None:
        """Begin to watch. The thread starts when the loop has something to do: a worker is ready without it."""
        self._thread = get_ident()
        self._busy.acquire()
        self._loop.before_next_turn(self._start)

    def _start(self, events: object) -> None:
        if _DISPATCH is None:
            self._runner = sys._getframe(1)
        # Signals are for the loop's thread: it is to be interrupted by them.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            start_new_thread(self._watch, ())
        except RuntimeError:
            log.warning("slow hooks are not logged: can't start a thread")
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._wake(events)

    # --- in the loop's thread

    def _wake(self, events: object) -> None:
        if self._busy.locked():
            self._busy.release()

    def turn_was_long(self, took: float) -> None:
        """Tell of the slow calls in an iteration that has taken so many seconds, and ends now."""
        calls, self._calls = self._calls, []
        calls = [call for call in calls if call.since >= self._loop.now and call.hook]
        for call in calls:
            seconds = took if len(calls) == 1 else call.until - call.since + self._period
            if seconds >= self._limit:
                self._tell_of(call, seconds)

    def _tell_of(self, call: _Call, seconds: float) -> None:
        for one in self._listeners:
            if one.name == call.listener:
                one.metrics.slow(call.plugin, call.hook)
        who = f"plugin {call.plugin!r}" if call.plugin else "a plugin"
        log.warning(
            "%s: %s took %.2f s in %s: the worker's other connections had to wait",
            call.listener or "worker",
            who,
            seconds,
            call.hook,
            extra={"listener": call.listener, "plugin": call.plugin, "hook": call.hook},
        )

    def _let_go(self) -> None:
        for call in self._calls:
            call.frame = None

    # --- in the other thread

    def _watch(self) -> None:
        while True:
            self._busy.acquire()
            self._look_until_idle()
            self._loop.before_next_turn(self._wake)
            if not self._is_waiting():
                self._wake(None)  # an event has come in between

    def _look_until_idle(self) -> None:
        self._looked_at, self._cpu = time.monotonic(), time.process_time()
        idle, turns = 0, -1
        while idle < LOOKS_UNTIL_SLEEP:
            time.sleep(self._period)
            if self._loop.turns != turns:  # no call has been running since before: there is no need to look
                idle, turns = 0, self._loop.turns
            elif self._is_waiting():
                idle += 1
            else:
                idle = 0
                self._look()
            self._looked_at, self._cpu = time.monotonic(), time.process_time()

    def _is_waiting(self) -> bool:
        frame = sys._current_frames().get(self._thread)
        return frame is None or frame.f_code is _WAIT or frame is self._runner

    def _look(self) -> None:
        frames = frames_from(sys._current_frames().get(self._thread))
        depth = self._outermost_of_plugin(frames)
        if depth is None:
            return
        now = time.monotonic()
        latest = self._calls[-1] if self._calls else None
        if latest is not None and latest.frame is frames[depth]:
            latest.until = now
            if not latest.hook:
                self._identify(latest, frames, depth)
            if now - latest.since >= self._limit and not latest.told:
                latest.told = True
                self._tell_that_it_runs(latest, now - latest.since, frames[: depth + 1])
            return
        call = _Call(frames[depth], now, now)
        gap = now - self._looked_at
        if gap > 2 * self._period and time.process_time() - self._cpu > gap / 2:
            # This thread could not run: C code has held the interpreter, and it is probably this call's.
            call.since = max(self._looked_at, self._loop.now)
            self._identify(call, frames, depth)
        self._calls.append(call)
        self._loop.at_end_of_turn(self._let_go)

    def _identify(self, call: _Call, frames: Sequence[FrameType], depth: int) -> None:
        hook, listener = self._caller(frames, depth)
        listeners = [one for one in self._listeners if one.name == listener] or self._listeners
        found = owner(frames[: depth + 1], listeners)
        if found is None and len(listeners) == 1 and len(listeners[0].hooks.plugins) == 1:
            found = PluginOf(listeners[0].name, listeners[0].hooks.plugins[0].name)
        call.listener, call.plugin = (listener, "") if found is None else (found.listener, found.plugin)
        call.hook = hook

    def _tell_that_it_runs(self, call: _Call, seconds: float, frames: Sequence[FrameType]) -> None:
        who = f"plugin {call.plugin!r}" if call.plugin else "a plugin"
        where = ", called by ".join(map(_place, frames[:MOST_FRAMES]))
        log.warning(
            "%s: %s has been in %s for %.2f s, and still is, in %s",
            call.listener or "worker",
            who,
            call.hook,
            seconds,
            where,
            extra={"listener": call.listener, "plugin": call.plugin, "hook": call.hook, "reason": where},
        )

    # --- frames

    def _is_loop(self, frame: FrameType) -> bool:
        return frame is self._runner or frame.f_code is _DISPATCH

    def _outermost_of_plugin(self, frames: Sequence[FrameType]) -> int | None:
        """The place of the outermost frame that is not the engine's, within an iteration of the loop."""
        turn = next((place for place, frame in enumerate(frames) if self._is_loop(frame)), 0)
        for depth in range(turn - 1, -1, -1):
            if not frames[depth].f_code.co_filename.startswith(_ENGINE):
                return depth
        return None

    def _caller(self, frames: Sequence[FrameType], depth: int) -> tuple[str, str]:
        """The hook or the callback that is being called, and the connection's listener; empty if there is none."""
        name = frames[depth].f_code.co_name
        hook = name if name in HOOK_NAMES else ""
        listener = ""
        for frame in frames[depth + 1 :]:
            if self._is_loop(frame):
                break
            variables = frame.f_locals
            if not hook:
                said = next((variables[one] for one in _VARIABLES if isinstance(variables.get(one), str)), "")
                hook = _CALLERS.get(frame.f_code.co_name) or said
            if not listener:
                found = getattr(variables.get("self", variables.get("owner")), "listener", None)
                listener = found if isinstance(found, str) else ""
        if self._runner is not None:
            hook = hook or _WITHOUT_FRAMES
            listener = listener or _listener_of(frames[depth])
        return hook or name, listener


def _listener_of(frame: FrameType) -> str:
    """That of the connection that a plugin's function has been given."""
    return next((value.listener for value in frame.f_locals.values() if isinstance(value, Connection)), "")


def _place(frame: FrameType) -> str:
    return f"{frame.f_code.co_name}, {frame.f_code.co_filename}:{frame.f_lineno}"
