"""A load in which each request has a name of its own, so that what has become of it can be looked up."""

from __future__ import annotations

import http.client
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import Final

from tests.helpers.machines import Machine
from tests.helpers.server import TIMEOUT, wait_until

PAUSE: Final = 0.02  # seconds


@dataclass(frozen=True)
class Outcome:
    """What has become of a request.

    :ivar failure: empty, or what went wrong.
    :ivar body: of the answer: the name of the node.
    """

    name: str
    method: str
    began: float
    failure: str
    body: str


class TaggedLoad:
    """Clients in threads, on a machine: half of them send GET, half POST, each on a connection that is kept.

    :ivar outcomes: in the order of their ends.
    """

    def __init__(self, machine: Machine, address: str, path: str, clients: int = 8) -> None:
        self.outcomes: list[Outcome] = []
        self._waiting: dict[str, float] = {}
        self._machine = machine
        self._address = address
        self._path = path
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        method, sent = ("POST" if number % 2 else "GET"), 0
        with self._machine.entered():
            connection = http.client.HTTPConnection(self._address, timeout=TIMEOUT)
            while not self._stop.wait(PAUSE):
                sent += 1
                self.outcomes.append(self._once(connection, f"{method.lower()}-{id(self)}-{number}-{sent}", method))
            connection.close()

    def _once(self, connection: http.client.HTTPConnection, name: str, method: str) -> Outcome:
        began, failure, body = time.monotonic(), "", ""
        self._waiting[name] = began
        try:
            connection.request(method, self._path, b"x" * 100 if method == "POST" else None, {"X-Request-Id": name})
            response = connection.getresponse()
            body = response.read().decode().strip()
            if response.status != 200:
                failure = f"status {response.status}"
            if response.will_close:
                connection.close()
        except (OSError, http.client.HTTPException) as error:
            failure = repr(error)
            connection.close()
        del self._waiting[name]
        return Outcome(name, method, began, failure, body)

    @property
    def failures(self) -> list[Outcome]:
        return [each for each in self.outcomes if each.failure]

    def shares(self, after: int = 0) -> Counter[str]:
        """How many requests each node has answered, without the first so many."""
        return Counter(each.body for each in self.outcomes[after:] if not each.failure)

    def wait_for(self, more: int) -> int:
        """Wait for so many more requests; return how many there had been before."""
        before = len(self.outcomes)
        wait_until(lambda: len(self.outcomes) >= before + more, f"{more} more requests")
        return before

    def waiting_since_before(self, moment: float) -> list[str]:
        """The requests without an answer that began before a moment."""
        return [name for name, began in self._waiting.copy().items() if began < moment]

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * TIMEOUT)
