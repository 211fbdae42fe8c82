"""Decisions made of the bytes of an input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


class Source:
    """Takes decisions from the beginning of the bytes; when they are used up, each is the first one possible."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def is_empty(self) -> bool:
        """Whether all bytes are used up."""
        return self._at >= len(self._data)

    def number(self, below: int) -> int:
        """A number from 0 up, of one byte, or of as many as it takes."""
        size = max((below - 1).bit_length() + 7 >> 3, 1)
        return int.from_bytes(self.take(size), "big") % below

    def choice(self, of: Sequence[T]) -> T:
        """One of these."""
        return of[self.number(len(of))]

    def take(self, size: int) -> bytes:
        """The next bytes, as far as there are so many."""
        piece = self._data[self._at : self._at + size]
        self._at += size
        return piece

    def text(self, longest: int = 255) -> str:
        """Any text: every code point can come out, lone surrogates too."""
        size = self.number(longest + 1)
        return self.take(size).decode("utf-8", "surrogateescape")

    def rest(self) -> bytes:
        """All that is left."""
        piece = self._data[self._at :]
        self._at = len(self._data)
        return piece


def cut(data: bytes, seed: int) -> list[bytes]:
    """Pieces of the data, of lengths that follow from the seed; 0: of one byte each."""
    if not seed:
        return [data[at : at + 1] for at in range(len(data))]
    pieces = []
    at = 0
    while at < len(data):
        seed = (seed * 1103515245 + 12345) & 0x7FFFFFFF
        size = 1 + (seed >> 16) % (1 + seed % 61)
        pieces.append(data[at : at + size])
        at += size
    return pieces
