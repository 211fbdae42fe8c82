"""The interpreter of a pool: a fresh process that imports the engine, and then waits for the message ``start``.

Theory. Most of a start is imports: those of the supervisor, and those of the pool, which are twice as many. So
``poolsrv/__main__.py`` starts the first pool's interpreter before it imports the supervisor, and both import at once.
The pool learns from the supervisor what it is to do, and does nothing before. If the supervisor ends first, the
pool reads the end of file, and ends too.

Therefore this module imports only what an interpreter needs a few milliseconds for: no ``typing``, no ``logging``.
"""

from __future__ import annotations

import os
import socket
import sys

from ..core.hang_signal import HANG_SIGNAL, dump_file
from ..core.held_signals import OF_A_POOL
from ..core.interpreter_command import command_for

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

# What the service manager tells the supervisor alone. core/systemd.py takes it out of the environment, but later.
FOR_THE_SUPERVISOR = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")
# As "-m poolsrv.dispatcher", but without runpy, whose import takes 5 ms, and without garbage collection while the
# modules are imported, which takes 9.
_START = "import gc; gc.disable(); from poolsrv.dispatcher.__main__ import main; main()"


class PoolInterpreter:
    """Starts it.

    :param inherited: descriptors of this process that it would inherit, and must not have.
    :ivar link: this end of the link to it, see ipc/pool_link.py.
    :ivar hang_file: the descriptor of the file that it dumps its stack into.
    :raises OSError: it can't be started.
    """

    def __init__(self, inherited: Sequence[int] = ()) -> None:
        self.hang_file = dump_file()
        try:
            self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError:
            os.close(self.hang_file)
            raise
        try:
            self.pid = _spawn(theirs.fileno(), self.hang_file, inherited)
        except OSError:
            self.close()
            raise
        finally:
            theirs.close()

    def close(self) -> None:
        """Close what this process has of it. Without the link, it ends."""
        self.link.close()
        os.close(self.hang_file)


def _spawn(link: int, hang_file: int, inherited: Sequence[int]) -> int:
    hang_file = os.dup(hang_file)
    try:
        for fd in (link, hang_file):
            os.set_inheritable(fd, True)
        return os.posix_spawn(
            sys.executable,
            command_for(_START, link, hang_file),
            {name: value for name, value in os.environ.items() if name not in FOR_THE_SUPERVISOR},
            file_actions=[(os.POSIX_SPAWN_CLOSE, fd) for fd in inherited],
            setsigmask=(*OF_A_POOL, HANG_SIGNAL),  # until it handles them
        )
    finally:
        os.close(hang_file)
