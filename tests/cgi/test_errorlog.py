"""Standard error on its way to the log: in turns, at a rate, and with the number of what was dropped."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from poolsrv_cgi.programs.errorlog import LINES_PER_ITERATION, ErrorLog, LineRate
from poolsrv_cgi.programs.timeouts import Deadlines

from tests.helpers.http import PROGRAMS, Client, cgi_listener, pool, write_programs
from tests.helpers.server import ServerProcess

MORE = {
    "flood.sh": "printf 'Content-Type: text/plain\\n\\nbegun\\n'; exec yes >&2",
    "long.sh": "head -c 3000000 /dev/zero | tr '\\0' x >&2; printf '\\nthe reason\\n' >&2",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_programs(tmp_path_factory.mktemp("root"), PROGRAMS | MORE)


@pytest.mark.server
def test_a_flood_is_cut_and_its_lines_are_counted(serve: Callable[..., ServerProcess], root: Path) -> None:
    """`yes >&2`: others are served meanwhile, and the log does not grow with it."""
    server = serve(pool() + cgi_listener(root=root))
    with Client(server) as flooding, Client(server) as other:
        flooding.request("/flood.sh")
        assert flooding.take(1)
        for number in (1, 2, 3):
            server.wait_for_line(r"/flood.sh\[\d+\]: \d+ lines dropped: more than stderr_rate allows", count=number)
            assert other.get("/hello.sh").body == b"hello"
        logged = sum(bool(re.search(r"/flood.sh\[\d+\]: y$", line)) for line in server.lines)
        assert 500 <= logged < 2000
        # Most of the time the program waits for the pipe: it writes some megabytes per second, and not what it could.
        dropped = [int(found[1]) for line in server.lines if (found := re.search(r": (\d+) lines dropped", line))]
        assert max(dropped) < 20_000_000


@pytest.mark.server
def test_a_long_line_counts_for_many_and_last_words_are_the_last(
    serve: Callable[..., ServerProcess], root: Path
) -> None:
    server = serve(pool() + cgi_listener(root=root, stderr_rate=10))
    with Client(server) as client:
        assert client.get("/long.sh").status == 502
    server.wait_for_line(r"/long.sh\[\d+\]: 502: .*; its last words: .*the reason$")
    server.wait_for_line(r"/long.sh\[\d+\]: \d+ lines? dropped")
    logged = sum(bool(re.search(r"/long.sh\[\d+\]: x+$", line)) for line in server.lines)
    assert 1 <= logged < 20


class Turns:
    """In the place of a worker: what is to be called in later turns, and a descriptor that is watched."""

    draining = False

    def __init__(self) -> None:
        self.later: list[Callable[[], object]] = []
        self.reader: Callable[[], object] | None = None

    def add_reader(self, fd: int, callback: Callable[[], object]) -> Turns:
        self.reader = callback
        return self

    def cancel(self) -> None:
        self.reader = None

    def call_later(self, seconds: float, callback: Callable[[], object]) -> Any:
        self.later.append(callback)

        class Timer:
            def cancel(timer) -> None:
                if callback in self.later:
                    self.later.remove(callback)

        return Timer()

    def turn(self) -> bool:
        """Run one iteration; False if no callback was due."""
        later, self.later = self.later, []
        for callback in later:
            callback()
        if not later and self.reader is not None:
            self.reader()
            return True
        return bool(later)


def first_looks(turns: Turns) -> Deadlines:
    """Deadlines that are over in the next turn."""
    deadlines = Deadlines(1e-9)
    deadlines.open(turns)  # type: ignore[arg-type]
    return deadlines


class Said:
    def __init__(self, rate: float = 0) -> None:
        self.turns = Turns()
        self.lines: list[str] = []
        self.log = ErrorLog(self.turns, rate, LineRate(0), self.lines.append, first_looks(self.turns))  # type: ignore[arg-type]
        self.writer = self.log.open()
        self.log.begin()
        self.turns.turn()  # the first look

    def close(self) -> None:
        os.close(self.writer)
        self.log.discard()


@pytest.fixture
def said() -> Iterator[Said]:
    made = Said()
    yield made
    made.close()


@pytest.mark.parametrize("words", [b"", b"its last words"])
def test_a_program_that_ends_soon_is_not_watched(words: bytes) -> None:
    turns, lines = Turns(), list[str]()
    log = ErrorLog(turns, 0, LineRate(0), lines.append, first_looks(turns))  # type: ignore[arg-type]
    writer = log.open()
    log.begin()
    os.write(writer, words)
    os.close(writer)
    log.finish()
    assert lines == ([words.decode()] if words else [])
    turns.turn()  # nothing is left to be looked at
    assert (turns.reader, turns.later) == (None, [])


def test_some_lines_in_a_turn_and_nothing_is_read_meanwhile(said: Said) -> None:
    lines = [f"line {number}" for number in range(10 * LINES_PER_ITERATION)]
    os.write(said.writer, "\n".join([*lines, ""]).encode())
    before = 0
    while len(said.lines) < len(lines):
        assert said.turns.turn()
        assert len(said.lines) - before <= LINES_PER_ITERATION
        before = len(said.lines)
    assert said.lines == lines
    assert said.log.last_lines[-1] == lines[-1]


def test_what_is_left_at_the_end_is_logged_in_turns_too(said: Said) -> None:
    lines = [f"line {number}" for number in range(5 * LINES_PER_ITERATION)]
    os.write(said.writer, "\n".join([*lines, "the end"]).encode())
    said.log.finish()
    assert said.lines == lines[:LINES_PER_ITERATION]
    assert list(said.log.last_lines)[-1] == "the end"
    while said.turns.turn():
        pass
    assert said.lines == [*lines, "the end"]


def test_few_words_come_once(said: Said) -> None:
    os.write(said.writer, b"one\n\ntwo")
    said.log.finish()
    assert (said.lines, list(said.log.last_lines)) == (["one", "two"], ["one", "two"])
    assert not said.turns.turn()


def test_dropped_lines_are_counted_to_the_last() -> None:
    said = Said(rate=2)
    os.write(said.writer, b"y\n" * 1000 + b"the end")
    said.log.finish()
    said.close()
    *logged, told = said.lines
    assert set(logged) == {"y"}
    assert 10 <= len(logged) < 1000
    assert told == f"{1001 - len(logged)} lines dropped: more than stderr_rate allows"
    assert said.log.last_lines[-1] == "the end"


def test_a_flood_is_read_in_larger_pieces() -> None:
    """A program with much to say waits less often for the pipe, which is emptied with pauses."""
    said = Said(rate=2)
    os.set_blocking(said.writer, False)
    os.write(said.writer, b"y\n" * 1000)
    while said.turns.reader is not None:  # until the first pause
        said.turns.turn()
    assert os.write(said.writer, b"y\n" * 100_000) == 200_000
    said.turns.turn()
    assert os.write(said.writer, b"y\n" * 100_000) == 200_000
    said.close()
