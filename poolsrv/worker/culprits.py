"""Names the plugin whose code a worker is running, for the stack dump of a hung worker."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import FrameType

from .hooks import HookedListener, Hooks, blamed, owner
from .metrics import PluginOf


def add_culprit(fd: int, frame: FrameType | None, all_hooks: Iterable[Hooks]) -> None:
    """In the worker, in a handler of the signal: write down whose code is running. It never raises.

    :param fd: the hang file.
    :param frame: what was running.
    """
    with suppress(Exception):
        name = blamed(frames_from(frame), all_hooks)
        if name is not None:
            os.write(fd, f"\nplugin {name}\n".encode())


def frames_from(frame: FrameType | None) -> list[FrameType]:
    """The frames of a stack, the innermost first."""
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    return frames


def running_plugin(listeners: Sequence[HookedListener]) -> PluginOf:
    """The plugin whose code is running: known in ``on_worker_start``, elsewhere told from the stack.

    :raises RuntimeError: it can't be told.
    """
    for listener in listeners:
        if listener.hooks.called:
            return PluginOf(listener.name, listener.hooks.called)
    found = owner(frames_from(sys._getframe(1)), listeners)
    if found is None:
        raise RuntimeError("define metrics in on_worker_start: here it can't be told whose they are")
    return found
