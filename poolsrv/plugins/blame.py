"""Whatever a plugin's code raises while it is loaded becomes an error of one line that names the place.

That includes ``SystemExit`` and ``KeyboardInterrupt``: a plugin that raises them has failed like any other. Only a
signal means that the operator has pressed Ctrl-C, and then the command is to end, whatever the plugin makes of it.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from .discovery import PluginError

_ENGINE = str(Path(__file__).parent.parent) + os.sep


@contextmanager
def blamed(failing: str, *, tells_place: bool = True) -> Iterator[None]:
    """Turn whatever the plugin's code in the block raises into a PluginError that tells where it was raised.

    :param failing: what the plugin does then: ``"can't be imported"``.
    :param tells_place: False: the code is evaluated, and has no place.
    :raises KeyboardInterrupt: SIGINT has come meanwhile.
    """
    with _interruptible():
        try:
            yield
        except PluginError:
            raise
        except BaseException as error:
            raise PluginError(f"{failing}: {_in_one_line(error, tells_place)}") from error


@contextmanager
def _interruptible() -> Iterator[None]:
    """End the block with KeyboardInterrupt if SIGINT's handler has raised something in it."""
    former = signal.getsignal(signal.SIGINT)
    if not callable(former) or threading.current_thread() is not threading.main_thread():
        yield  # a signal raises nothing here
        return
    interrupted = False

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        try:
            former(number, frame)
        except BaseException:
            interrupted = True
            raise

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is on_interrupt:
            signal.signal(signal.SIGINT, former)
        if interrupted:
            raise KeyboardInterrupt


def _in_one_line(error: BaseException, tells_place: bool) -> str:
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    try:
        text = " ".join(str(error).split())
    except BaseException:  # noqa: BLE001 - this is the plugin's code too
        text = ""
    return ": ".join(filter(None, (type(error).__name__, text))) + (_place(error) if tells_place else "")


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
