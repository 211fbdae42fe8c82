"""What the kernel says of processes."""

from __future__ import annotations

import os

from poolsrv.core import procfs


def test_the_usage_of_this_process() -> None:
    found = procfs.usage(os.getpid())
    assert found is not None
    assert found.memory > 1 << 20
    assert found.age > 0
    assert procfs.command(os.getpid())
    assert procfs.usage(1 << 22) is None
    assert procfs.command(1 << 22) == ""
