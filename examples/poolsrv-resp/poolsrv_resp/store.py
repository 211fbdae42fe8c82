"""The data: strings, each with the time at which it expires."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

LOOKED_AT: Final = 500  # keys in one sweep


class Store:
    """Keys and values. Each change is told as the request that makes it, with times as they are on the clock.

    :param changed: called with each change; None until the file has been read.
    :ivar used: bytes of all keys and values.
    """

    def __init__(self) -> None:
        self.changed: Callable[..., object] | None = None
        self.used = 0
        self._values: dict[bytes, bytes] = {}
        self._expiry: dict[bytes, int] = {}  # milliseconds since the epoch

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: bytes) -> bytes | None:
        """The value, or None."""
        if self._expiry and key in self._expiry and self._expiry[key] <= now():
            self.delete(key)
        return self._values.get(key)

    def expiry(self, key: bytes) -> int | None:
        """When a key that exists expires; None: never."""
        return self._expiry.get(key)

    def set(self, key: bytes, value: bytes, expiry: int | None = None) -> None:
        """Set a value, and when it expires."""
        self._forget(key)
        self._values[key] = value
        self.used += len(key) + len(value)
        if expiry is not None:
            self._expiry[key] = expiry
        if self.changed is not None:
            self.changed(b"SET", key, value, *([b"PXAT", b"%d" % expiry] if expiry is not None else []))

    def expire(self, key: bytes, expiry: int | None) -> None:
        """Change when a key that exists expires."""
        self._expiry.pop(key, None)
        if expiry is not None:
            self._expiry[key] = expiry
        if self.changed is not None:
            if expiry is None:
                self.changed(b"PERSIST", key)
            else:
                self.changed(b"PEXPIREAT", key, b"%d" % expiry)

    def delete(self, key: bytes) -> None:
        """Remove a key, if it is there."""
        if self._forget(key) and self.changed is not None:
            self.changed(b"DEL", key)

    def clear(self) -> None:
        """Remove all."""
        self._values.clear()
        self._expiry.clear()
        self.used = 0
        if self.changed is not None:
            self.changed(b"FLUSHALL")

    def sweep(self) -> None:
        """Remove some keys that have expired; called now and then, for those that nobody asks for."""
        at = now()
        for key in list(islice(self._expiry, LOOKED_AT)):
            if self._expiry[key] <= at:
                self.delete(key)
            else:
                self._expiry[key] = self._expiry.pop(key)  # to the end: others are looked at next time

    def snapshot(self) -> list[tuple[bytes, bytes, int | None]]:
        """All that is there now, for another thread."""
        return [(key, value, self._expiry.get(key)) for key, value in self._values.items()]

    def keys(self) -> Iterator[bytes]:
        """All keys that have not expired."""
        return (key for key in list(self._values) if self.get(key) is not None)

    def _forget(self, key: bytes) -> bool:
        value = self._values.pop(key, None)
        if value is None:
            return False
        self.used -= len(key) + len(value)
        self._expiry.pop(key, None)
        return True


def now() -> int:
    """Milliseconds since the epoch."""
    return int(time.time() * 1000)
