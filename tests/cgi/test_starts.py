"""Programs that are about to be started: together, at the end of a turn; and what becomes of those that fail."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from poolsrv_cgi.programs.starts import Starts

from tests.helpers.http import Client, cgi_listener, write_programs
from tests.helpers.plugins import served


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


class Aborted:
    aborted = ""

    def abort(self, reason: str) -> None:
        self.aborted = reason


def test_one_fault_ends_one_connection() -> None:
    turns, started = Turns(), []
    starts = Starts()
    starts.open(turns)  # type: ignore[arg-type]
    first, bad, last = Aborted(), Aborted(), Aborted()
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
        starts.add(Aborted(), lambda: started.append("another"))  # type: ignore[arg-type]

    starts.add(Aborted(), start)  # type: ignore[arg-type]
    turns.turn()
    assert started == ["one"]
    turns.turn()
    assert started == ["one", "another"]


LEAVES = """
class Leaves:
    # As if the first three clients were gone before what their requests ask for is started.
    seen = 0

    @hookimpl(wrapper=True)
    def on_readable(self, conn):
        result = yield
        self.seen += 1
        if self.seen <= 3:
            conn.abort("the client is gone")
        return result
"""


@pytest.mark.server
def test_what_is_cancelled_before_its_start_releases_its_permit(tmp_path: Path) -> None:
    root = write_programs(tmp_path / "root", {"hello.sh": "echo >>ran; printf 'Content-Type: text/plain\\n\\nhello'"})
    config = cgi_listener(keys='plugins = ["leaves"]', root=root, max_programs=1, queue_size=0)
    with served(tmp_path, LEAVES, config) as server:
        for _ in range(3):
            with Client(server, "www") as client:
                client.request("/hello.sh")
                with pytest.raises(ConnectionResetError):
                    client.sock.recv(1)
        with Client(server, "www") as client:
            assert client.get("/hello.sh").status == 200
    assert (root / "ran").read_text() == "\n"
