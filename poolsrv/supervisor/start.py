"""The start of the supervisor's process, and its end."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Mapping
from typing import Any, NoReturn

from ..core import logs, processes
from ..core.dumpable import set_dumpable
from ..core.held_signals import hold
from ..core.listening_sockets import given_sockets
from ..core.titles import set_title
from .interpreter import PoolInterpreter
from .pool import EXIT_FAILED
from .process import Supervisor


def run(
    config: str,
    level: str | None,
    arguments: Mapping[str, Any] | None = None,
    interpreter: PoolInterpreter | None = None,
) -> NoReturn:
    """Serve until stopped, and end the process.

    Exit codes: 0 after a stop; if the server could not start, 1, or 2 for an error in the config.

    :param config: the config file, or the command whose arguments are the config.
    :param level: the lowest level to log; None: what the config says.
    :param arguments: these arguments, as JSON has them.
    :param interpreter: that of the first pool, if it has been started already.
    """
    hold()
    set_dumpable(False)
    logs.set_role("supervisor")
    set_title("supervisor")
    try:
        given = given_sockets()  # before close_on_exec_from makes all descriptors look like this process's own
    except ValueError as error:
        logs.say([f"poolsrv: {error}"])
        os._exit(EXIT_FAILED)
    processes.close_on_exec_from(3)
    gc.enable()
    code = Supervisor(config, level, given, arguments, interpreter).run()
    logging.shutdown()
    # At once: a signal that comes while the interpreter shuts down must not change how the server has ended.
    os._exit(code)
