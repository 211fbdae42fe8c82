"""A request's body on its way to a stream, such as a program's standard input."""

from __future__ import annotations

from collections.abc import Callable

from poolsrv import Stream

__all__ = ["Feed"]

Callback = Callable[[], object]


class Feed:
    """Ends when the stream is closed: it has been given all, or takes no more.

    :param fed: called at the end, unless it is `abort` that ends it.
    :ivar on_over: called after it, for the response; None at first.
    """

    __slots__ = ("_fed", "_target", "on_over")

    def __init__(self, target: Stream, fed: Callback | None) -> None:
        self._target: Stream | None = target  # None: it has ended
        self._fed = fed
        self.on_over: Callback | None = None
        target.on_close = self._on_closed

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._target is None

    def close(self, last: bytes = b"") -> None:
        """The stream has been given all, but for these last bytes."""
        if self._target is not None:
            self._target.send(last)
            self._target.close()

    def abort(self) -> None:
        """Give it no more."""
        target, self._target = self._target, None
        if target is not None:
            target.abort()

    def _on_closed(self, target: Stream, error: BaseException | None) -> None:
        if self._target is None:
            return
        self._target = None
        for callback in (self._fed, self.on_over):
            if callback is not None:
                callback()
