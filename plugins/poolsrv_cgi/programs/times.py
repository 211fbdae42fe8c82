"""How long programs wait, start and run, and how many fail: the metrics of one listener's programs."""

from __future__ import annotations

from poolsrv import Counter, Histogram, Worker

__all__ = ["ProgramTimes"]


class ProgramTimes:
    """Made in the parent; counts in a worker, once it is open."""

    def __init__(self) -> None:
        self._queue: Histogram | None = None
        self._start: Histogram | None = None
        self._run: Histogram | None = None
        self._failed: Counter | None = None

    def open(self, worker: Worker) -> None:
        """In a worker, before its first connection."""
        define = worker.metrics.histogram
        self._queue = define("cgi_program_queue_seconds", "Time that a program's request has waited for max_programs")
        self._start = define("cgi_program_start_seconds", "Time that it takes the worker to start a program")
        self._run = define("cgi_program_run_seconds", "Time from a program's start until it has been reaped")
        self._failed = worker.metrics.counter("cgi_programs_failed", "Programs that failed, by how", ("how",))

    def started(self, queued: float, took: float) -> None:
        """Count a start.

        :param queued: seconds in the queue.
        :param took: seconds of the start itself.
        """
        if self._queue is not None and self._start is not None:
            self._queue.observe(queued)
            self._start.observe(took)

    def ended(self, ran: float, failure: str) -> None:
        """Count an end.

        :param ran: seconds since the start.
        :param failure: how the program has failed; empty if it has not.
        """
        if self._run is not None:
            self._run.observe(ran)
        if failure:
            self.failed(failure)

    def failed(self, how: str) -> None:
        """Count a failure."""
        if self._failed is not None:
            self._failed.labels(how).inc()
