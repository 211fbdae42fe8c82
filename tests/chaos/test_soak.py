"""The soak's own parts: the rush at its beginning, and its verdict."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from tools.chaos.books import Books, connecting
from tools.chaos.load import VisitOver
from tools.chaos.soak import ROUND, RUSH, RUSHES, growth_of, rush, what_is_wrong
from tools.chaos.stage import FAILED_RUNS


class Load:
    """Counts its clients, and how many there are at once; one in four is turned away."""

    def __init__(self) -> None:
        self.failed_runs = 0
        self.visits: Counter[str] = Counter()
        self.at_once: Counter[str] = Counter()
        self.most_at_once: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        async def visit(listener: str = name, rounds: int = 1) -> None:
            self.visits[listener] += 1
            self.at_once[listener] += 1
            self.most_at_once = self.most_at_once | self.at_once | Counter(all=self.at_once.total())
            await asyncio.sleep(0)
            self.at_once[listener] -= 1
            if self.visits.total() % 4 == 0:
                raise VisitOver

        return visit

    async def failing(self) -> None:
        self.failed_runs += 1


def test_it_begins_with_clients_of_every_kind_at_once_and_programs_that_fail() -> None:
    load = Load()

    asyncio.run(rush(load))  # type: ignore[arg-type]
    assert load.visits == dict.fromkeys(ROUND, RUSH * RUSHES)
    assert load.most_at_once == {**dict.fromkeys(ROUND, RUSH), "all": RUSH * len(ROUND)}
    assert load.failed_runs == FAILED_RUNS


def test_it_counts_requests_and_not_the_connections_that_they_need() -> None:
    books = Books()
    for kind in (connecting("echo"), "echo", "echo", connecting("lines")):
        books.began(kind)
    assert (books.count(), books.requests.total()) == (2, 4)


def test_two_percent_of_growth_are_allowed_from_the_end_of_the_first_tenth_on() -> None:
    first = {"supervisor 1": 10_000, "worker 2": 10_000, "worker 3": 10_000}
    peak = dict.fromkeys(first, 20_000)  # what is free again at the end has not grown
    last = {"supervisor 1": 10_190, "worker 2": 10_201, "worker 4": 5000}
    assert round(growth_of([first, peak, last])["supervisor 1"], 3) == 0.019
    assert what_is_wrong([first, peak, last]) == [
        "worker 2 has grown by 2.01%",
        "worker 3 has ended",
    ]
