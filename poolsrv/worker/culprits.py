"""Names the plugin whose code a worker is running, for the stack dump of a hung worker."""

from __future__ import annotations

import os
from collections.abc import Iterable
from contextlib import suppress
from types import FrameType

from .hooks import Hooks, blamed


def add_culprit(fd: int, frame: FrameType | None, all_hooks: Iterable[Hooks]) -> None:
    """In the worker, in a handler of the signal: write down whose code is running. It never raises.

    :param fd: the hang file.
    :param frame: what was running.
    """
    with suppress(Exception):
        frames = []
        while frame is not None:
            frames.append(frame)
            frame = frame.f_back
        name = blamed(frames, all_hooks)
        if name is not None:
            os.write(fd, f"\nplugin {name}\n".encode())
