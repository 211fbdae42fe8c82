"""Copies of a server's process that a plugin makes by ``os.fork``, and how they are kept from doing harm.

Theory. A plugin may fork: ``multiprocessing`` does, and ``subprocess`` with ``preexec_fn``. Such a child runs its own
code, and ends. But a child that leaves the hook, by returning or by ``sys.exit()``, is a second worker on the first
one's connections, channel and epoll. It must end before it touches any of these. So must a child that uses its
connection, which belongs to its parent.

Checking the process in each event would slow down each event. Instead the interpreter calls ``_after_fork`` in the
child (``os.register_at_fork``). It closes the child's copies of what is shared, and replaces every method of the
engine's classes, in the child alone, by one that ends the process. The server's own forks are made by ``fork``.
Compiled methods call each other without looking at the class. So what is closed there must also be left in a state in
which they do nothing more (``Descriptor._abandon``), and where they are told of an exception they ask ``end_if_made``.

A C library forks without telling the interpreter. A page of memory that the kernel wipes in a child (MADV_WIPEONFORK,
madvise(2)) reveals this: ``end_if_copy`` looks at it whenever a process is about to speak for its worker.
"""

from __future__ import annotations

import logging
import mmap
import os
import signal
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any, Final, NoReturn

from . import signals

EXIT_COPY: Final = 5
_METHODS: Final = (types.FunctionType, types.MethodDescriptorType)  # the second: compiled ones

log = logging.getLogger("poolsrv.plugins")

_MADV_WIPEONFORK: Final = 18  # linux/mman.h, since Linux 4.14

# The first byte is 1 in the process that has called `guard`, and 0 in its copies. A hot path looks at it by itself, and
# calls `end_if_copy` where it is 0.
original: Final = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
with suppress(OSError):
    original.madvise(_MADV_WIPEONFORK)

is_copy = False  # this process is a copy that was not expected

_guard: tuple[tuple[type, ...], Callable[[], object]] | None = None
_expected = False
_registered = False
_former_mask: set[int] | None = None


def guard(classes: Iterable[type], shed: Callable[[], object]) -> None:
    """End any future copy of this process when it calls a method of these classes.

    :param classes: derived classes are included. Special methods and properties stay usable: a copy may write to the
        log.
    :param shed: called in the copy after the fork, to close what it shares with its parent.
    """
    global _guard, _registered
    _guard = (tuple(classes), shed)
    original[0] = 1
    if not _registered:
        _registered = True
        os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork)


def end_if_copy(how: str) -> None:
    """End this process if it is a copy of the one that called ``guard``; see ``end_copy``."""
    if _guard is not None and not original[0]:
        end_copy(how)


def end_if_made(how: str) -> None:
    """End this process if the interpreter has forked it as a copy of the one that called ``guard``."""
    if is_copy:
        end_copy(how)


def fork() -> int:
    """Fork a process of the server's own: as ``signals.fork``, and the child calls ``guard`` itself."""
    global _expected
    _expected = True
    try:
        return signals.fork()
    finally:
        _expected = False


def _before_fork() -> None:
    global _former_mask
    if _guard is not None and not _expected:
        # multiprocessing ends its children by TERM, which would be lost before they have its default action.
        _former_mask = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))


def _after_fork_in_parent() -> None:
    global _former_mask
    if _former_mask is not None:
        mask, _former_mask = _former_mask, None
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _after_fork() -> None:
    global _guard, is_copy
    if _guard is None:
        return
    (classes, shed), _guard = _guard, None  # a copy of the copy has nothing to close
    if _expected:
        return
    is_copy = True
    with suppress(Exception):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _after_fork_in_parent()
    with suppress(Exception):
        shed()
    for cls in _with_derived(classes):
        for name, member in list(vars(cls).items()):
            if isinstance(member, _METHODS) and not name.startswith("__"):
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
    """End this copy at once, with a line in the log. Neither stop hooks of plugins nor exit handlers run.

    :param how: what the copy was about to do.
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
