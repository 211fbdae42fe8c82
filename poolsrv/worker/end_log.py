"""A line in the log at the end of each connection, with its programs (``log_connections``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ..core.processes import describe_exit
from ..net.addresses import format_peer
from ..net.programs import Child
from .connection import Connection
from .connection_log import logger_of

MOST_PROGRAMS: Final = 4  # that the line of a connection shows: its latest ones


class EndLog:
    """Logs each connection of one listener at its end, with its programs, and a program that ends after it."""

    def __init__(self, listener: str) -> None:
        self._listener = listener
        self._programs: dict[int, list[Child]] = {}  # the latest that have ended, of open connections
        self._counts: dict[int, int] = {}  # of those
        self._left: dict[Child, tuple[int, str]] = {}  # running programs of closed connections: id and peer

    def program_ended(self, child: Child, connection: Connection | None) -> None:
        """A program has been reaped.

        :param connection: None if it is closed.
        """
        if connection is not None:
            programs = self._programs.setdefault(connection.id, [])
            programs.append(child)
            del programs[:-MOST_PROGRAMS]
            self._counts[connection.id] = self._counts.get(connection.id, 0) + 1
        elif child in self._left:
            number, peer = self._left.pop(child)
            logger_of(self._listener, number, peer).info(
                "after its end, %s", _described(child), extra={"programs": [_record(child)]}
            )

    def closed(self, connection: Connection, duration: float, reason: str, running: Sequence[Child]) -> None:
        """A connection's descriptor is closed.

        :param duration: seconds from its accept.
        :param running: its programs that have not ended.
        """
        number = connection.id
        ended, count = self._programs.pop(number, []), self._counts.pop(number, 0)
        peer = format_peer(connection.peer)
        self._left |= dict.fromkeys(running, (number, peer))
        parts = [f"closed after {duration:.3f} s, {connection.bytes_in} bytes in, {connection.bytes_out} out"]
        if reason:
            parts[0] += f": {reason}"
        if count > len(ended):
            parts.append(f"{count} programs, the latest:")
        parts += map(_described, (*ended, *running))
        logger_of(self._listener, number, peer).info(
            "%s",
            "; ".join(parts),
            extra={
                "duration": round(duration, 6),
                "bytes_in": connection.bytes_in,
                "bytes_out": connection.bytes_out,
                "reason": reason or None,
                "programs": [_record(child) for child in (*ended, *running)] or None,
            },
        )


def _described(child: Child) -> str:
    """``printenv[123] exited 0, 0.010 s of CPU, peak 3.1 MB, queued 0.200 s``."""
    if child.returncode is None:
        return f"{child.name}[{child.pid}] runs on"
    parts = [f"{child.name}[{child.pid}] {describe_exit(child.returncode)}"]
    if child.cpu is not None:
        parts.append(f"{child.cpu:.3f} s of CPU")
    if child.peak_memory is not None:
        parts.append(f"peak {child.peak_memory / 1e6:.1f} MB")
    if child.queued:
        parts.append(f"queued {child.queued:.3f} s")
    return ", ".join(parts)


def _record(child: Child) -> dict[str, object]:
    record: dict[str, object] = {"name": child.name, "pid": child.pid}
    if child.returncode is not None:
        cpu = None if child.cpu is None else round(child.cpu, 6)
        record |= {"exit": child.returncode, "cpu": cpu, "peak_memory": child.peak_memory}
        record["queued"] = round(child.queued, 6)
    return record
