"""A further plugin that is called for every connection and every event, and does nothing."""

from poolsrv import Connection, hookimpl


class Noop:
    """Returns None from both hooks, so the handler always gets its turn."""

    @hookimpl
    def on_connection_init(self, conn: Connection) -> None:
        """Admit the connection."""

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        """Leave the event to the handler."""
