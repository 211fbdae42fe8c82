"""Splits what is too much for one message of the pool link. Standard library only: the supervisor imports it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Final, TypeVar

PIECE: Final = 32_000  # characters of a message

Item = TypeVar("Item")


def in_pieces(items: Iterable[Item], most: int | None = None) -> Iterator[list[Item]]:
    """Split items, which are written as JSON, into lists that fit into a message each.

    :param most: how many a message may have; None: as many as fit.
    """
    piece: list[Item] = []
    size = 0
    for item in items:
        length = len(json.dumps(item))
        if piece and (size + length > PIECE or len(piece) == most):
            yield piece
            piece, size = [], 0
        piece.append(item)
        size += length
    if piece:
        yield piece
