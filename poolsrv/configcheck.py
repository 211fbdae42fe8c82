"""What HUP does for now: check the config in a fresh process, and log what that says."""

from __future__ import annotations

import logging
import os
import signal
import sys
from typing import Final

from . import children
from .children import describe_exit
from .eventloop import READ, EventLoop

log = logging.getLogger("poolsrv.pool")

TIME_LIMIT: Final = 60.0  # seconds; a plugin's import may hang
MAX_OUTPUT: Final = 65536  # bytes that are logged of what the check says


class ConfigCheck:
    """Runs ``poolsrv check`` on the config and the plugins as they now are on disk. In this process the plugins are
    imported already, and a new one might start a thread.

    :raises OSError: it can't be started.
    """

    def __init__(self, loop: EventLoop, path: os.PathLike[str]) -> None:
        self._loop = loop
        self._output = b""
        reader, writer = os.pipe2(os.O_CLOEXEC)
        try:
            self.pid = children.start_program(
                [sys.executable, "-m", "poolsrv", "check", "--config", os.fspath(path)],
                env=dict(os.environ),
                cwd=None,
                descriptors=(None, writer, writer),
            )
        except OSError:
            os.close(reader)
            raise
        finally:
            os.close(writer)
        os.set_blocking(reader, False)
        self._reader: int | None = reader
        loop.register(reader, READ, lambda _: self._read())
        self._timer = loop.call_later(TIME_LIMIT, lambda: children.signal_group(self.pid, signal.SIGKILL))

    def close(self) -> None:
        """Nobody wants to know any more. In a forked child: its copy of the pipe."""
        self._timer.cancel()
        if self._reader is not None:
            os.close(self._reader)
            self._reader = None

    def _read(self) -> bool:
        """Read a piece; False where there is none. A pipe at its end is always ready: it is watched no longer."""
        if self._reader is None:
            return False
        try:
            data = os.read(self._reader, 65536)
        except BlockingIOError:
            return False
        self._output += data[: MAX_OUTPUT - len(self._output)]
        if not data:
            self._loop.unregister(self._reader)
            self._loop.at_end_of_turn(self.close)
        return bool(data)

    def ended(self, returncode: int) -> None:
        """The check has been reaped: log what it has said."""
        while self._read():
            pass
        if self._reader is not None:
            self._loop.unregister(self._reader)
            self._loop.at_end_of_turn(self.close)
        for line in self._output.decode(errors="replace").splitlines():
            log.log(logging.INFO if returncode == 0 else logging.ERROR, "config check: %s", line)
        if returncode == 0:
            log.info("the config is sound; restart the server to apply it")
        else:
            log.error("the config can't be used (the check %s); the server goes on as it is", describe_exit(returncode))
