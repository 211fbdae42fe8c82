"""The command line of another process of the server: the same interpreter. Imports only what takes no time."""

from __future__ import annotations

import os
import sys


def command_for(code: str, *fds: int) -> list[str]:
    """Build it: the interpreter looks for poolsrv where this one has found it.

    :param code: what it runs.
    :param fds: descriptors that it inherits, as its arguments.
    """
    # "-c" has the current directory searched first, as it was for this process only if it was started by "-m".
    safe = [] if sys.path and sys.path[0] in ("", os.getcwd()) else ["-P"]
    return [sys.executable, *safe, "-c", code, *map(str, fds)]
