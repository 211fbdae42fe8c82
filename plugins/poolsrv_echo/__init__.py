"""The smallest plugin: every client gets back what it sends."""

from poolsrv import Connection, hookimpl


class Echo:
    """Sends back what it receives."""

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        conn.send(conn.recv())
