"""How bytes are read as messages, and what two such readings disagree about."""

from __future__ import annotations

import re
from collections.abc import Sequence

import h11
import msgspec
from poolsrv_http import BodyLimits, RequestError, RequestParser, body_decoder

# What comes after the last message: it is refused; more is waited for; nothing more is read.
REFUSES, WAITS, CLOSES = "refuses", "waits", "closes"
# What two readings may disagree about.
FAULTS = ("another end", "poolsrv waits", "poolsrv goes on")


class Message(msgspec.Struct, frozen=True):
    """One request, as a reader has understood it.

    :ivar mark: which of the requests it is, by its target; "" if that can't be told.
    """

    method: str
    mark: str
    body: bytes


class Reading(msgspec.Struct, frozen=True):
    """All that a reader has understood.

    :ivar end: ``REFUSES``, ``WAITS`` or ``CLOSES``.
    """

    messages: tuple[Message, ...]
    end: str


def mark_in(target: str) -> str:
    """Which of the requests it is."""
    found = re.search(r"m(\d)", target)
    return found[1] if found else ""


def read_by_poolsrv(data: bytes) -> Reading:
    """As the HTTP library reads a connection."""
    parser = RequestParser()
    messages: list[Message] = []
    while True:
        try:
            head = parser.feed(data)
            if head is None:
                return Reading(tuple(messages), WAITS)
            decoder = body_decoder(head, BodyLimits())
            body = decoder.feed(parser.surplus)
        except RequestError:
            return Reading(tuple(messages), REFUSES)
        if not decoder.done:
            return Reading(tuple(messages), WAITS)
        messages.append(Message(head.method, mark_in(head.target), body))
        data = decoder.surplus
        if not head.keep_alive:
            return Reading(tuple(messages), CLOSES)


def read_by_h11(data: bytes) -> Reading:
    """As h11 reads it."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(data)
    messages: list[Message] = []
    request: h11.Request | None = None
    body = b""
    while True:
        try:
            event = server.next_event()
        except h11.RemoteProtocolError:
            return Reading(tuple(messages), REFUSES)
        if event is h11.NEED_DATA:
            return Reading(tuple(messages), WAITS)
        if event is h11.PAUSED:
            return Reading(tuple(messages), CLOSES)
        if isinstance(event, h11.Request):
            request, body = event, b""
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and request is not None:
            messages.append(Message(request.method.decode(), mark_in(request.target.decode("latin-1")), body))
            server.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            server.send(h11.EndOfMessage())
            if server.our_state is not h11.DONE:
                return Reading(tuple(messages), CLOSES)
            server.start_next_cycle()


def disagreement(ours: Reading, theirs: Reading) -> str:
    """What two readers disagree about, or that they agree.

    One of ``FAULTS`` is poolsrv's: it has gone on where it should have refused, for another ends a message elsewhere.
    """
    for index in range(max(len(ours.messages), len(theirs.messages))):
        if index == len(ours.messages):
            return {REFUSES: "poolsrv refuses", WAITS: "poolsrv waits", CLOSES: "poolsrv closes"}[ours.end]
        if index == len(theirs.messages):
            return {REFUSES: "the other refuses", WAITS: "poolsrv goes on", CLOSES: "the other closes"}[theirs.end]
        one, other = ours.messages[index], theirs.messages[index]
        if not is_same(one, other):
            return "another end"
    if ours.end == theirs.end:
        return f"both read {len(ours.messages)}, then it {ours.end}"
    return "poolsrv refuses" if ours.end == REFUSES else f"after it, {ours.end} and {theirs.end}"


def is_same(one: Message, other: Message) -> bool:
    return one.body == other.body and (one.mark == other.mark or "" in (one.mark, other.mark))


def shown(messages: Sequence[Message]) -> str:
    """For people."""
    return "; ".join(f"{one.method} m{one.mark} {one.body!r}" for one in messages) or "none"
