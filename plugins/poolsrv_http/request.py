"""A request as a handler gets it: its head, where it comes from, and its body."""

from __future__ import annotations

from poolsrv import Connection

from .body import RequestBody
from .forwarding import Origin
from .request_head import RequestHead

__all__ = ["Request"]


class Request:
    """One request. Its head has passed every check of RFC 9112.

    :ivar origin: where it comes from, as a trusted proxy says.
    :ivar body: the body, empty where there is none.
    :ivar conn: the connection.
    :ivar head: all of the above as one frozen structure.
    """

    __slots__ = ("body", "conn", "head", "origin")

    def __init__(self, conn: Connection, head: RequestHead, origin: Origin, body: RequestBody) -> None:
        self.conn = conn
        self.head = head
        self.origin = origin
        self.body = body

    # Few handlers ask for all of these.

    @property
    def method(self) -> str:
        """As sent, case kept."""
        return self.head.method

    @property
    def target(self) -> str:
        """Path and query as sent, without scheme and host."""
        return self.head.target

    @property
    def path(self) -> str:
        """The path of the target, still percent-encoded; "*" for `OPTIONS *`."""
        return self.head.path

    @property
    def query(self) -> str:
        """What follows "?", not decoded; "" also where there is no "?"."""
        return self.head.query

    @property
    def version(self) -> tuple[int, int]:
        """(1, 0) or (1, 1)."""
        return self.head.version

    @property
    def headers(self) -> dict[bytes, bytes]:
        """Name in lower case to value, both bytes; repeated fields are joined (RFC 9110 section 5.3)."""
        return self.head.headers

    @property
    def host(self) -> bytes:
        """Host and port that the request is for, b"" where unknown."""
        return self.head.host

    def header(self, name: str) -> str | None:
        """A header field's value, bytes above 127 as ISO 8859-1; None where it was not sent.

        :param name: in any case.
        """
        value = self.headers.get(name.lower().encode("ascii"))
        return None if value is None else value.decode("latin-1")
