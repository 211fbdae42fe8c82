"""Programs that belong to a worker, and to no connection of it (``Worker.spawn``)."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence

from ..core.sandbox import Sandbox
from ..net.descriptor import Descriptor
from ..net.programs import Child, Reaper

log = logging.getLogger("poolsrv.worker")


class WorkerPrograms:
    """Starts them, and owns this side of their pipes.

    :param on_exit: called with each once it has ended and been reaped.
    :param on_fault: told of what a callback of a pipe has raised, before it is logged.
    """

    def __init__(
        self, reaper: Reaper, on_exit: Callable[[Child], object], on_fault: Callable[[BaseException], object]
    ) -> None:
        self._reaper = reaper
        self._on_exit = on_exit
        self._on_fault = on_fault
        self._streams: set[Descriptor] = set()

    def spawn(
        self,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None,
        cwd: str | os.PathLike[str] | None,
        sources: tuple[int | None, int | None, int | None],
        limits: Mapping[int, int] | None,
        sandbox: Sandbox | None,
    ) -> Child:
        """Start one; see ``Worker.spawn``."""
        for source in sources:
            if source is not None and not isinstance(source, int):
                raise ValueError("a program can be given a descriptor, PIPE or None")
        child = self._reaper.spawn(
            argv,
            env=env,
            cwd=cwd,
            sources=sources,
            limits=limits,
            sandbox=sandbox,
            owner=self,
            on_exit=self._on_exit,
        )
        self._streams.update(stream for stream in (child.stdin, child.stdout, child.stderr) if stream is not None)
        return child

    def close_inherited(self) -> None:
        """In a copy of the worker: close its copies of the pipes."""
        for stream in self._streams:
            stream._close_descriptor()

    # --- as the owner of streams

    def _stream_ended(self, stream: Descriptor) -> None:
        self._streams.discard(stream)

    def _fault(self, what: str, error: BaseException) -> None:
        self._on_fault(error)
        log.error("a plugin's callback failed (%s)", what, exc_info=error)

    def _peer_has_finished(self) -> bool:
        return False

    def _is_open(self) -> bool:
        return True
