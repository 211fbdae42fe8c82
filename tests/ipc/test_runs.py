"""Records of runs: whatever a program or a client has put into one, it fits a report, and is text."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from poolsrv.ipc.kept_runs import LONGEST_TEXT, MOST_IN_MESSAGE, KeptRuns, are_runs, message_of
from poolsrv.ipc.pieces import in_pieces
from poolsrv.ipc.runs import LONGEST_RECORD, Run, is_id, new_id, packed

WELL: dict[str, Any] = {"at": 1.0, "took": 0.5, "failed": False, "listener": "www", "program": "/a.sh"}


def unpacked(run: Run) -> Run:
    encoded = bytes(packed(run))
    assert len(encoded) <= LONGEST_RECORD
    return msgspec.msgpack.decode(encoded, type=Run)


def test_ids_are_short_and_differ() -> None:
    ids = {new_id() for _ in range(1000)}
    assert len(ids) == 1000
    assert all(map(is_id, ids))
    assert not is_id("../../ab")


@pytest.mark.parametrize("text", ["\udcff" * 5000, "\x1b[2J\n" * 5000, "\U0001f600" * 5000, "a" * 10**6, "\ud800"])
def test_every_text_is_cut_and_escaped(text: str) -> None:
    environment = {f"{number}{text[:300]}": text for number in range(300)}
    run = Run(
        **WELL | {"listener": text, "program": text}, command=[text] * 100, directory=text, request=text, client=text,
        reason=text, environment=environment, stderr=[text] * 100, capture=text,
    )  # fmt: skip
    read = unpacked(run)
    assert read.id == run.id
    assert len(read.stderr) in (5, 20)
    json_text = msgspec.json.encode(read).decode()
    assert json_text.isprintable()
    assert len(json_text) <= LONGEST_TEXT


def test_a_record_of_usual_size_is_whole() -> None:
    run = Run(**WELL, environment={f"NAME_{number}": "value" * 20 for number in range(40)}, stderr=["oops"], cpu=0.1)
    assert unpacked(run) == run


def test_of_a_large_environment_a_part_stays() -> None:
    environment = {"PATH": "/bin"} | {f"HTTP_X_{number}": "ü" * 100 for number in range(140)}
    read = unpacked(Run(**WELL, environment=environment))
    assert len(read.environment) == 50
    assert read.environment["PATH"] == "/bin"


@pytest.mark.parametrize(
    "wrong", [{"took": -1.0}, {"took": "long"}, {"at": float("inf")}, {"pid": 2**40}, {"returncode": 999}, {"id": "x"}]
)
def test_a_record_that_nobody_would_accept_is_refused_in_the_worker(wrong: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        packed(Run(**WELL | wrong))


def test_what_a_pool_may_tell_of_runs() -> None:
    assert are_runs(None)
    assert are_runs([["abcdefgh", True, "{}"]])
    bad: list[object] = [{}, [[]], [["abcdefgh", 1, "{}"]], [["short", True, "{}"]], [["abcdefgh", True, None]]]
    bad += [[["abcdefgh", True, "x" * (LONGEST_TEXT + 1)]], [["abcdefgh", True, "{}"]] * 65]
    for wrong in bad:
        assert not are_runs(wrong), wrong


def test_records_travel_in_pieces() -> None:
    runs = [(f"abcdef{number:02}", True, "ü" * 20_000) for number in range(5)]
    pieces = list(in_pieces(runs, MOST_IN_MESSAGE))
    assert [run for piece in pieces for run in piece] == runs
    assert all(len(json.dumps(message_of(piece))) < 200_000 and are_runs(message_of(piece)) for piece in pieces)
    assert [len(piece) for piece in in_pieces([("abcdefgh", True, "")] * 100, MOST_IN_MESSAGE)] == [64, 36]


def test_records_are_bounded_in_number_and_size() -> None:
    kept: KeptRuns[str] = KeptRuns(500, 4_000_000, len)
    for number in range(1000):
        assert kept.add(f"{number:08}", False, "text")
        assert not kept.add(f"{number:08}", True, "another")
    assert kept.ids() == [f"{number:08}" for number in range(500, 1000)]
    assert kept.get("00000999") == (False, "text")
    assert kept.get("00000499") is None
    for number in range(200):
        kept.add(f"large{number:03}", False, "x" * LONGEST_TEXT)
    assert len(kept.ids()) == 66


def test_those_that_matter_are_kept_apart() -> None:
    kept: KeptRuns[int] = KeptRuns(3)
    for number in range(100):
        kept.add(f"{number:08}", number < 2, number)
    assert kept.records() == [0, 1, 97, 98, 99]
    none: KeptRuns[int] = KeptRuns(0)
    assert not none.add("abcdefgh", True, 1)
