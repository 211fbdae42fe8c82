"""Programs that are about to be started: together, at the end of a turn, each in place of the others' faults."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from poolsrv_cgi.programs.starts import Starts


class Turns:
    """A worker whose loop turns when it is told to."""

    def __init__(self) -> None:
        self.due: list[Callable[[], object]] = []

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        assert seconds == 0
        self.due.append(callback)

    def turn(self) -> None:
        due, self.due = self.due, []
        for callback in due:
            callback()


class Client:
    aborted = ""

    def abort(self, reason: str) -> None:
        self.aborted = reason


def test_one_fault_ends_one_connection() -> None:
    turns, started = Turns(), []
    starts = Starts()
    starts.open(turns)  # type: ignore[arg-type]
    first, bad, last = Client(), Client(), Client()
    starts.add(first, lambda: started.append("first"))  # type: ignore[arg-type]
    starts.add(bad, lambda: 1 / 0)  # type: ignore[arg-type]
    starts.add(last, lambda: started.append("last"))  # type: ignore[arg-type]
    assert len(turns.due) == 1
    with pytest.raises(ZeroDivisionError):
        turns.turn()
    assert started == ["first"]
    turns.turn()
    assert started == ["first", "last"]
    assert [client.aborted for client in (first, bad, last)] == ["", "plugin failed", ""]
    assert turns.due == []


def test_what_a_start_adds_waits_for_the_next_turn() -> None:
    turns, started = Turns(), []
    starts = Starts()
    starts.open(turns)  # type: ignore[arg-type]

    def start() -> None:
        started.append("one")
        starts.add(Client(), lambda: started.append("another"))  # type: ignore[arg-type]

    starts.add(Client(), start)  # type: ignore[arg-type]
    turns.turn()
    assert started == ["one"]
    turns.turn()
    assert started == ["one", "another"]
