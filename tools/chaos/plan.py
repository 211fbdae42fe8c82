"""What happens when: a list of events, made from a seed alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final, TypeVar

_T = TypeVar("_T")

DISPATCH: Final = ("round-robin", "least-connections", "kernel")
MEAN_GAP: Final = 0.75  # seconds between two events
QUIET: Final = 2.0  # seconds at the beginning and before a change of dispatch without other events

# Each kind is there once in each deck of cards, or as often as it says. Cards are drawn until the deck is empty.
DECK: Final = {
    "kill a worker": 2,
    "stop a worker": 2,
    "drain a worker": 1,
    "kill a dispatcher": 1,
    "stop a dispatcher": 1,
    "drain a dispatcher": 1,
    "kill a warm helper": 1,
    "stop a warm helper": 1,
    "end a warm helper": 1,
    "kill a program": 2,
    "stop a program": 1,
    "end a program": 1,
    "reload": 2,
    "reload a broken config": 2,
    "add a worker": 1,
    "remove a worker": 1,
    "reopen the logs": 1,
    "few descriptors for a worker": 1,
    "few descriptors for a dispatcher": 1,
    "few descriptors: a plugin holds them": 1,
    "few processes": 1,
    "a full disk": 1,
    "a program eats all memory": 1,
    "a plugin leaks": 1,
    "a plugin raises": 2,
    "a plugin blocks": 1,
    "a plugin exits": 1,
    "a plugin forks": 1,
    "clients reset": 2,
    "clients stall": 1,
    "clients half-close": 1,
    "clients flood": 1,
    "refused clients": 1,
}


@dataclass(frozen=True)
class Event:
    """One disturbance.

    :ivar at: seconds from the beginning.
    :ivar kind: a key of `DECK`, or ``"dispatch"``.
    :ivar pick: from 0 up to 1: chooses a victim among those that are there, or a variant.
    :ivar seconds: how long it lasts, if it lasts.
    :ivar detail: the way of dispatch.
    """

    at: float
    kind: str
    pick: float
    seconds: float
    detail: str = ""

    def choose(self, among: list[_T]) -> _T | None:
        """Choose one of them; None if there are none."""
        return among[int(self.pick * len(among))] if among else None


@dataclass(frozen=True)
class Plan:
    """:ivar dispatch: the way of dispatch at the beginning; each of the three gets a third of the time."""

    seed: int
    seconds: float
    dispatch: str
    events: tuple[Event, ...]


def make_plan(seed: int, seconds: float) -> Plan:
    """The same seed and time make the same plan."""
    chance = random.Random(f"chaos {seed}")
    ways = list(DISPATCH)
    chance.shuffle(ways)
    changes = [seconds / 3, seconds * 2 / 3]
    events = [Event(at, "dispatch", chance.random(), 0.0, way) for at, way in zip(changes, ways[1:], strict=True)]
    deck: list[str] = []
    at = QUIET
    while (at := at + chance.expovariate(1 / MEAN_GAP)) < seconds - QUIET:
        if not deck:
            deck = [kind for kind, count in DECK.items() for _ in range(count)]
            chance.shuffle(deck)
        events.append(Event(at, deck.pop(), chance.random(), chance.uniform(0.5, 2.5)))
    return Plan(seed, seconds, ways[0], tuple(sorted(events, key=lambda event: event.at)))
