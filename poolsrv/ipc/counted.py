"""What a pool has counted, as it is sent over the pool link: the supervisor adds it up without understanding it.

A series is written as ``[key, amount]``. The key is the text that identifies it. The amount is a number, or
``[sum, [[bucket, times], ...]]`` for a histogram. Standard library only, because the supervisor imports it.

The supervisor keeps a histogram as text: its buckets fill for days, and each would be four objects more.
"""

from __future__ import annotations

import json
from typing import Any, Final

LONGEST_KEY: Final = 8000  # characters
MOST_KEYS: Final = 20_000  # of one pool
MOST_COUNTED: Final = 2**62
MOST_BUCKETS: Final = 100


def is_counted(value: object) -> bool:
    """Whether this is a list of series."""
    return value is None or (isinstance(value, list) and all(map(_is_series, value)))


def _is_series(value: object) -> bool:
    if not (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and len(value[0]) <= LONGEST_KEY):
        return False
    amount = value[1]
    if isinstance(amount, list):
        return len(amount) == 2 and _is_number(amount[0]) and isinstance(amount[1], list) and _are_buckets(amount[1])
    return _is_number(amount)


def _are_buckets(filled: list[Any]) -> bool:
    return len(filled) <= MOST_BUCKETS and all(
        isinstance(one, list)
        and len(one) == 2
        and all(type(number) is int and 0 <= number <= MOST_COUNTED for number in one)
        and one[0] < MOST_BUCKETS
        for one in filled
    )


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= MOST_COUNTED  # type: ignore[operator]


def packed(amount: Any) -> Any:
    """An amount as it is kept."""
    return json.dumps(amount, separators=(",", ":")) if isinstance(amount, list) else amount


def unpacked(kept: Any) -> Any:
    """The amount again."""
    return json.loads(kept) if isinstance(kept, str) else kept


def added(one: Any, other: Any) -> Any:
    """The sum of two amounts; of different kinds, the second."""
    if one is None or isinstance(one, list) != isinstance(other, list):
        return other
    if not isinstance(one, list):
        return min(one + other, MOST_COUNTED)
    times = dict(one[1])
    for bucket, more in other[1]:
        times[bucket] = min(times.get(bucket, 0) + more, MOST_COUNTED)
    return [min(one[0] + other[0], MOST_COUNTED), [[bucket, count] for bucket, count in sorted(times.items())]]
