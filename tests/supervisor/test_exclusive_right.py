"""Who has the right to have exclusive workers, in every order: in this process, with pools that are only names."""

from __future__ import annotations

from typing import Any

import pytest

from poolsrv.ipc.pool_link import BadMessage
from poolsrv.ipc.pool_protocol import LEAVING, SEALED, SERVING
from poolsrv.supervisor.exclusive_right import ExclusiveRight


class Pool:
    def __init__(self, state: str = SERVING) -> None:
        self.state = state
        self.sent: list[str] = []
        self.waits = False

    def send(self, kind: str, **fields: Any) -> None:
        self.sent.append(kind)
        if kind == "release":
            self.number = fields["number"]
            assert fields["plugins"] == ["store"]

    def wait_for_others(self) -> None:
        self.waits = True

    def go_on(self) -> None:
        self.waits = False


class Case:
    """A right, and what the supervisor would do with it."""

    def __init__(self) -> None:
        self.orphans = False
        self.right = ExclusiveRight(lambda: self.orphans)
        self.serving: Pool | None = None

    def claim(self, *others: Pool) -> Pool:
        pool = Pool(SEALED)
        self.right.claim(pool, ["store"], others)  # type: ignore[arg-type]
        self.right.review()
        return pool

    def released(self, pool: Pool, number: int | None = None) -> None:
        self.right.released(pool, pool.number if number is None else number)  # type: ignore[arg-type]
        self.right.review()

    def ended(self, pool: Pool) -> None:
        self.right.ended(pool, self.serving)  # type: ignore[arg-type]
        self.right.review()

    def served(self, pool: Pool) -> None:
        pool.state = SERVING
        self.right.served(pool)  # type: ignore[arg-type]
        self.serving = pool
        self.right.review()


@pytest.fixture
def case() -> Case:
    return Case()


def test_the_first_pool_has_it_at_once(case: Case) -> None:
    pool = case.claim()
    assert (pool.sent, pool.waits) == (["granted"], False)
    case.served(pool)
    case.ended(pool)
    assert pool.sent == ["granted"]


def test_it_passes_on_when_all_others_have_released_it_or_ended(case: Case) -> None:
    old, older, oldest = Pool(), Pool(LEAVING), Pool(LEAVING)
    case.serving = old
    new = case.claim(old, older, oldest)
    assert [pool.sent for pool in (old, older, oldest)] == [["release"]] * 3
    case.released(old)
    case.ended(older)
    assert (new.sent, new.waits) == ([], True)
    case.released(oldest)
    assert (new.sent, new.waits) == (["granted"], False)
    case.right.review()
    case.served(new)
    assert (new.sent, old.sent) == (["granted"], ["release"])


def test_what_a_dead_dispatcher_has_left_is_waited_for(case: Case) -> None:
    old = Pool()
    new = case.claim(old)
    case.orphans = True
    case.ended(old)
    assert new.sent == []
    case.orphans = False
    case.right.review()
    assert new.sent == ["granted"]


@pytest.mark.parametrize("granted", [False, True])
@pytest.mark.parametrize("orphans", [False, True])
def test_if_the_new_pool_fails_the_one_that_serves_goes_on(case: Case, granted: bool, orphans: bool) -> None:
    old = case.serving = Pool()
    new = case.claim(old)
    if granted:
        case.released(old)
    assert new.sent == (["granted"] if granted else [])
    case.orphans = orphans
    case.ended(new)
    assert old.sent == ["release", *([] if orphans else ["resume"])]
    case.orphans = False
    case.right.review()
    case.right.review()
    assert old.sent == ["release", "resume"]
    next_one = case.claim(old)
    if not granted:
        case.released(old, 1)  # the answer to the first request, late
        assert next_one.sent == []
    case.released(old)
    assert next_one.sent == ["granted"]


def test_another_pool_may_claim_before_the_former_one_could_go_on(case: Case) -> None:
    old = case.serving = Pool()
    case.orphans = True
    case.ended(case.claim(old))
    new = case.claim(old)
    case.orphans = False
    case.released(old)
    assert old.sent == ["release", "release"]
    assert new.sent == ["granted"]


def test_a_pool_that_leaves_meanwhile_does_not_go_on(case: Case) -> None:
    old = case.serving = Pool()
    new = case.claim(old)
    old.state = LEAVING
    case.serving = None
    case.ended(new)
    assert old.sent == ["release"]


def test_it_is_claimed_once(case: Case) -> None:
    old = Pool()
    new = case.claim(old)
    with pytest.raises(BadMessage, match="'claims' a second time"):
        case.right.claim(new, ["store"], [old])  # type: ignore[arg-type,list-item]
