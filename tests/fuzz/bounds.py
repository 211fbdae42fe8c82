"""That the work for an input grows with its length, and not with the square of it."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable

from .source import cut

SIZE = 1 << 14  # bytes that an input is repeated to
MOST = 2.0  # seconds of CPU time for these; what is linear takes hundredths, even while lines are counted
ONE_OF = 512  # inputs


def check_work(work: Callable[[list[bytes]], object], data: bytes) -> None:
    """Repeat an input's bytes until they are many, and do the work in small pieces. Only for some inputs: it is slow.

    :param work: takes pieces.
    """
    digest = zlib.crc32(data)
    if not data or digest % ONE_OF:
        return
    for tail in (data[len(data) // 2 :], data[-1:]):
        repeated = data + tail * (SIZE // len(tail))
        pieces = cut(repeated[:SIZE], 1 + digest % 255)
        began = time.thread_time()
        work(pieces)
        took = time.thread_time() - began
        assert took < MOST, f"{took:.1f} s for {SIZE} bytes"
