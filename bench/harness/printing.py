"""What becomes of a command whose output nobody reads.

It is the same as tools/printing.py: scripts of the benchmark have their own folder on ``sys.path``, not the project's.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Run a command, and exit with its status. If what reads its output has ended, as `head` does, so does it."""
    try:
        status = main()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed at the exit
        status = 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        status = 128 + signal.SIGINT
    sys.exit(status)
