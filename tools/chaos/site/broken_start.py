"""A plugin whose workers can't start, for a config that must not be taken over."""

from __future__ import annotations

from poolsrv import Connection, Worker, hookimpl


class Never:
    """Raises in each worker."""

    @hookimpl
    def on_worker_start(self, worker: Worker) -> None:
        raise OSError("this plugin never starts")

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        """Is never called."""
