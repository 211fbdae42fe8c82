"""Messages of a pool to the supervisor, over the pool link.

The rules: a message is taken only in its phase, and nothing but ``BadMessage`` is raised. What has been taken can be
kept, added up and told to another pool, whose messages the other side can read; no descriptor stays open.
"""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from typing import Any

from poolsrv.core.event_loop import EventLoop
from poolsrv.dispatcher.ledger import Ledger
from poolsrv.dispatcher.ledger_link import _amount, _series
from poolsrv.ipc.counted import MOST_COUNTED, added, is_counted
from poolsrv.ipc.kept_runs import are_runs
from poolsrv.ipc.pool_link import BadMessage, Message, PoolLink, received_sockets
from poolsrv.ipc.pool_protocol import LEAVING, SEALED, SERVING, STARTING, check
from poolsrv.supervisor.counts import Counts

from ..source import Source
from . import Target

PHASES = (SERVING, STARTING, SEALED, LEAVING)


class Pool:
    """In the place of a pool's process: all that the supervisor's books need of it."""

    def __init__(self, pid: int, link: PoolLink) -> None:
        self.pid = pid
        self.runs = None
        self.link = link


def run(data: bytes) -> None:
    source = Source(data)
    phase = source.choice(PHASES)
    descriptors = source.number(4)
    payload = source.rest()
    if not payload:
        return
    before = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        link = PoolLink.supervisors_end(ours)
        with open(os.devnull) as file:
            try:
                socket.send_fds(theirs, [payload], [file.fileno()] * descriptors)
            except OSError:
                return  # it is too long for a message
        message = received(link, phase)
        if message is not None:
            act_on(message)
    assert len(os.listdir("/proc/self/fd")) == before


def received(link: PoolLink, phase: str) -> Message | None:
    try:
        message = link.receive()
        assert message is not None
        taken = check(phase, message, os.getpid())
    except BadMessage as error:
        assert str(error)
        return None
    assert message.kind == "bound" or not message.fds or not taken
    return message if taken else None


def act_on(message: Message) -> None:
    fields = json.loads(json.dumps(message.fields))
    assert fields == message.fields or "NaN" in json.dumps(message.fields)
    if message.kind == "bound":
        with suppress(BadMessage):
            for held in received_sockets(message):
                held.socket.close()
    elif message.kind == "alive":
        keep(message.fields)


def keep(fields: dict[str, Any]) -> None:
    """Two pools have told the same; a third one is told all of it."""
    loop = EventLoop()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        counts = Counts(loop)
        pools: list[Any] = [Pool(pid, PoolLink(ours)) for pid in range(3)]
        counts.taken(pools[0], fields)
        counts.ended(pools[0])
        counts.taken(pools[1], fields)
        counts.tell(pools[2], None)
        ledger = Ledger()
        link = PoolLink(theirs)
        while (told := link.receive()) is not None:
            assert is_counted(told.fields["counted"])
            assert are_runs(told.fields.get("runs"))
            learn(ledger, told.fields["counted"])
    loop.close()
    ledger.snapshot()


def learn(ledger: Ledger, counted: list[Any]) -> None:
    for key, amount in counted:
        total = added(amount, amount)
        assert is_counted([[key, total]])
        assert isinstance(total, list) or total <= MOST_COUNTED
        series = _series(key)
        if series is not None:
            hash(series)
            ledger.learn(series, _amount(amount))


KEY = json.dumps(json.dumps(["counter", "poolsrv_x", [["listener", "a"]]]))
HISTOGRAM = json.dumps(json.dumps(["histogram", "poolsrv_y", []]))
TARGET = Target(
    run,
    2048,
    (
        b'{"kind": "alive"', b'"counted": [[', b'"runs": [[', b"null", b"true", b"1e999", b"NaN", b"-0.0", b"\\ud800",
        b"[" * 300, b"18446744073709551616", b"[0.5, [[1, 2]]]", b'"kind"', b"\\u0000",
        b"[\\\"counter\\\", \\\"a\\\", []]",
    ),
)  # fmt: skip
