"""Copies of a server's process that a plugin makes by ``os.fork``: what they must not do.

Theory. A plugin may fork: ``multiprocessing`` does, ``subprocess`` with ``preexec_fn`` does. Such a child runs what its
maker has for it, and ends. But a child that comes back out of the hook, by returning or by ``sys.exit()``, is a
second worker on the first one's connections, channel and epoll. It must end before it touches any of these; the same
goes for one that uses its connection, which is its parent's.

To ask in each event who one is would cost each event. Instead the interpreter calls ``_after_fork`` in the child
(``os.register_at_fork``), which closes the child's copies of what is shared, and there alone has every method of the
engine's classes end the process. The server's own forks are announced by ``expected``.

A C library forks without telling the interpreter. Of that a page of memory tells which the kernel wipes in a child
(MADV_WIPEONFORK, madvise(2)): ``end_if_copy`` looks at it, where a process is about to speak for its worker.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn

EXIT_COPY: Final = 5

log = logging.getLogger("poolsrv.plugins")

_MADV_WIPEONFORK: Final = 18  # linux/mman.h, since Linux 4.14

_page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
with suppress(OSError):
    _page.madvise(_MADV_WIPEONFORK)

_guard: tuple[tuple[type, ...], Callable[[], object]] | None = None
_expected = False
_registered = False
_former_mask: set[int] | None = None


def guard(classes: Iterable[type], shed: Callable[[], object]) -> None:
    """From now on a copy of this process that calls a method of these classes ends.

    :param classes: those that are derived from them included. Special methods and properties can still be used: a copy
        may write a line to the log.
    :param shed: called in the copy before that, to close what is shared with its parent.
    """
    global _guard, _registered
    _guard = (tuple(classes), shed)
    _page[0] = 1
    if not _registered:
        _registered = True
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork)


def end_if_copy(how: str) -> None:
    """End this process if it is a copy of the one that has called ``guard``; see ``end_copy``."""
    if _guard is not None and not _page[0]:
        end_copy(how)


@contextmanager
def expected() -> Iterator[None]:
    """A fork in this block is the server's own; its child guards itself."""
    global _expected
    _expected = True
    try:
        yield
    finally:
        _expected = False


def _before_fork() -> None:
    global _former_mask
    if _guard is not None and not _expected:
        # By TERM multiprocessing ends its children; before they have its default action it would be lost.
        _former_mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))


def _after_fork_in_parent() -> None:
    global _former_mask
    if _former_mask is not None:
        mask, _former_mask = _former_mask, None
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork() -> None:
    global _guard
    if _guard is None:
        return
    (classes, shed), _guard = _guard, None  # a copy of the copy has nothing to close
    if _expected:
        return
    with suppress(Exception):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _after_fork_in_parent()
    with suppress(Exception):
        shed()
    for cls in _with_derived(classes):
        for name, member in list(vars(cls).items()):
            if isinstance(member, types.FunctionType) and not name.startswith("__"):
                _replace(cls, name)


def _with_derived(classes: Iterable[type]) -> Iterator[type]:
    for cls in classes:
        yield cls
        yield from _with_derived(cls.__subclasses__())


def _replace(cls: type, name: str) -> None:
    def ends_instead(*arguments: Any, **named: Any) -> NoReturn:
        end_copy(f"{cls.__name__}.{name}")

    setattr(cls, name, ends_instead)


def end_copy(how: str) -> NoReturn:
    """End this copy, at once, with a line in the log: no plugin's stop hooks, nothing that an exit would call.

    :param how: what it was about to do.
    """
    with suppress(Exception):
        log.error(
            "a copy of this process that a plugin has made with os.fork() has come back to the server (%s): it ends."
            " A forked child must end by os._exit()",
            how,
        )
    with suppress(Exception):
        sys.stderr.flush()
    os._exit(EXIT_COPY)
