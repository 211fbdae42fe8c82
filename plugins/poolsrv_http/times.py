"""How long responses take: the metrics of a server, by the class of their status."""

from __future__ import annotations

from poolsrv import Histogram, Worker

__all__ = ["ResponseTimes"]

_CLASSES = ("none", "1xx", "2xx", "3xx", "4xx", "5xx")


class ResponseTimes:
    """Made in the parent; counts in a worker, once it is open."""

    def __init__(self) -> None:
        self._total: list[Histogram] = []  # by the first digit of the status
        self._first_byte: list[Histogram] = []

    def open(self, worker: Worker) -> None:
        """In a worker, before its first connection."""
        total = worker.metrics.histogram(
            "http_response_seconds", "Time from a request's first byte to the end of its response", ["status"]
        )
        first_byte = worker.metrics.histogram(
            "http_first_byte_seconds", "Time from a request's first byte to that of its response", ["status"]
        )
        self._total = [total.labels(name) for name in _CLASSES]
        self._first_byte = [first_byte.labels(name) for name in _CLASSES]

    def response(self, status: int, first_byte: float | None, total: float) -> None:
        """Count a response.

        :param status: that the client got; 0 if it got none.
        :param first_byte: seconds; None if none was sent.
        :param total: seconds.
        """
        if self._total:
            self._total[status // 100].observe(max(total, 0.0))
            if first_byte is not None:
                self._first_byte[status // 100].observe(max(first_byte, 0.0))
