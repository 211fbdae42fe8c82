"""Where a dialogue is played: a fresh harness in a fresh directory for each play, and a client that plays its part."""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from ..plugins.loader import class_of
from .client import Client
from .dialogue import Dialogue
from .findings import Finding, difference, raised
from .harness import Harness, NeverRests
from .in_process import Fault, WatchedConnection

PATIENCE: Final = 10.0  # seconds for what takes real time: programs, threads, other servers
_GRACE: Final = 1.0  # seconds for what nobody knows of
_LITTLE: Final = 0.1  # seconds for either, once something has been waited for in vain
_LONGEST_TIMER: Final = 60.0  # seconds that the time is moved, at most, to a timer that may bring an answer or an end
_MOST_TIMERS: Final = 20  # that it is moved to
_AFTERWARDS: Final = 60.0  # seconds that pass after each play, for what still comes then


class Injected(Exception):
    """What a hook raises in the plays in which every hook raises once."""


class Stage:
    """Plays parts of one dialogue.

    :ivar findings: what has differed so far.
    """

    def __init__(
        self,
        plugin: object,
        options: Mapping[str, Any] | None,
        dialogue: Dialogue,
        arguments: Mapping[str, Any],
        folder: Path,
    ) -> None:
        self.plugin = plugin
        self.dialogue = dialogue
        self.findings: list[Finding] = []
        self._known: dict[str, bool] = {}
        self._options = options
        self._arguments = {"idle_timeout": 0, **arguments}
        self._patience, self._grace = PATIENCE, _GRACE
        self._folder = folder

    def apart(self) -> Stage:
        """A stage for plays that are only for comparison: their findings are of no interest."""
        return Stage(self.plugin, self._options, self.dialogue, self._arguments, self._folder)

    def once(self, question: str, find_out: Callable[[Stage], bool]) -> bool:
        """The answer to a question that several plays have."""
        if question not in self._known:
            self._known[question] = find_out(self)
        return self._known[question]

    @contextmanager
    def play(self, name: str, point: int | None = None, handler: object = None) -> Iterator[Harness]:
        """A play on a fresh harness. Faults, and what is left behind, become findings.

        :param handler: in the place of the plugin.
        """
        with tempfile.TemporaryDirectory(dir=self._folder) as folder, _quiet():
            harness = Harness(
                handler or self.plugin, self._options, folder=Path(folder), raise_faults=False, **self._arguments
            )
            try:
                yield harness
                self._end(harness, name, point)
            except NeverRests as error:
                self.findings.append(Finding(name, point, str(error)))
            finally:
                harness.close()
            self.findings += [raised(name, point, fault) for fault in harness.faults if not _is_injected(fault)]

    def _end(self, harness: Harness, name: str, point: int | None) -> None:
        for client in harness.clients:
            client.resume_reading()
            client.close()
        self._await(harness, lambda: not harness.open_connections)
        for _ in range(_MOST_TIMERS):
            if not harness.open_connections or not harness.advance_to_timer(_LONGEST_TIMER):
                break
        if harness.open_connections:
            details = tuple(repr(client.connection) for client in harness.clients if not client.end)
            problem = "a connection is still open although its client has closed"
            self.findings.append(Finding(name, point, problem, details, "hold() without release(), or a program"))
        harness.advance(_AFTERWARDS)

    # --- what clients do

    def wait_for(self, harness: Harness, client: Client, size: int) -> bytes:
        """Wait until so many bytes have come, or the end, or nothing more is to be expected; all that has come."""

        def enough() -> bool:
            return client.closed or len(self.received(client)) >= size

        self._await(harness, enough)
        for _ in range(_MOST_TIMERS):
            if enough() or not harness.advance_to_timer(_LONGEST_TIMER):
                break
            self._await(harness, enough)
        if not enough() and not harness.run(enough, self._grace):  # a thread of the plugin's own, perhaps
            self._grace = _LITTLE
        return self.received(client)

    def _await(self, harness: Harness, condition: Callable[[], object]) -> None:
        """Wait in real time, as long as anything is under way. Where that is in vain, all that follows is given less:
        the plugin does not conform, and its tests are not to take minutes to say so."""
        if not harness.run(lambda: condition() or not harness.busy, self._patience):
            self._patience = _LITTLE

    def wait_for_end(self, harness: Harness, client: Client) -> bytes:
        """Wait until the server has closed; all that has come. Where it does not close, ``client.closed`` is False."""
        self._await(harness, lambda: client.closed)
        for _ in range(_MOST_TIMERS):
            if client.closed or not harness.advance_to_timer(_LONGEST_TIMER):
                break
            self._await(harness, lambda: client.closed)
        return self.received(client)

    def received(self, client: Client) -> bytes:
        """All that has come, as it is compared."""
        return self.dialogue.normalize(client.received)

    def step_by_step(self, harness: Harness, client: Client, steps: int | None = None, piece: int = 0) -> bytes:
        """Send each step once the answer to the one before has come; all that has come.

        :param steps: how many steps; None: all.
        :param piece: so many bytes are sent at a time; 0: the whole step.
        """
        size = len(self.dialogue.greeting)
        received = self.wait_for(harness, client, size) if size else b""
        for sent, answer in self.dialogue.steps[:steps]:
            if client.closed:
                break
            size += len(answer)
            for start in range(0, len(sent), piece or len(sent) or 1):
                client.send(sent[start : start + (piece or len(sent))])
            received = self.wait_for(harness, client, size)
        return received

    # --- what is found

    def compare(
        self,
        name: str,
        point: int | None,
        client: Client,
        received: bytes,
        expected: bytes,
        *,
        at_least: bool = False,
        problem: str = "the answers differ",
        cause: str = "",
    ) -> bool:
        """Whether a client has got what it was to get; where not, that is a finding."""
        if received == expected or (at_least and received.startswith(expected)):
            return True
        details = difference(expected, received, at_least=at_least)
        end = f"the connection is {f'closed ({client.end})' if client.end else 'open'}"
        is_short = expected.startswith(received)
        found = cause or (_cause_of_loss(client) if is_short else "")
        problem = "part of the answers is lost" if is_short and not cause else problem
        self.findings.append(Finding(name, point, problem, (*details, end), found))
        return False


def _cause_of_loss(client: Client) -> str:
    connection = client.connection
    if not isinstance(connection, WatchedConnection):
        return ""
    if connection.end == "eof" and connection.dropped_timers:
        calls = "a callback" if connection.dropped_timers == 1 else f"{connection.dropped_timers} callbacks"
        return (
            f"{calls} of conn.call_later had not been called when the engine closed the connection at end of stream:"
            " call_later does not hold it. Postpone work with conn.call_soon, or hold() before and release() after it"
        )
    if connection.end == "max_unsent exceeded":
        return "the plugin has sent more than max_unsent for a client that did not read: heed conn.congested"
    if not connection.end and (left := len(connection.peek())):
        return (
            f"{left} bytes are left in the buffer, and cause no call of on_readable by themselves: take everything"
            " that is there, not one message for each call"
        )
    return ""


def raising(plugin: object, hook: str, at_end: bool) -> type[Any]:
    """The plugin's class, where a hook raises the first time that it is called.

    :param at_end: after the plugin's own code has run, not in its place.
    """
    cls = class_of(plugin)
    original = getattr(cls, hook)
    raised_once = False

    @functools.wraps(original)  # takes over the mark and the arguments
    def raises(*arguments: Any) -> Any:
        nonlocal raised_once
        if raised_once:
            return original(*arguments)
        raised_once = True
        if at_end:
            original(*arguments)
        raise Injected(f"raised for the test, in {hook}")

    return type(cls.__name__, (cls,), {hook: raises, "__module__": cls.__module__})


@contextmanager
def _quiet() -> Iterator[None]:
    """Log nothing: it would be the same lines for each of hundreds of plays."""
    before = logging.root.manager.disable
    logging.disable()
    try:
        yield
    finally:
        logging.disable(before)


def _is_injected(fault: Fault) -> bool:
    return isinstance(fault.error, Injected)
