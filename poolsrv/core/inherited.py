"""Descriptors that this process has got from the one that started it."""

import os


def inherited_descriptors() -> list[int]:
    """Return the descriptors from 3 on that were open before the exec.

    These stay open over another exec too. Descriptors that this process has opened itself do not (PEP 446).

    :raises OSError: /proc can't be read.
    """
    found = []
    for fd in sorted(map(int, os.listdir("/proc/self/fd"))):
        try:
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
        except OSError:
            pass  # the descriptor of the listing itself
    return found
