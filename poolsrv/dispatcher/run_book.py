"""The run book: the latest records of program runs, of this pool's workers and of former pools (ipc/runs.py)."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

import msgspec

from ..ipc.kept_runs import MOST_IN_MESSAGE, KeptRuns, message_of
from ..ipc.pieces import in_pieces
from ..ipc.pool_link import PoolLink
from ..ipc.runs import Run, is_id
from ..ipc.stats import PROTOCOL, Answer

MOST_UNTOLD: Final = 64  # records that the supervisor has not been told, in a second
PIECES_AT_A_TIME: Final = 3
LAST_TIME: Final = 1.0  # seconds to tell it the last ones
LAST_PAUSE: Final = 0.005  # seconds between two tries

_decode: Final = msgspec.json.Decoder(Run).decode


class RunBook:
    """Keeps the latest records.

    :param most: how many of each kind are kept.
    :param link: to the supervisor, which keeps them over a reload or a crash; None if it does not.
    """

    def __init__(self, most: int, link: PoolLink | None = None) -> None:
        self._link = link
        self._kept: KeptRuns[Run] = KeptRuns(most)
        self._untold: dict[str, Run] = {}

    def take(self, runs: Iterable[Run]) -> None:
        """Enter what a worker has reported."""
        for run in runs:
            if self._kept.add(run.id, run.matters, run) and self._link is not None:
                self._untold[run.id] = run
        while len(self._untold) > MOST_UNTOLD:
            others = (run_id for run_id, run in self._untold.items() if not run.matters)
            del self._untold[next(others, next(iter(self._untold)))]

    def learn(self, fields: dict[str, Any]) -> None:
        """Enter what the supervisor has kept of other pools."""
        for _, _, text in fields.get("runs") or ():
            try:
                run = _decode(text)
            except (msgspec.MsgspecError, ValueError):
                continue  # a later version's, after a downgrade; or a pool's that could not be trusted
            self._kept.add(run.id, run.matters, run)

    def tell(self) -> None:
        """Tell the supervisor what is new: some pieces, if it has read all before, so that others find room."""
        if self._link is None or not self._untold:
            return
        runs = [(run.id, run.matters, msgspec.json.encode(run).decode()) for run in self._untold.values()]
        try:
            if self._link.unread():
                return
            for piece in islice(in_pieces(runs, MOST_IN_MESSAGE), PIECES_AT_A_TIME):
                self._link.send("alive", runs=message_of(piece))
                for run_id, _, _ in piece:
                    del self._untold[run_id]
        except OSError:
            return  # the supervisor is held up: the rest follows in a second

    def tell_all(self) -> None:
        """Tell it everything, for this process ends: it waits for the supervisor, but not for long."""
        deadline = time.monotonic() + LAST_TIME
        while self._link is not None and self._untold and time.monotonic() < deadline:
            self.tell()
            time.sleep(LAST_PAUSE)

    def answer(self) -> Answer:
        """Answer ``runs`` on the control socket: all that is kept, the latest end last."""
        runs = [run.summary() for run in self._kept.records()]
        return Answer(PROTOCOL, runs=sorted(runs, key=lambda run: run.at + run.took))

    def answer_one(self, run_id: str) -> Answer:
        """Answer ``run ID``."""
        found = self._kept.get(run_id)
        if found is not None:
            return Answer(PROTOCOL, runs=[found[1]])
        return Answer(PROTOCOL, runs=[]) if is_id(run_id) else Answer(PROTOCOL, error="expected run ID")
