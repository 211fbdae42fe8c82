"""A worker's reports to the dispatcher: connections taken and closed, its state, its counters.

Each report wakes the dispatcher. News that no decision of the dispatcher waits for is therefore collected for a moment
and sent together. Where dispatch or a limit depends on the number of open connections, the connections closed in an
iteration are reported at its end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from ..core import forked_copies
from ..core.event_loop import EventLoop, Timer
from ..ipc.metrics import MetricsReport
from ..ipc.runs import Run
from ..ipc.worker_channel import MAX_ASKED_PER_REPORT, MAX_CLOSED_PER_REPORT, Question, Report, WorkerEnd

REPORT_BATCH: Final = 16  # connections taken and closed that are reported without delay: a quarter of what may wait
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
        self._turns_told = 0  # the number of iterations at the last heartbeat
        self._heartbeat: Timer | None = None
        self._late: Timer | None = None
        self._again: Timer | None = None

    def after_turn(self) -> None:
        """Report what is due now, and see to it that the rest is reported in time."""
        untold = self.taken + len(self.closed)
        if self.state is not None or untold >= REPORT_BATCH or (self.closed and self._urgent):
            self.tell()
        elif untold and self._late is None:
            self._late = self._loop.call_later(REPORT_DELAY, self._tell_late)
        if self._heartbeat is None and self._loop.turns != self._turns_told:
            self._heartbeat = self._loop.call_later(self._beat_every, self._beat)

    def tell(self, counters: bool = False) -> None:
        """Report all that is new, counters and metrics if asked to. Does nothing if the dispatcher is gone."""
        forked_copies.end_if_copy("a report")
        if counters and not self._unsent:
            self._unsent = self._metrics()
        if counters and not self._runs:
            self._runs = self._collect_runs()
        while True:
            closed, self.closed = self.closed[:MAX_CLOSED_PER_REPORT], self.closed[MAX_CLOSED_PER_REPORT:]
            asked, self.asked = self.asked[:MAX_ASKED_PER_REPORT], self.asked[MAX_ASKED_PER_REPORT:]
            metrics = self._unsent[0] if self._unsent else None
            runs = self._runs if metrics is None else []  # a message has room for one of them
            totals = self._counters() if counters else None
            report = Report(self.taken, closed, self.state, totals, asked, metrics, runs)
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
            del self._unsent[:1]
            if metrics is None:
                self._runs = []
            if not (self.closed or self.asked or self._unsent or self._runs):
                return

    def _tell_late(self) -> None:
        self._late = None
        if self.taken or self.closed:
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
