"""What a client sends to a plugin, and the answers it expects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate


class Dialogue:
    """What a client sends, in steps, each with the whole answer to it.

    :param steps: pairs: what is sent, and the answer.
    :param greeting: what the server sends before the client has sent anything.
    :param normalize: called with everything that a client has received, before it is compared. It replaces what
        differs each time, such as dates.
    """

    def __init__(
        self,
        steps: Sequence[tuple[bytes, bytes]],
        *,
        greeting: bytes = b"",
        normalize: Callable[[bytes], bytes] | None = None,
    ) -> None:
        if not steps:
            raise ValueError("a dialogue without steps, expected at least one")
        self.steps = tuple((bytes(sent), bytes(answer)) for sent, answer in steps)
        self.greeting = greeting
        self.normalize: Callable[[bytes], bytes] = normalize or bytes
        self.sent = b"".join(sent for sent, _ in self.steps)
        self.answers = greeting + b"".join(answer for _, answer in self.steps)
        self.boundaries = (0, *accumulate(len(sent) for sent, _ in self.steps))  # in what is sent

    def due(self, sent: int) -> bytes:
        """The answers to the steps that are complete in the first ``sent`` bytes, with the greeting."""
        complete = sum(end <= sent for end in self.boundaries[1:])
        return self.greeting + b"".join(answer for _, answer in self.steps[:complete])

    def points(self, most: int) -> list[int]:
        """Where to break off: after every number of bytes, or where these are too many, at the boundaries of steps,
        beside them, and evenly in between."""
        total = len(self.sent)
        if total < most:
            return list(range(total + 1))
        chosen = {*self.boundaries[:: len(self.boundaries) // most + 1], total}
        beside = [end + by for end in self.boundaries for by in (-1, 1) if 0 <= end + by <= total]
        evenly = [total * number // most for number in range(most)]
        for point in (*beside, *evenly):
            if len(chosen) < most:
                chosen.add(point)
        return sorted(chosen)
