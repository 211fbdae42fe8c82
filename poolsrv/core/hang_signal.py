"""The signal that has a hung process dump its stack, and the file that it writes the dump to (see stack_dump.py)."""

import os
import signal

HANG_SIGNAL = signal.SIGUSR2  # faulthandler answers it with a traceback, whatever Python is doing


def dump_file() -> int:
    """Make the file for one process, before that process is started; its descriptor.

    :raises OSError: no descriptor, or no memory.
    """
    return os.memfd_create("poolsrv-hang")
