"""A further plugin that looks at every connection and every event, and does nothing."""

from poolsrv import Connection, hookimpl


class Noop:
    """Returns None from both hooks, so the handler is always called after it."""

    @hookimpl
    def on_connection_init(self, conn: Connection) -> None:
        """Let it in."""

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        """Leave it to the handler."""
