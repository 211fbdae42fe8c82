"""What the server and its processes say of a run: the journal of connections, access log, log."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .books import NAMELESS, Visit
from .server import LogLine

SLACK = 0.25  # seconds between what happens and its note, on a busy machine
_SERVES = re.compile(r"worker \S+ \(pid (\d+)\) serves")
_ENDED = re.compile(
    r"worker (?P<slot>\S+) \(pid (?P<pid>\d+)\) (?P<how>exited \d+|killed by .*?)"
    r"( while starting)?(, (?P<lost>\d+) connections? (is|are) lost)?$"
)
_NO_ROOM = re.compile(r"a connection was lost at the limit of open descriptors|connections lost: \d+")
_NUMBER = re.compile(r"\?(\d+)(?: |$)")


@dataclass(slots=True)
class Entry:
    """A connection in the journal.

    :ivar pid: of its worker.
    :ivar closed: when the worker closed it; None: never.
    """

    pid: int
    number: int
    listener: str
    peer: str
    opened: float
    closed: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class WorkerEnd:
    """A worker that has ended, as the dispatcher's log has it.

    :ivar lost: connections that it had open, by the dispatcher's books.
    """

    pid: int
    at: float
    how: str
    lost: int


@dataclass
class Evidence:
    """:ivar dispatcher_of: worker's pid to its dispatcher's.
    :ivar served_from: dispatcher's pid to the time when the first of its workers served.
    :ivar left: when plugins have ended their workers, by the worker's pid.
    :ivar no_room: when the log said that connections were lost for want of descriptors.
    :ivar requests: HTTP requests in the access log, by number of the request; those with number 0 are nobody's.
    :ivar programs: those that the log has at the end of a connection, by its worker's pid and its number.
    """

    entries: list[Entry] = field(default_factory=list)
    requests: dict[int, list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    ends: dict[int, WorkerEnd] = field(default_factory=dict)
    dispatcher_of: dict[int, int] = field(default_factory=dict)
    served_from: dict[int, float] = field(default_factory=dict)
    no_room: list[float] = field(default_factory=list)
    left: dict[int, float] = field(default_factory=dict)
    programs: dict[tuple[int, int], list[dict[str, Any]]] = field(default_factory=lambda: defaultdict(list))
    lines: Sequence[LogLine] = ()
    _by_peer: dict[tuple[str, str], list[Entry]] = field(default_factory=lambda: defaultdict(list))

    @classmethod
    def read(cls, folder: Path, lines: Sequence[LogLine]) -> Evidence:
        """Read it all from the server's folder."""
        found = cls(lines=lines)
        found.read_journal((folder / "journal").read_text().splitlines())
        access_log = folder / "access.log"
        found.read_access_log(access_log.read_text().splitlines() if access_log.exists() else ())
        found.read_log(lines)
        return found

    def read_journal(self, lines: Iterable[str]) -> None:
        """Read what the plugin of each worker has noted."""
        open_ones: dict[tuple[int, int, str], Entry] = {}
        for line in lines:
            at, pid, word, number, listener, rest = (*line.split(" ", 5), "")[:6]
            key = (int(pid), int(number), listener)
            if word == "open":
                entry = Entry(int(pid), int(number), listener, rest, float(at))
                self.entries.append(entry)
                self._by_peer[listener, rest].append(entry)
                open_ones[key] = entry
            elif word == "exit":
                self.left[int(pid)] = float(at)
            elif key in open_ones:
                entry = open_ones.pop(key)
                entry.closed, entry.reason = float(at), rest

    def read_access_log(self, lines: Iterable[str]) -> None:
        """Read the lines of requests in JSON."""
        for line in lines:
            request = json.loads(line)
            if number := _NUMBER.search(request.get("request", "")):
                self.requests[int(number[1])].append(request)

    def read_log(self, lines: Iterable[LogLine]) -> None:
        """Read which workers have been there, how they have ended, and which programs."""
        for line in lines:
            if serves := _SERVES.match(line.message):
                self.dispatcher_of[int(serves[1])] = line.pid
                self.served_from.setdefault(line.pid, line.at)
            elif ended := _ENDED.match(line.message):
                pid = int(ended["pid"])
                self.dispatcher_of.setdefault(pid, line.pid)
                self.ends[pid] = WorkerEnd(pid, line.at, ended["how"], int(ended["lost"] or 0))
            elif _NO_ROOM.search(line.message):
                self.no_room.append(line.at)
            elif line.fields.get("programs"):
                self.programs[line.pid, line.fields["connection"]] += line.fields["programs"]

    def entry_of(self, visit: Visit) -> Entry | None:
        """The journal's entry of a client's connection; None if no worker has opened it, or on a unix socket, where a
        client has no name."""
        if visit.peer == NAMELESS:
            return None
        since = (visit.tried or visit.began) - SLACK
        for entry in reversed(self._by_peer.get((visit.listener, visit.peer), [])):
            if since <= entry.opened and (not visit.ended or entry.opened <= visit.ended + SLACK):
                return entry
        return None

    def was_accepted_in(self, visit: Visit, times: Sequence[tuple[float, float]]) -> bool:
        """Whether a connection may have been accepted within one of these times; it may have waited before."""
        entry = self.entry_of(visit)
        since = until = entry.opened if entry is not None else 0.0
        if entry is None:
            since, until = visit.began, visit.ended or float("inf")
        return any(begin <= until and since <= end for begin, end in times)

    def programs_of(self, entry: Entry | None) -> list[dict[str, Any]]:
        """The programs of a connection, as the log has them at its end."""
        return self.programs.get((entry.pid, entry.number), []) if entry is not None else []

    def most_open(self, listener: str, died: Mapping[int, float], pools: Container[int]) -> tuple[int, int]:
        """The most connections of a listener that workers of one pool had open at a time.

        :param died: when workers and dispatchers have died, by pid.
        :param pools: dispatchers of the pools to look at.
        :returns: that number, and the dispatcher's pid.
        """
        changes: dict[int, list[tuple[float, int]]] = defaultdict(list)
        for entry in self.entries:
            pool = self.dispatcher_of.get(entry.pid, 0)
            if entry.listener == listener and pool in pools:
                end = entry.closed
                if end is None:
                    end = min(died.get(entry.pid, entry.opened), died.get(pool, float("inf")))
                changes[pool] += [(entry.opened, 1), (end, -1)]
        most = (0, 0)
        for pool, found in changes.items():
            now = 0
            for _, change in sorted(found):
                now += change
                most = max(most, (now, pool))
        return most
