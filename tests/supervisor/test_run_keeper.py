"""The supervisor keeps records of runs while pools come and go."""

from __future__ import annotations

from typing import Any

from poolsrv.core.event_loop import EventLoop
from poolsrv.supervisor.run_keeper import NEXT_AFTER, RunKeeper


class Pool:
    """Stands in for a pool and its link."""

    def __init__(self, runs: int | None = None) -> None:
        self.runs = runs
        self.link = self
        self.told: list[str] = []
        self.is_stuck = False
        self.waiting = 0

    def unread(self) -> int:
        return self.waiting

    def send(self, kind: str, **fields: Any) -> None:
        if self.is_stuck:
            raise BlockingIOError
        assert (kind, fields["counted"]) == ("counted", [])
        self.told += [run_id for run_id, _, _ in fields["runs"]]


def runs(*ids: str, matters: bool = False) -> dict[str, Any]:
    return {"runs": [[run_id, matters, "{}"] for run_id in ids]}


def test_the_pool_that_answers_is_told_what_others_have_run() -> None:
    keeper = RunKeeper(EventLoop())
    old, new = Pool(), Pool()
    keeper.tell(old)  # type: ignore[arg-type]
    keeper.taken(old, runs("aaaaaaaa", "bbbbbbbb"))  # type: ignore[arg-type]
    keeper.taken(old, runs("cccccccc", matters=True))  # type: ignore[arg-type]
    assert old.told == []
    keeper.tell(new)  # type: ignore[arg-type]
    assert sorted(new.told) == ["aaaaaaaa", "bbbbbbbb", "cccccccc"]
    keeper.taken(new, runs("dddddddd"))  # type: ignore[arg-type]
    keeper.taken(old, runs("eeeeeeee", "aaaaaaaa"))  # type: ignore[arg-type]  # it drains
    keeper.ended(old)  # type: ignore[arg-type]
    assert new.told[3:] == ["eeeeeeee"]


def test_a_crash_loses_nothing_that_has_been_told() -> None:
    keeper = RunKeeper(EventLoop())
    first, second = Pool(), Pool()
    keeper.tell(first)  # type: ignore[arg-type]
    keeper.taken(first, runs("aaaaaaaa"))  # type: ignore[arg-type]
    keeper.ended(first)  # type: ignore[arg-type]
    keeper.tell(second)  # type: ignore[arg-type]
    assert second.told == ["aaaaaaaa"]


def test_no_more_is_kept_than_the_pool_that_answers_would_show() -> None:
    keeper = RunKeeper(EventLoop())
    old, few, many, last = Pool(), Pool(2), Pool(3), Pool(500)
    keeper.tell(old)  # type: ignore[arg-type]  # of an older version: it does not say how many it keeps
    keeper.taken(old, runs("aaaaaaaa", "bbbbbbbb", "cccccccc"))  # type: ignore[arg-type]
    keeper.taken(old, runs("dddddddd", matters=True))  # type: ignore[arg-type]
    keeper.tell(few)  # type: ignore[arg-type]
    keeper.taken(old, runs("eeeeeeee"))  # type: ignore[arg-type]
    keeper.taken(few, runs("ffffffff"))  # type: ignore[arg-type]
    keeper.tell(many)  # type: ignore[arg-type]
    assert sorted(few.told) == ["bbbbbbbb", "cccccccc", "dddddddd", "eeeeeeee"]
    assert sorted(many.told) == ["dddddddd", "eeeeeeee", "ffffffff"]
    keeper.taken(many, runs("gggggggg", "hhhhhhhh"))  # type: ignore[arg-type]
    keeper.tell(last)  # type: ignore[arg-type]
    assert sorted(last.told) == ["dddddddd", "ffffffff", "gggggggg", "hhhhhhhh"]


def test_a_pool_without_room_is_told_later() -> None:
    loop = EventLoop()
    keeper = RunKeeper(loop)
    old, new = Pool(), Pool()
    keeper.tell(old)  # type: ignore[arg-type]
    keeper.taken(old, runs("aaaaaaaa"))  # type: ignore[arg-type]
    new.is_stuck = True
    keeper.tell(new)  # type: ignore[arg-type]
    new.is_stuck = False
    loop.turn(2 * NEXT_AFTER)
    assert new.told == ["aaaaaaaa"]
    loop.close()


def test_other_messages_find_room_between_the_pieces() -> None:
    loop = EventLoop()
    keeper = RunKeeper(loop)
    old, new = Pool(), Pool()
    keeper.tell(old)  # type: ignore[arg-type]
    for number in range(100):
        keeper.taken(old, {"runs": [[f"{number:08}", False, "x" * 10_000]]})  # type: ignore[arg-type]
    keeper.tell(new)  # type: ignore[arg-type]
    new.waiting = 1
    told = len(new.told)
    assert told == 3
    loop.turn(2 * NEXT_AFTER)
    assert len(new.told) == told
    new.waiting = 0
    while len(new.told) < 100:
        before = len(new.told)
        loop.turn(2 * NEXT_AFTER)
        assert len(new.told) <= before + 3
    assert len(set(new.told)) == 100
    loop.close()
