"""``call_soon`` while a worker drains, at a half-close, after a close, and when it raises; in this process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from poolsrv import Connection, hookimpl
from poolsrv.testing import Harness

MakeHarness = Callable[..., Harness]


class Steps:
    """Answers each byte in a turn of its own; ``!`` raises."""

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        if not conn.state:
            self.step(conn)

    def step(self, conn: Connection) -> None:
        byte = conn.recv(1)
        conn.state = bool(byte)
        if byte == b"!":
            raise RuntimeError("no")
        if byte:
            conn.send(byte.upper())
            conn.call_soon(lambda: self.step(conn))

    @hookimpl
    def on_drain(self, conn: Connection) -> None:
        conn.call_soon(lambda: self.finish(conn))

    def finish(self, conn: Connection) -> None:
        conn.send(b".")
        conn.close("drained")


def test_a_draining_worker_waits_for_it(poolsrv_harness: MakeHarness) -> None:
    harness = poolsrv_harness(Steps)
    client = harness.connect()
    client.send(b"abc")
    harness.drain()
    assert (client.received, client.end) == (b"ABC.", "drained")


@pytest.mark.parametrize("half_close", ["finish", "timely"])
def test_it_holds_the_connection_at_a_half_close(poolsrv_harness: MakeHarness, half_close: str) -> None:
    client = poolsrv_harness(Steps, half_close=half_close).connect()
    client.send(b"a" * 500)
    client.send_eof()
    assert client.received == b"A" * 500
    assert client.end == "eof"


def test_each_connection_has_a_step_in_its_turn(poolsrv_harness: MakeHarness) -> None:
    order: list[tuple[int, bytes]] = []

    class Noted(Steps):
        def step(self, conn: Connection) -> None:
            order.append((conn.id, conn.peek()[:1]))
            super().step(conn)

    harness = poolsrv_harness(Noted())
    clients = [harness.connect() for _ in range(3)]
    for client in clients:
        client.stop_reading()
    for client in clients:
        client.connection.unread(b"x" * 20)  # type: ignore[union-attr]
        client.connection.resume_reading()  # type: ignore[union-attr]
    harness.run()
    numbers = [number for number, byte in order if byte]
    assert len(numbers) == 60
    assert all(sorted(numbers[at : at + 3]) == [1, 2, 3] for at in range(0, 60, 3))


def test_what_it_raises_costs_its_connection_alone(poolsrv_harness: MakeHarness) -> None:
    harness = poolsrv_harness(Steps, raise_faults=False)
    client, other = harness.connect(), harness.connect()
    client.send(b"a!b")
    other.send(b"ab")
    assert (client.received, client.end) == (b"A", "plugin failed")
    assert (other.received, other.end) == (b"AB", "")
    assert [(fault.hook, str(fault.error)) for fault in harness.faults] == [("call_soon", "no")]


def test_it_is_dropped_when_the_connection_is_gone(poolsrv_harness: MakeHarness) -> None:
    called = []
    harness = poolsrv_harness(Steps)
    client = harness.connect()
    assert client.connection is not None
    client.connection.call_soon(lambda: called.append(1))
    client.connection.abort()
    client.connection.call_soon(lambda: called.append(2))
    harness.run()
    assert called == []
    assert harness.open_connections == 0
