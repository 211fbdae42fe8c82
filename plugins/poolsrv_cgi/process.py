"""A process that runs for a connection: what to start, and what it is once it has been started, cold or warm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from poolsrv import Connection, Stream

__all__ = ["Launch", "Process"]


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """What to start. Descriptors are as `Connection.spawn` takes them: one of them, `PIPE`, the connection, or None.

    :ivar environment: all of it.
    :ivar cwd: the working directory; None is the server's.
    :ivar stderr: None is the server's log, line by line.
    :ivar warm: the command of the warm interpreter that is to run it, None for a process of its own.
    :ivar real_directory: of a script that runs warm, without symbolic links; "" where that is not known.
    """

    argv: Sequence[str]
    environment: Mapping[str, str]
    cwd: str | None
    stdin: Connection | int | None
    stdout: Connection | int | None
    stderr: Connection | int | None = None
    warm: tuple[str, ...] | None = None
    real_directory: str = ""


class Process(Protocol):
    """What a `Child` and a `WarmChild` have in common."""

    stdin: Stream | None
    stdout: Stream | None
    returncode: int | None
    outlives: bool

    @property
    def pid(self) -> int:
        """Process id; 0 until a warm interpreter has reported it."""

    def terminate(self, grace: float = ...) -> None:
        """End its process group."""
