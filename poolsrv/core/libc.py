"""The C library, for system calls that Python does not offer."""

from __future__ import annotations

import ctypes
import os
from typing import Final

libc: Final = ctypes.CDLL(None, use_errno=True)


def last_error() -> OSError:
    """Return the error of the last call of ``libc``."""
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number))


def prctl(option: int, argument: int = 0) -> int:
    """Call prctl(2).

    :raises OSError: the kernel refuses.
    """
    result: int = libc.prctl(option, argument, 0, 0, 0)
    if result < 0:
        raise last_error()
    return result
