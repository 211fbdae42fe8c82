"""Time that a test moves: the harness's event loop, and ``time.monotonic`` and ``time.time`` of the test's process.

While nothing is waited for, the loop's time stands still: a timer is due once the test has moved the time that far.
While the harness waits for a program, a thread or another server, it passes as it does outside. The functions of the
``time`` module are replaced when the time is first moved, until the harness is closed: they give what they always did,
and add by how much the time has been moved.
"""

from __future__ import annotations

import time
from typing import Any, Final

from ..core.event_loop import MAX_EVENTS, MAX_WAIT, EventLoop

_NANOSECONDS: Final = {"time_ns", "monotonic_ns"}
_REAL: Final = {name: getattr(time, name) for name in ("time", "monotonic", "time_ns", "monotonic_ns")}
_moved: dict[object, float] = {}  # how far each loop has moved the time, in seconds


class ClockedLoop(EventLoop):
    """An event loop whose time the test moves."""

    def wait(self, longest: float = MAX_WAIT) -> list[tuple[int, int]]:
        due = self.next_due()
        if self._put_off:
            longest = 0.0
        elif due is not None:
            longest = min(longest, max(due - self.now, 0.0))
        began = _REAL["monotonic"]()
        events: list[tuple[int, int]] = self._epoll.poll(longest, MAX_EVENTS)
        if longest:
            self.now += _REAL["monotonic"]() - began
        self._looked = self.now
        return events

    def next_due(self) -> float | None:
        """When the next timer is due, in seconds of ``now``; None if there is none."""
        while self._timers and self._timers[0][2].callback is None:
            self._until_next_timer(0.0)  # removes those that were cancelled
        return self._timers[0][0] if self._timers else None

    @property
    def has_work(self) -> bool:
        """Whether an iteration would do something without any event."""
        due = self.next_due()
        return bool(self._put_off) or (due is not None and due <= self.now)

    def move_to(self, when: float) -> None:
        """Let the time up to then, in seconds of ``now``, pass at once. Due timers run in the next iteration."""
        seconds = when - self.now
        if seconds <= 0:
            return
        self.now = when
        if not _moved:
            for name in _REAL:
                setattr(time, name, _moved_function(name))
        _moved[self] = _moved.get(self, 0.0) + seconds

    def close(self) -> None:
        super().close()
        if _moved.pop(self, None) is not None and not _moved:
            for name, function in _REAL.items():
                setattr(time, name, function)


def _moved_function(name: str) -> Any:
    real, unit = _REAL[name], 1_000_000_000 if name in _NANOSECONDS else 1

    def moved() -> Any:
        by = sum(_moved.values()) * unit
        return real() + (int(by) if unit > 1 else by)

    moved.__name__ = name
    return moved
