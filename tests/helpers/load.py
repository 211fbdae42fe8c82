"""A steady load of HTTP requests, each of which is counted, by the standard library's client."""

from __future__ import annotations

import http.client
import threading
from collections import Counter
from itertools import cycle
from types import TracebackType
from typing import Final

from tests.helpers.server import TIMEOUT

PAUSE: Final = 0.04  # seconds


class Load:
    """Clients that send requests until the end of the block, each with a short pause after every answer.

    Without the pause they would take the CPU from the server that is to be watched.

    :param path: what they ask for; of several, one after the other.
    :param keep_alive: the number of clients that send one request after another on their connection, and connect again
        when the server has said that it closes.
    :param single: the number of clients that connect again for each request.
    :ivar answers: how often each body was received.
    :ivar failures: each failure, in words.
    """

    def __init__(self, address: tuple[str, int], *path: str, keep_alive: int = 2, single: int = 2) -> None:
        self.answers: Counter[bytes] = Counter()
        self.failures: list[str] = []
        self._address = address
        self._path = path
        self._stop = threading.Event()
        self._lock = threading.Lock()
        kinds = [True] * keep_alive + [False] * single
        self._threads = [threading.Thread(target=self._run, args=(kind,), daemon=True) for kind in kinds]

    def _run(self, keep_alive: bool) -> None:
        header = {} if keep_alive else {"Connection": "close"}
        connection = self._connect()
        for path in cycle(self._path):
            if self._stop.is_set():
                break
            try:
                connection.request("GET", path, headers=header)
                response = connection.getresponse()
                body, status, closes = response.read(), response.status, response.will_close
            except (OSError, http.client.HTTPException) as error:
                body, status, closes = b"", 0, True
                failure = repr(error)
            with self._lock:
                if status == 200:
                    self.answers[body] += 1
                else:
                    self.failures.append(failure if not status else f"status {status}")
            if closes:
                connection.close()
                connection = self._connect()
            self._stop.wait(PAUSE)
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(*self._address, timeout=TIMEOUT)

    @property
    def count(self) -> int:
        """The number of requests that have been answered."""
        return sum(self.answers.values())

    def has_gone_on(self, before: int) -> bool:
        """Whether more requests have been answered than ``before``."""
        return self.count > before

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
