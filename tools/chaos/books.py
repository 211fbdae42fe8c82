"""What the clients note: each connection, and what became of each request."""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

NAMELESS: Final = "unix::0"  # all clients of a unix socket
KEPT_TIMES: Final = 20_000  # of each kind, the latest
CONNECTING: Final = ": connect"


@dataclass(slots=True, eq=False)
class Visit:
    """A connection of a client.

    :ivar peer: the client as the server sees it, ``"127.0.0.1:41234"``.
    :ivar began: when it was connected, by the monotonic clock, which all processes share.
    :ivar tried: when the client asked the kernel for it. A client that is late on a busy machine sees only later that
        it is connected: a worker may have opened it by then. 0: not known.
    :ivar answered_at: when the latest answer was complete; 0: none was.
    :ivar pid: of the worker, where the answers say it.
    """

    listener: str
    peer: str
    began: float
    ended: float = 0.0
    answered_at: float = 0.0
    pid: int = 0
    tried: float = 0.0


class Form(Enum):
    """How a request was lost."""

    CUT = "no answer, or a part of it; or an error, with its status"
    LOOKS_WHOLE = "a part of it, and nothing tells the client so"
    REFUSED = "the server says that it can't"
    WRONG = "other bytes: nothing excuses that"


@dataclass(slots=True, eq=False)
class Lost:
    """A request without its answer.

    :ivar number: of the request; it is in the target of HTTP requests.
    :ivar why: what the client saw.
    :ivar began: when the request was sent.
    :ivar at: when the client saw it.
    :ivar form: what kind of loss it is.
    """

    kind: str
    number: int
    visit: Visit
    why: str
    began: float
    at: float
    status: int = 0
    form: Form = Form.CUT


def connecting(kind: str) -> str:
    """The kind of the connections for this kind of request."""
    return kind + CONNECTING


@dataclass
class Books:
    """The clients' books.

    :ivar requests: by kind. The connections that were tried are among them: see :func:`connecting`.
    :ivar answered: by the same kinds.
    :ivar connects: connections that were made, by listener.
    :ivar refused: connections that were refused, as they had to be.
    :ivar times: seconds of the latest requests, by kind.
    :ivar done: number, connection and end of each HTTP request that was answered.
    """

    keep_visits: bool = True
    requests: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)
    connects: Counter[str] = field(default_factory=Counter)
    lost: list[Lost] = field(default_factory=list)
    visits: list[Visit] = field(default_factory=list)
    refused: list[Visit] = field(default_factory=list)
    times: dict[str, deque[float]] = field(default_factory=dict)
    done: list[tuple[int, Visit, float]] = field(default_factory=list)
    _number: int = 0

    def count(self) -> int:
        """Requests that were sent, without the connections that they were sent on."""
        return sum(count for kind, count in self.requests.items() if not kind.endswith(CONNECTING))

    def next_number(self) -> int:
        """A number for a request, which no other has."""
        self._number += 1
        return self._number

    def connected(self, listener: str, peer: str, tried: float = 0.0) -> Visit:
        """A client has connected, which it tried at that time."""
        self.connects[listener] += 1
        visit = Visit(listener, peer, time.monotonic(), tried=tried)
        if self.keep_visits:
            self.visits.append(visit)
        return visit

    def began(self, kind: str) -> float:
        """A request is sent."""
        self.requests[kind] += 1
        return time.monotonic()

    def has_answered(self, kind: str, visit: Visit, began: float, http_number: int = 0) -> None:
        """A request has got its whole answer, and each byte is right.

        :param http_number: its number, if it is in the server's access log.
        """
        visit.answered_at = time.monotonic()
        self.answered[kind] += 1
        self.times.setdefault(kind, deque(maxlen=KEPT_TIMES)).append(visit.answered_at - began)
        if http_number and self.keep_visits:
            self.done.append((http_number, visit, visit.answered_at))

    def has_lost(
        self, kind: str, number: int, visit: Visit, began: float, why: str, status: int = 0, form: Form = Form.CUT
    ) -> None:
        """A request has got no answer, or another one than it should."""
        self.lost.append(Lost(kind, number, visit, why, began, time.monotonic(), status, form))

    def has_refused(self, visit: Visit) -> None:
        """A client was disconnected that had to expect it."""
        self.refused.append(visit)

    def quantile(self, kind: str, share: float) -> float:
        """The time that this share of the requests took at most."""
        times = sorted(self.times.get(kind, ()))
        return times[min(int(share * len(times)), len(times) - 1)] if times else 0.0
