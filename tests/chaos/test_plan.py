"""The plan of a chaos run: from a seed, and from nothing else."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tools.chaos.disturbances import Disturber
from tools.chaos.nuisances import Nuisances
from tools.chaos.plan import DECK, DISPATCH, QUIET, Event, make_plan


def test_a_seed_repeats_its_plan() -> None:
    assert make_plan(17, 60.0) == make_plan(17, 60.0)
    assert make_plan(17, 60.0) != make_plan(18, 60.0)


@pytest.mark.parametrize("seed", range(20))
def test_each_way_of_dispatch_gets_a_third_of_the_time(seed: int) -> None:
    plan = make_plan(seed, 60.0)
    changes = [event for event in plan.events if event.kind == "dispatch"]
    assert [event.at for event in changes] == [20.0, 40.0]
    assert sorted([plan.dispatch, *(event.detail for event in changes)]) == sorted(DISPATCH)


@pytest.mark.parametrize("seed", range(20))
def test_all_kinds_are_there_before_one_comes_again_too_often(seed: int) -> None:
    plan = make_plan(seed, 600.0)
    kinds = [event.kind for event in plan.events if event.kind != "dispatch"]
    size = sum(DECK.values())
    assert len(kinds) > 10 * size
    for begin in range(0, len(kinds) - size, size):
        deck = kinds[begin : begin + size]
        assert {kind: deck.count(kind) for kind in deck} == DECK
    assert all(earlier.at <= later.at for earlier, later in pairwise(plan.events))
    assert all(QUIET <= event.at <= 600.0 - QUIET for event in plan.events)


def test_a_minute_has_nearly_all_kinds() -> None:
    for seed in range(20):
        assert len({event.kind for event in make_plan(seed, 60.0).events} & DECK.keys()) >= 0.75 * len(DECK)


def test_a_choice_is_that_of_the_plan() -> None:
    event = Event(0.0, "kill a worker", 0.99, 1.0)
    assert event.choose([1, 2, 3]) == 3
    assert event.choose([]) is None


def test_somebody_does_each_kind() -> None:
    assert set(DECK) == Disturber.KINDS | Nuisances.KINDS
