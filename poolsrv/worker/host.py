"""The listener that a connection came to, as the connection sees it; in a worker that is ``Service``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ..core.event_loop import EventLoop
from ..net.programs import Child, Reaper
from .blocking_threads import BlockingThreads
from .newcomers import Newcomers
from .worker import Worker

C = TypeVar("C", contravariant=True)  # Connection


class Host(Protocol[C]):
    """What a connection needs of the listener that it came to."""

    name: str
    loop: EventLoop
    worker: Worker
    reaper: Reaper
    threads: BlockingThreads
    base: Path
    max_unsent: int
    half_close: str
    watches_half_close: bool
    handshake_timeout: float
    on_connection_init: Callable[..., Any] | None
    on_readable: Callable[..., Any]
    on_writable: Callable[..., Any] | None
    on_connection_close: Callable[..., Any] | None
    first_byte_times: list[float]  # of each connection, in seconds from its accept
    newcomers: Newcomers

    def closer_after_ended_chain(self) -> Callable[..., Any] | None:
        """The caller of ``on_connection_close`` for the plugins that have been told of the latest connection."""

    def handshake_failed(self, connection: C, why: str) -> None:
        """The client's TLS handshake has failed."""

    def opened_after_drain(self, connection: C) -> None:
        """Plugins have been told of the connection only now, after a handshake."""

    def trusts(self, host: str) -> bool:
        """Whether what a proxy at this address says of its clients is believed."""

    def may_finish_only(self, connection: C) -> bool:
        """Whether the connection is over its lifetime."""

    def child_exited(self, child: Child, connection: C | None) -> None:
        """A program of one of the listener's connections has been reaped."""

    def tell_closed(self, caller: Callable[..., Any] | None, connection: C, reason: str) -> None:
        """Tell plugins, by this caller, that the connection is closed."""

    def closed(self, connection: C, reason: str, running: Sequence[Child]) -> None:
        """The connection's descriptor is closed, for this reason. Some of its programs may run on."""

    def log_fault(self, hook: str, connection: C | None, error: BaseException) -> None:
        """A plugin has raised this."""
