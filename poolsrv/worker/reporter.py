"""A worker's reports to the dispatcher: connections taken and closed, its state, its counters.

Each report wakes the dispatcher. News that no decision of the dispatcher waits for is therefore collected for a moment
and sent together. Where dispatch or a limit depends on the number of open connections, the connections closed in an
iteration are reported at its end.

If the worker accepts by itself, the dispatcher waits for no room, and reports may be longer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..core import forked_copies
from ..core.event_loop import EventLoop, Timer
from ..ipc.metrics import MetricsReport
from ..ipc.runs import Run
from ..ipc.worker_channel import (
    MAX_ACCEPTED_PER_REPORT,
    MAX_ASKED_PER_REPORT,
    MAX_CLOSED_PER_REPORT,
    MAX_REFUSED_PER_REPORT,
    Accepted,
    Question,
    Refused,
    Report,
    WorkerEnd,
)

REPORT_BATCH: Final = 16  # connections taken and closed that are reported without delay: a quarter of what may wait
OWN_BATCH: Final = 512  # the same, if the worker accepts by itself
REPORT_DELAY: Final = 0.02  # seconds within which fewer are reported
AGAIN_AFTER: Final = 0.05  # seconds, where the channel was full
HEARTBEAT: Final = 1.0  # seconds; shorter where hang_timeout asks for it


class Reporter:
    """Runs in the worker; ``after_turn`` is for the event loop.

    :param urgent: whether the dispatcher goes by how many connections are open.
    :param hang_timeout: seconds of silence after which the dispatcher will act; 0 is never.
    :param counters: the totals of ``worker_channel.COUNTERS``.
    :param metrics: what has changed of the worker's metrics since the last call.
    :param runs: the records of program runs to be reported now.
    :ivar taken: connections received; the worker counts up.
    :ivar closed: ids of connections closed; the worker appends.
    :ivar accepted: connections that the worker has accepted by itself, as ``worker_channel.Accepted``.
    :ivar refused: those that it has refused.
    :ivar asked: questions for the dispatcher; the admission client appends, and has ``tell`` called.
    :ivar state: the worker's new state, where it has changed; the worker sets it.
    """

    def __init__(
        self,
        loop: EventLoop,
        channel: WorkerEnd,
        *,
        urgent: bool,
        hang_timeout: float,
        counters: Callable[[], tuple[int, int, int, int, int]],
        metrics: Callable[[], list[MetricsReport]] = list,
        runs: Callable[[], list[Run]] = list,
    ) -> None:
        self.taken = 0
        self.closed: list[int] = []
        self.accepted: list[Accepted] = []
        self.refused: list[Refused] = []
        self.asked: list[Question] = []
        self.state: str | None = None
        self._loop = loop
        self._channel = channel
        self._urgent = urgent
        self._listened_for = hang_timeout > 0
        self._beat_every = min(HEARTBEAT, hang_timeout / 4) if hang_timeout else HEARTBEAT
        self._counters = counters
        self._metrics = metrics
        self._unsent: list[MetricsReport] = []
        self._collect_runs = runs
        self._runs: list[Run] = []  # not sent yet
        self._told_at = 0.0
        self._turns_told = 0  # the number of iterations at the last heartbeat
        self._heartbeat: Timer | None = None
        self._late: Timer | None = None
        self._again: Timer | None = None

    def begin(self, state: str) -> None:
        """Tell that the worker serves. Its loop may have nothing to do for long, so heartbeats begin now."""
        self.state = state
        self.tell(counters=True)
        if self._listened_for:
            self._turns_told = -1
            self._heartbeat = self._loop.call_later(self._beat_every, self._beat)

    def after_turn(self) -> None:
        """Report what is due now, and see to it that the rest is reported in time."""
        untold = self.taken + len(self.closed)
        if self.state is not None or untold >= REPORT_BATCH or (self.closed and self._urgent):
            self.tell()
        elif untold and self._late is None:
            self._late = self._loop.call_later(REPORT_DELAY, self._tell_late)
        if self._heartbeat is None and self._loop.turns != self._turns_told:
            self._heartbeat = self._loop.call_later(self._beat_every, self._beat)

    def after_turn_of_acceptor(self) -> None:
        """Do the same in a worker that accepts by itself."""
        untold = self.taken + len(self.closed)
        is_urgent = self.state is not None or self.taken >= REPORT_BATCH or (self.closed and self._urgent)
        if is_urgent or (self.accepted and self.is_quiet()) or untold >= OWN_BATCH or len(self.refused) >= OWN_BATCH:
            self.tell()
        elif self._late is None and (untold or self.accepted or self.refused):
            self._late = self._loop.call_later(REPORT_DELAY, self._tell_late)
        if self._heartbeat is None and self._loop.turns != self._turns_told:
            self._heartbeat = self._loop.call_later(self._beat_every, self._beat)

    def is_quiet(self) -> bool:
        """Whether no accepted connection has been reported for a moment."""
        return self._loop.now - self._told_at >= REPORT_DELAY

    def has_accepted(self, socket: int, count: int) -> None:
        """Note connections that the worker has accepted at one of its sockets."""
        runs = self.accepted
        if runs and runs[-1][0] == socket:
            runs[-1] = (socket, runs[-1][1] + count)
        else:
            runs.append((socket, count))

    def tell(self, counters: bool = False) -> None:
        """Report all that is new, counters and metrics if asked to. Does nothing if the dispatcher is gone."""
        forked_copies.end_if_copy("a report")
        if self.accepted:
            self._told_at = self._loop.now
        if counters and not self._unsent:
            self._unsent = self._metrics()
        if counters and not self._runs:
            self._runs = self._collect_runs()
        while True:
            accepted = self.accepted[:MAX_ACCEPTED_PER_REPORT]
            # What is reported of a connection comes after its accept.
            most = MAX_CLOSED_PER_REPORT if len(accepted) == len(self.accepted) else 0
            closed, self.closed = self.closed[:most], self.closed[most:]
            most = min(most, MAX_ASKED_PER_REPORT)
            asked, self.asked = self.asked[:most], self.asked[most:]
            metrics = self._unsent[0] if self._unsent else None
            runs = self._runs if metrics is None else []  # a message has room for one of them
            refused = self.refused[:MAX_REFUSED_PER_REPORT] if metrics is None and not runs else []
            totals = self._counters() if counters else None
            report = Report(self.taken, closed, self.state, totals, asked, metrics, runs, accepted, refused)
            try:
                sent = self._channel.report(report)
            except OSError:
                self.closed, self.asked = closed + self.closed, asked + self.asked
                return  # the dispatcher is gone: the end of file says so too
            if not sent:
                # The dispatcher is far behind: keep the news for a later iteration.
                self.closed, self.asked = closed + self.closed, asked + self.asked
                if self._again is None or self._again.callback is None:
                    self._again = self._loop.call_later(AGAIN_AFTER, self._try_again)
                return
            self.taken, self.state, counters = 0, None, False
            del self._unsent[:1], self.accepted[: len(accepted)], self.refused[: len(refused)]
            if metrics is None:
                self._runs = []
            if not (self.closed or self.asked or self._unsent or self._runs or self.accepted or self.refused):
                return

    def _tell_late(self) -> None:
        self._late = None
        if self.taken or self.closed or self.accepted or self.refused:
            self.tell()

    def _try_again(self) -> None:
        """Send questions; the rest may wait for the end of the iteration."""
        if self.asked:
            self.tell()

    def _beat(self) -> None:
        """Tell the counters. If nothing has happened there is nothing to tell, unless the watchdog listens."""
        self._heartbeat = None
        self._turns_told = -1 if self._listened_for else self._loop.turns
        self.tell(counters=True)
