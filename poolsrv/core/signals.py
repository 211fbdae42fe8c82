"""The signal pipe: a signal becomes a readable descriptor and a number in a list.

Theory. A signal handler may run between any two bytecodes, so it must do nothing but record; the event loop acts.
CPython offers two halves of that. ``signal.set_wakeup_fd`` has the C-level handler write the signal's number into a
socket, which wakes ``epoll_wait``; the Python-level handler runs a little later, in the main thread, and records the
number. The bytes only wake: when the socket is full a byte is dropped (without a warning), but the recorded number is
not, so a flood of one signal can't hide another.

Fork. A child that keeps the inherited wakeup descriptor writes its own signals into its parent's pipe. So all
signals are blocked across ``fork``, and the child makes a pipe of its own before it unblocks them.

The end. A process that ends in order keeps its handlers, and ends with ``os._exit``: a late signal is recorded, and
nobody reads it. Ignoring the signals first is not safe: one may come after CPython has looked for pending signals and
before it changes the handler, and then a traceback is printed ("ignored due to race condition"). Letting the
interpreter shut down is not safe either: that restores the default actions, and the next signal kills.
"""

from __future__ import annotations

import os
import signal
import socket
from _signal import pthread_sigmask as _sigmask  # type: ignore[import-not-found]
from _signal import signal as _set_handler
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Final

# signal.pthread_sigmask and signal.signal make enumeration members of what _signal's return: for all signals that takes
# 0.1 ms, in the dispatcher and in the worker at each fork. The worker would write to pages that it shares with the
# others, too.
_ALL: Final = tuple(map(int, signal.valid_signals()))


class SignalPipe:
    """Turns signals into events of one descriptor.

    Runs in the main thread; only one at a time in a process.

    :param signals: the signals to turn into events; ``close`` restores their former handlers.
    """

    def __init__(self, signals: Iterable[signal.Signals]) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._pending: list[int] = []
        # In this order: a signal recorded before there is a wakeup descriptor would not wake the loop.
        self._former_wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._former = {}
        for number in signals:
            self._former[number] = _set_handler(number, self._record)

    def fileno(self) -> int:
        """The descriptor that is readable when a signal has come."""
        return self._reader.fileno()

    def take(self) -> list[signal.Signals]:
        """Return the signals that have come since the last call, each once, in the order of their first arrival."""
        try:
            while len(self._reader.recv(4096)) == 4096:
                pass
        except BlockingIOError:
            pass
        # CPython marks the signal as tripped before it writes the byte, and runs the handlers of tripped signals at
        # the end of a call: for each byte that the recv above has taken, the number is in the list by now.
        pending, self._pending = self._pending, []
        return [signal.Signals(number) for number in dict.fromkeys(pending)]

    def _record(self, number: int, frame: FrameType | None) -> None:
        self._pending.append(number)

    def close(self) -> None:
        """Restore the former handlers and close the pipe."""
        signal.set_wakeup_fd(self._former_wakeup)
        for number, handler in self._former.items():
            _set_handler(number, handler)
        self._reader.close()
        self._writer.close()

    def abandon(self) -> None:
        """Close a forked child's copies of the parent's pipe; the child sets its own handlers."""
        signal.set_wakeup_fd(-1)
        self._reader.close()
        self._writer.close()


def fork() -> int:
    """Fork with all signals blocked.

    :returns: as ``os.fork``. In the child the signals stay blocked until it has made its own ``SignalPipe`` and calls
        ``unblock``.
    :raises OSError: as ``os.fork``.
    """
    former = _sigmask(signal.SIG_BLOCK, _ALL)
    pid = -1
    try:
        pid = os.fork()
    finally:
        if pid != 0:
            _sigmask(signal.SIG_SETMASK, former)
    return pid


def handle(number: int, handler: Callable[[int, FrameType | None], object] | None) -> None:
    """Set the handler of a signal; None: the default action."""
    _set_handler(number, int(signal.SIG_DFL) if handler is None else handler)


def unblock() -> None:
    """Unblock all signals. Pending ones are delivered first.

    A program inherits the signal mask of its parent (sigprocmask(2)), and a server that blocks TERM can't be stopped in
    order.
    """
    _sigmask(signal.SIG_SETMASK, ())
