"""Messages that a worker sends up its channel.

The rules: after any message the books are right: each connection belongs to one worker, what is open is counted once,
no source has more than it may. A message either fits and counts, or condemns its worker, whose connections are then
given up as after a crash; other workers keep theirs.
"""

from __future__ import annotations

import math
from typing import Any

import msgspec

from poolsrv.config.model import ListenerConfig
from poolsrv.ipc.metrics import Definition, MetricsReport
from poolsrv.ipc.runs import Run, packed
from poolsrv.ipc.worker_channel import DRAINING, FULL, SERVING, Report

from ...helpers.books import Books
from ..source import Source
from . import Target

CONFIGS = (
    ListenerConfig("p", (), "p", proxy_protocol=True, max_per_source=2),
    ListenerConfig("q", (), "q", max_connections=30, max_per_source=10),
)
ADDRESSES = ("192.0.2.1", "192.0.2.2", "2001:db8::1", "", "unix:/x", "::ffff:192.0.2.1")
STATES = (None, None, None, SERVING, FULL, DRAINING, "starting", "empty", "x")
NUMBERS = (0, 1, -1, 2**53, 2**63 - 1, 2**63, 0.5, math.inf, math.nan)
KINDS: tuple[Any, ...] = ("counter", "gauge", "histogram", "counter", "summary")

encode = msgspec.msgpack.Encoder().encode


def run(data: bytes) -> None:
    books = Books(CONFIGS)
    try:
        for index in range(2):
            books.say(Report(0, [], SERVING, None), index)
        books.give(*(books.new_id() for _ in range(6)))
        books.give(*(books.new_id() for _ in range(4)), listener=1)
        source = Source(data)
        while not source.is_empty:
            step(books, source)
            books.check()
        check_death(books)
    finally:
        books.close()


def step(books: Books, source: Source) -> None:
    what, index = source.number(8), source.number(2)
    slot = books.slots[index]
    if slot.condemned or slot.channel is None:
        return
    before = len(books.killed)
    if what == 0:
        books.take(index, 1 + source.number(4))
    elif what == 1:
        books.give(books.new_id(), listener=source.number(2))
    elif what == 2:
        message = source.take(source.number(256))
        if message:
            check_condemned(books, index, books.write(message, index=index), before)
    else:
        message = encode(some_report(source))
        check_condemned(books, index, books.write(message, index=index), before)


def check_condemned(books: Books, index: int, fits: bool, before: int) -> None:
    killed = books.killed[before:]
    slot = books.slots[index]
    assert set(map(id, killed)) <= {id(slot)}
    assert fits != slot.condemned or (fits and killed)  # found out when its connections were reclaimed


def some_report(source: Source) -> list[Any]:
    """A report that is nearly right, as a list of fields."""
    asked = [
        [source.number(12), [source.choice(ADDRESSES), source.choice((0, 1, 65535, 65536))]]
        for _ in range(source.number(3))
    ]
    fields: list[Any] = [
        source.number(6) if source.number(8) else source.choice(NUMBERS),
        [source.number(12) if source.number(8) else source.choice(NUMBERS) for _ in range(source.number(4))],
        source.choice(STATES),
        [source.number(3)] * source.choice((5, 4, 6)) if source.number(4) == 1 else None,
        asked,
        some_metrics(source) if source.number(3) == 1 else None,
        [packed(Run(at=1.0, took=2.0, failed=False, listener="p", program="x"))] * source.choice((0, 0, 0, 1, 17)),
        [[source.number(2), source.number(3)] for _ in range(source.choice((0, 0, 0, 1)))],
        [[source.number(2), "deny", ["192.0.2.1", 1]] for _ in range(source.choice((0, 0, 0, 1)))],
    ]
    return fields[: source.choice((9, 9, 9, 9, 4, 3, 10))]


def some_metrics(source: Source) -> MetricsReport:
    labels = ("", "a", "\n", "x" * 101)
    defined = [
        Definition(source.choice(KINDS), source.choice(("a", "b", "A", "")), "help", [("x", source.choice(labels))])
        for _ in range(source.number(4))
    ]
    numbers = [(source.number(4), source.choice(NUMBERS)) for _ in range(source.number(3))]
    histograms = [
        (source.number(4), source.choice(NUMBERS), [(source.number(60), source.choice(NUMBERS))])
        for _ in range(source.number(2))
    ]
    return MetricsReport(defined, numbers, histograms)  # type: ignore[arg-type]


def check_death(books: Books) -> None:
    """When both have ended, nothing is believed to be with them, and what they had not taken is left over."""
    for slot in books.slots:
        books.dispatcher.worker_ended(slot)
        books.loop.turn(0)
        books.check()
    for amounts in books.dispatcher.ledger.snapshot().values():
        for amount in amounts.values():
            assert not isinstance(amount, float) or math.isfinite(amount)
    assert books.dispatcher.open_connections() == 0


TARGET = Target(
    run,
    512,
)
