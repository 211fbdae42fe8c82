"""What was done to the server: this may explain a lost request."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Final

SCARCITY: Final = (
    "few descriptors for a worker",
    "few descriptors for a dispatcher",
    "few descriptors: a plugin holds them",
    "few processes",
    "a full disk",
    "a program eats all memory",
)
LONGEST_START: Final = 60.0  # seconds


@dataclass
class Trouble:
    """One disturbance that has happened.

    :ivar until: when its cause was gone.
    :ivar what: in words, with the victim.
    :ivar recovery: seconds until the server was well again; None: not measured, or it never was.
    :ivar tried: whether there was anything to disturb.
    """

    kind: str
    at: float
    until: float = 0.0
    what: str = ""
    recovery: float | None = None
    tried: bool = True


@dataclass
class Damage:
    """What may explain a lost request.

    :ivar killed: processes that were killed, or had to end: pid to time and cause.
    :ivar programs: programs that were signalled to end: pid to time.
    :ivar dispatches: the way of dispatch in the config file, from a time on.
    """

    troubles: list[Trouble] = field(default_factory=list)
    killed: dict[int, tuple[float, str]] = field(default_factory=dict)
    programs: dict[int, float] = field(default_factory=dict)
    dispatches: list[tuple[float, str]] = field(default_factory=list)

    def windows(self, *kinds: str) -> list[tuple[float, float]]:
        """When disturbances of these kinds were going on."""
        return [
            (each.at, each.until or time.monotonic()) for each in self.troubles if each.kind in kinds and each.tried
        ]

    def ways_until(self, at: float) -> set[str]:
        """The ways of dispatch that a pool may have which serves from then on: it has read the file a while before."""
        earlier = [way for since, way in self.dispatches if since <= at - LONGEST_START]
        return {way for since, way in self.dispatches if at - LONGEST_START < since <= at} | set(earlier[-1:])

    def held_up_before(self, at: float, pid: int) -> float:
        """Since when a process had been stopped that was killed at this time; that time, if it had not been."""
        stops = [each.at for each in self.troubles if each.kind.startswith("stop ") and each.what.startswith(f"{pid} ")]
        return min([since for since in stops if since <= at and at - since < 5.0], default=at)
