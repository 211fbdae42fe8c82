"""Records of runs, as the dispatcher and the supervisor keep them, and as they travel between the two.

The supervisor keeps records without understanding them. On the pool link, one is ``[id, matters, text]``; the text is
the record's JSON. Standard library only, because the supervisor imports it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

MOST_IN_MESSAGE: Final = 64
LONGEST_TEXT: Final = 60_000  # characters; a record of 12,000 bytes has less
MOST_OF_A_KIND: Final = 500
MOST_CHARACTERS: Final = 4_000_000  # of a kind
_ID_LENGTH: Final = 8

KeptRun = tuple[str, bool, str]
Record = TypeVar("Record")


def are_runs(value: object) -> bool:
    """Whether this is a list of records."""
    return value is None or (isinstance(value, list) and len(value) <= MOST_IN_MESSAGE and all(map(_is_run, value)))


def _is_run(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], str)
        and len(value[0]) == _ID_LENGTH
        and type(value[1]) is bool
        and isinstance(value[2], str)
        and len(value[2]) <= LONGEST_TEXT
    )


class KeptRuns(Generic[Record]):
    """The latest records by their IDs, and apart from them the latest that matter: a flood does not push failures out.

    :param most: how many of each kind are kept.
    :param most_size: of all records of a kind.
    :param size: tells the size of one.
    """

    def __init__(self, most: int, most_size: int = 0, size: Callable[[Record], int] = lambda record: 0) -> None:
        self._most = most
        self._most_size = most_size
        self._size = size
        self._kinds: dict[bool, dict[str, Record]] = {True: {}, False: {}}  # by whether they matter; the oldest first
        self._sizes = {True: 0, False: 0}

    def add(self, run_id: str, matters: bool, record: Record) -> bool:
        """Keep a record; the oldest ones of its kind make room.

        :returns: False if none are kept, or if there is one with this ID, which stays.
        """
        if not self._most or self.get(run_id) is not None:
            return False
        self._kinds[matters][run_id] = record
        self._sizes[matters] += self._size(record)
        self._make_room(matters)
        return True

    def limit(self, most: int) -> None:
        """Keep so many of each kind from now on."""
        self._most = most
        for matters in self._kinds:
            self._make_room(matters)

    def _make_room(self, matters: bool) -> None:
        kind = self._kinds[matters]
        while len(kind) > self._most or self._sizes[matters] > self._most_size:
            self._sizes[matters] -= self._size(kind.pop(next(iter(kind))))

    def get(self, run_id: str) -> tuple[bool, Record] | None:
        """Return whether a record matters, and the record, if it still is there."""
        for matters, kind in self._kinds.items():
            if run_id in kind:
                return matters, kind[run_id]
        return None

    def ids(self) -> list[str]:
        """The IDs, of each kind the oldest first."""
        return [run_id for kind in self._kinds.values() for run_id in kind]

    def records(self) -> list[Record]:
        """The records, in the same order."""
        return [record for kind in self._kinds.values() for record in kind.values()]


def message_of(pieces: list[KeptRun]) -> list[list[Any]]:
    """Records as JSON has them."""
    return [list(run) for run in pieces]
