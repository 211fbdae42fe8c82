"""Bodies that are kept until they are whole."""

from __future__ import annotations

import os
from typing import Any

import pytest
from poolsrv_http.spool import Spool


class Account:
    """Counts nothing."""

    def take(self, size: int) -> None:
        """There is room."""

    give_back = take


def test_a_program_can_only_read_it() -> None:
    """It would write more than `max_spooled`, and in a sandbox that lets it write to no file."""
    account: Any = Account()
    spool = Spool(10, account)
    spool.write(b"0123456789")
    spool.write(b"abcdefghij")
    fd = spool.rewound_descriptor()
    assert os.read(fd, 100) == b"0123456789abcdefghij"
    for change in (lambda: os.write(fd, b"x"), lambda: os.ftruncate(fd, 1 << 20)):
        with pytest.raises(OSError, match=r"Bad file descriptor|Invalid argument"):
            change()
    assert os.read(spool.rewound_descriptor(), 100) == b"0123456789abcdefghij"
    spool.forget()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
