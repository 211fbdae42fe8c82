"""The run book of a pool."""

from __future__ import annotations

from typing import Any

import msgspec

from poolsrv.dispatcher.run_book import MOST_UNTOLD, RunBook
from poolsrv.ipc.kept_runs import are_runs
from poolsrv.ipc.runs import Run


def run(at: float = 1.0, took: float = 0.1, failed: bool = False, **fields: Any) -> Run:
    return Run(at=at, took=took, failed=failed, listener="www", program="/a.sh", **fields)


class Link:
    """Stands in for the link to the supervisor."""

    def __init__(self) -> None:
        self.told: list[list[Any]] = []
        self.is_stuck = False
        self.waiting = 0

    def unread(self) -> int:
        return self.waiting

    def send(self, kind: str, **fields: Any) -> None:
        if self.is_stuck:
            raise BlockingIOError
        assert kind == "alive"
        assert are_runs(fields["runs"])
        self.told += fields["runs"]


def listed(book: RunBook) -> list[Run]:
    answer = book.answer().runs
    assert answer is not None
    return answer


def test_a_flood_does_not_push_failures_out() -> None:
    book = RunBook(3)
    failed, slow = run(at=1.0, failed=True), run(at=2.0, took=1.5)
    book.take([failed, slow])
    others = [run(at=10.0 + number) for number in range(10)]
    book.take(others)
    assert [one.id for one in listed(book)] == [one.id for one in (failed, slow, *others[-3:])]


def test_the_list_has_no_environment_and_one_run_has() -> None:
    book = RunBook(3)
    book.take([run(id="abcdefgh", environment={"A": "b"}, stderr=["oops"])])
    assert not listed(book)[0].environment
    assert book.answer_one("abcdefgh").runs == [run(id="abcdefgh", environment={"A": "b"}, stderr=["oops"])]
    assert book.answer_one("bbbbbbbb").runs == []
    assert book.answer_one("; drop").error == "expected run ID"


def test_an_id_belongs_to_the_first_that_has_it() -> None:
    book = RunBook(3)
    book.take([run(id="abcdefgh", reason="first"), run(id="abcdefgh", failed=True, reason="second")])
    assert [one.reason for one in listed(book)] == ["first"]


def test_a_former_pools_records_are_learnt_and_not_told_again() -> None:
    link = Link()
    book = RunBook(3, link)  # type: ignore[arg-type]
    kept = run()
    texts = [msgspec.json.encode(kept).decode(), "{}", "no JSON", '{"id": "' + "x" * 9 + '"}']
    book.learn({"runs": [[kept.id, False, text] for text in texts]})
    book.tell()
    assert listed(book) == [kept]
    assert link.told == []


def test_the_supervisor_is_told_once_and_later_if_it_has_no_room() -> None:
    link = Link()
    book = RunBook(3, link)  # type: ignore[arg-type]
    one = run(failed=True, stderr=["ü"])
    book.take([one])
    link.is_stuck = True
    book.tell()
    link.is_stuck = False
    book.tell()
    book.tell()
    ((run_id, matters, text),) = link.told
    assert (run_id, matters) == (one.id, True)
    assert msgspec.json.decode(text, type=Run) == one


def test_the_supervisor_is_not_flooded() -> None:
    link = Link()
    book = RunBook(500, link)  # type: ignore[arg-type]
    failed = run(failed=True)
    book.take([failed, *(run(environment={"A": "x" * 900}) for _ in range(500))])
    link.waiting = 1
    book.tell()
    assert link.told == []
    link.waiting = 0
    book.tell_all()
    assert failed.id in [run_id for run_id, _, _ in link.told]
    assert len(link.told) == MOST_UNTOLD


def test_none_are_kept_where_none_are_wanted() -> None:
    book = RunBook(0)
    book.take([run()])
    assert listed(book) == []
