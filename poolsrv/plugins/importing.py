"""Import a plugin's class, and turn whatever its code raises into an error of one line that names the place.

This happens in the process that will fork the workers, so an import that leaves a thread behind is an error too.
"""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from ..config.model import RESERVED_NAMES
from ..core.words import did_you_mean, one_of, quoted
from .discovery import Installed, PluginError
from .uninstalled import Uninstalled, importable

_ENGINE = str(Path(__file__).parent.parent) + os.sep
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
def blamed(failing: str) -> Iterator[None]:
    """Turn whatever the plugin's code in the block raises into a PluginError that tells where it was raised.

    :param failing: what the plugin does then: ``"can't be imported"``.
    """
    try:
        yield
    except (PluginError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a plugin's sys.exit() is its fault too
        raise PluginError(f"{failing}: {_in_one_line(error)}") from error


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


def _in_one_line(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    text = " ".join(str(error).split())
    return ": ".join(filter(None, (type(error).__name__, text))) + _place(error)


def _place(error: BaseException) -> str:
    """The line that raised it, of the plugin or of a library of its: not of the standard library or the engine."""
    try:
        import sysconfig  # only a plugin with an error needs it

        standard = sysconfig.get_path("stdlib")
        frames = traceback.extract_tb(error.__traceback__)
    except OSError:  # no descriptors are left, which may be the very error
        return ""
    for frame in reversed(frames):
        packaged = "site-packages" in frame.filename or "dist-packages" in frame.filename
        is_engine = frame.filename.startswith((_ENGINE, "<frozen"))
        if is_engine or (frame.filename.startswith(standard) and not packaged):
            continue
        return f" ({frame.filename}, line {frame.lineno})"
    return ""
