"""Import a plugin's class.

This happens in the process that will fork the workers, so an import that leaves a thread behind is an error.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from ..config.model import RESERVED_NAMES
from ..core.words import did_you_mean, one_of, quoted
from .blame import blamed
from .discovery import Installed, PluginError
from .uninstalled import Uninstalled, importable

_THREAD_GRACE = 1.0  # seconds: the kernel may still list a thread that has been joined


def import_class(plugin: Installed) -> type[Any]:
    """Import a plugin's class.

    :raises PluginError: it can't be imported, is not a class, or its import starts a thread.
    """
    if plugin.name in RESERVED_NAMES:
        raise PluginError("has the name of one of a listener's own keys, expected another name")
    if plugin.rivals:
        raise PluginError(f"is offered by {one_of((plugin.distribution, *plugin.rivals), 'and')}, expected one of them")
    module_name, _, attribute = plugin.target.partition(":")
    place = importable(plugin) if isinstance(plugin, Uninstalled) else nullcontext()
    with place, blamed("can't be imported"), no_new_threads("its import"):
        target: Any = import_module(module_name.strip())
        path = module_name.strip()
        for name in filter(None, attribute.strip().split(".")):
            if not hasattr(target, name):
                raise PluginError(f"can't be imported: {path} has no {quoted(name)}{did_you_mean(name, vars(target))}")
            target = getattr(target, name)
            path = f"{path}.{name}"
    if not isinstance(target, type):
        raise PluginError(f"is a {type(target).__name__}, expected a class, such as {module_name}:Shout")
    return target


@contextmanager
def no_new_threads(where: str) -> Iterator[None]:
    """Refuse threads. A fork copies only the thread that forks; locks that other threads hold stay locked in the copy.

    :raises PluginError: the block has left a thread behind.
    """
    before = _threads()
    yield
    deadline = time.monotonic() + _THREAD_GRACE
    while new := _threads() - before:
        if time.monotonic() > deadline:
            names = {thread.native_id: thread.name for thread in threading.enumerate()}
            shown = ", ".join(quoted(names.get(number) or _thread_name(number)) for number in sorted(new))
            raise PluginError(f"starts a thread in {where} ({shown}), expected none before on_worker_start")
        time.sleep(0.005)


def _threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def _thread_name(number: int) -> str:
    try:
        return Path(f"/proc/self/task/{number}/comm").read_text(errors="replace").strip()  # any bytes
    except OSError:
        return str(number)
