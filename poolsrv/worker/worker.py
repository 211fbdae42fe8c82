"""What a worker gives a plugin to end something with."""

from __future__ import annotations

from collections.abc import Callable


class Handle:
    """What ``Worker.every`` and ``Worker.add_reader`` return: ``cancel`` ends it."""

    __slots__ = ("_cancel",)

    def __init__(self, cancel: Callable[[], object]) -> None:
        self._cancel: Callable[[], object] | None = cancel

    def cancel(self) -> None:
        """No more calls. Harmless when called again."""
        cancel, self._cancel = self._cancel, None
        if cancel is not None:
            cancel()
