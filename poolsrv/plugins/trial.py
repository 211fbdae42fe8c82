"""Try plugins in a forked copy of this process, so that what their code does has no effect here."""

from __future__ import annotations

import logging
import os
import select
import signal
import time
from collections.abc import Iterable

from .discovery import Installed, PluginError
from .importing import import_class
from .plugin_class import class_errors, options_of

TIME_LIMIT = 5.0  # seconds


def usable(plugins: Iterable[Installed]) -> list[str]:
    """The names of the plugins that can be imported.

    Those that have not been tried within ``TIME_LIMIT`` count as unusable.
    """
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            _try(plugins, writer)
        finally:
            os._exit(0)
    os.close(writer)
    deadline, found = time.monotonic() + TIME_LIMIT, b""
    try:
        while select.select([reader], [], [], max(deadline - time.monotonic(), 0.0))[0]:
            if not (piece := os.read(reader, 65536)):
                break
            found += piece
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return [os.fsdecode(name) for name in found.split(b"\0")[:-1]]


def _try(plugins: Iterable[Installed], writer: int) -> None:
    """In the copy: write the name of each usable plugin, with a NUL after it."""
    logging.disable()
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    for plugin in plugins:
        try:
            cls = import_class(plugin)
            options_of(cls)
            errors = class_errors(cls)
        except PluginError:
            continue
        if not errors:
            os.write(writer, os.fsencode(plugin.name) + b"\0")
