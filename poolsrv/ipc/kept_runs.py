"""Records of runs as they travel over the pool link: the supervisor keeps them without understanding them.

A record is ``[id, matters, text]``; the text is the record's JSON. Standard library only, because the supervisor
imports it.
"""

from __future__ import annotations

from typing import Any, Final

MOST_IN_MESSAGE: Final = 64
LONGEST_TEXT: Final = 60_000  # characters; a record of 12,000 bytes has less
MOST_OF_A_KIND: Final = 500
MOST_CHARACTERS: Final = 4_000_000  # of a kind
_ID_LENGTH: Final = 8

KeptRun = tuple[str, bool, str]


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


class Shelf:
    """The latest records of one kind."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._characters = 0

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._texts

    def put(self, run_id: str, text: str) -> None:
        """Keep a record; the oldest ones make room. An ID that is there keeps its record."""
        if run_id in self._texts:
            return
        self._texts[run_id] = text
        self._characters += len(text)
        while len(self._texts) > MOST_OF_A_KIND or self._characters > MOST_CHARACTERS:
            oldest = next(iter(self._texts))
            self._characters -= len(self._texts.pop(oldest))

    def get(self, run_id: str) -> str | None:
        """Return a record's text, if it still is there."""
        return self._texts.get(run_id)

    def ids(self) -> list[str]:
        """The IDs, the oldest first."""
        return list(self._texts)


def message_of(pieces: list[KeptRun]) -> list[list[Any]]:
    """Records as JSON has them."""
    return [list(run) for run in pieces]
