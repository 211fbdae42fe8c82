"""A pool, as the supervisor has it: a process of its own, what it has said, and how it is told something or ended."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

from .eventloop import READ, EventLoop, Timer
from .handshake import Held, Link, Message
from .pidfile import PidFile

log = logging.getLogger("poolsrv.supervisor")

STARTING, SERVING, LEAVING = "starting", "serving", "leaving"
EXIT_FAILED: Final = 1


class PoolProcess:
    """Starts it.

    :ivar reload: it was started by HUP, beside one that serves.
    :ivar configured: it has said what it needs, and has got it.
    :ivar sockets: those that it will use, once it is configured, by key.
    :ivar new: of these, the ones that it has bound itself.
    :ivar log: where its config has the log, as ``logs.set_up`` takes it.
    :ivar errors: why it can't serve.
    :ivar exit_code: the server's, if it never does.
    :raises OSError: it can't be started.
    """

    def __init__(
        self, loop: EventLoop, generation: int, reload: bool, on_message: Callable[[PoolProcess, Message], object]
    ) -> None:
        self.generation = generation
        self.reload = reload
        self.state = STARTING
        self.configured = False
        self.sockets: dict[str, Held] = {}
        self.new: dict[str, Held] = {}
        self.pidfile: PidFile | None = None
        self.graceful_timeout = 0.0
        self.log: dict[str, Any] = {}
        self.reopen_logs = False  # once it is configured
        self.errors: list[str] = []
        self.exit_code = EXIT_FAILED
        self.served_since = 0.0
        self._loop = loop
        self._on_message = on_message
        self._killer: Timer | None = None
        self._watched = True  # for messages
        self._has_ended = False
        self.link, theirs = Link.pair()
        try:
            os.set_inheritable(theirs.fileno(), True)
            self.pid = os.posix_spawn(
                sys.executable,
                _command(theirs.fileno()),
                os.environ,
                setsigmask=(signal.SIGUSR1,),  # it would end a pool that does not listen to it yet
            )
        except OSError:
            self.link.close()
            raise
        finally:
            theirs.close()
        self.link.setblocking(False)
        loop.register(self.link.fileno(), READ, lambda _: self.hear())

    def hear(self) -> None:
        """Take what it has said."""
        try:
            while (message := self.link.receive()) is not None:
                self._on_message(self, message)
        except EOFError:
            self._unwatch()  # its end is told by CHLD
        except (ValueError, LookupError, TypeError) as error:
            self.errors.append(f"it speaks another language: {error!r}")
            self.kill()

    def tell(self, kind: str, **fields: Any) -> None:
        """Send it a message. One that takes none is logged; if it is to end, it will be killed at a deadline."""
        try:
            self.link.send(kind, **fields)
        except OSError as error:
            log.warning(
                "the pool (generation %d, pid %d) does not listen: %s", self.generation, self.pid, error.strerror
            )

    def signal(self, number: signal.Signals) -> None:
        """Send its dispatcher a signal, if that has not ended."""
        if not self._has_ended:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """End its dispatcher at once; its workers notice."""
        self.signal(signal.SIGKILL)

    def kill_later(self, seconds: float, then: Callable[[], object]) -> None:
        """Call ``then()``, and kill it, unless it has ended by then, or this is called anew."""

        def due() -> None:
            then()
            self.kill()

        self.spare()
        self._killer = self._loop.call_later(seconds, due)

    def spare(self) -> None:
        """Not to be killed later after all."""
        if self._killer is not None:
            self._killer.cancel()
            self._killer = None

    def ended(self) -> None:
        """Its dispatcher has been reaped: hear what it has said last, and close the link."""
        self._has_ended = True
        self.hear()
        self.spare()
        self._unwatch()
        self._loop.at_end_of_turn(self.link.close)

    def _unwatch(self) -> None:
        if self._watched:
            self._watched = False
            self._loop.unregister(self.link.fileno())


def _command(link: int) -> list[str]:
    """How a pool is started: with the same interpreter, which looks for poolsrv where this one has found it."""
    # "-m" has the current directory searched first, as it was for this process only if it was started by "-m" too.
    safe = [] if sys.path and sys.path[0] in ("", os.getcwd()) else ["-P"]
    return [sys.executable, *safe, "-m", "poolsrv.supervised", str(link)]
