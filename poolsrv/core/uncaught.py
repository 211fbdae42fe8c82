"""Uncaught exceptions go to the log.

By default Python writes them to standard error, and waits there for a reader: an exception in a destructor or in a
callback of C code, one in a thread, one that ends the process, and a log record that can't be formatted. A client that
causes one again and again would fill the log, so only some are logged, and the others are counted.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any, Final

log = logging.getLogger("poolsrv.uncaught")

MOST: Final = 10  # logged within ``SPAN``
SPAN: Final = 10.0  # seconds

_expected: list[Callable[[Any], bool]] = []


class _Limit:
    """Admits some exceptions to the log, and counts the rest."""

    def __init__(self) -> None:
        self._began = float("-inf")
        self._told = 0
        self._untold = 0

    def admits(self) -> bool:
        now = time.monotonic()
        if now - self._began >= SPAN:
            if self._untold:
                log.error("exceptions that nobody has caught, and that are not shown: %d", self._untold)
            self._began, self._told, self._untold = now, 0, 0
        if self._told >= MOST:
            self._untold += 1
            return False
        self._told += 1
        return True


_limit = _Limit()


def install() -> None:
    """Log uncaught exceptions of this process and of its forks from now on. Harmless when called again."""
    logging.raiseExceptions = False
    sys.excepthook = _ends_the_process
    sys.unraisablehook = _unraisable
    threading.excepthook = _in_a_thread


def expect(is_expected: Callable[[Any], bool]) -> None:
    """Do not log exceptions that are reported in another way.

    :param is_expected: called with the argument of ``sys.unraisablehook``.
    """
    if is_expected not in _expected:
        _expected.append(is_expected)


def _ends_the_process(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        log.critical("an exception that nobody has caught ends this process", exc_info=(kind, error, traceback))


def _unraisable(args: Any) -> None:
    with suppress(BaseException):  # Python would write an exception of this hook to standard error
        if any(is_expected(args) for is_expected in _expected) or not _limit.admits():
            return
        error = args.exc_value if args.exc_value is not None else args.exc_type()
        log.error("exception ignored in %s", _shown(args.object), exc_info=(args.exc_type, error, args.exc_traceback))


def _in_a_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is SystemExit or not _limit.admits():
        return
    name = args.thread.name if args.thread is not None else "?"
    error = args.exc_value if args.exc_value is not None else args.exc_type()
    log.error("thread %s has ended by an exception", name, exc_info=(args.exc_type, error, args.exc_traceback))


def _shown(value: object) -> str:
    try:
        return repr(value)[:200]
    except Exception:  # noqa: BLE001 - its own __repr__ may do anything
        return f"a {type(value).__name__}"
