"""The cause of each lost request: a process that was killed, a program that was, or a refusal that was counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from .books import Books, Form, Lost, Visit
from .damage import SCARCITY, Damage
from .evidence import SLACK, Entry, Evidence

REFUSALS: Final = frozenset({500, 502, 503, 507})  # answers of a server that lacks something
IDLE_BEFORE_CLOSE: Final = 1.5  # seconds: a draining worker waits 2 for one more request


@dataclass
class Attribution:
    """:ivar causes: how many were lost for each cause, by kind of request.
    :ivar unexplained: those without a cause.
    :ivar of_worker: connections lost with each process that ended, by its pid.
    :ivar described: all of them in words, with their causes.
    :ivar by_time: those that no worker's journal has, attributed to a process that ended at the time.
    """

    causes: Counter[tuple[str, str]] = field(default_factory=Counter)
    unexplained: list[tuple[Lost, str]] = field(default_factory=list)
    of_worker: Counter[int] = field(default_factory=Counter)
    by_time: int = 0
    described: list[str] = field(default_factory=list)


def attribute(books: Books, damage: Damage, evidence: Evidence) -> Attribution:
    """Find the cause of each lost request."""
    found = Attribution()
    counted: set[Visit] = set()
    for lost in books.lost:
        entry = evidence.entry_of(lost.visit)
        pid = entry.pid if entry is not None else lost.visit.pid
        death = _died(pid, lost, entry, damage, evidence) if pid else None
        cause = _cause(lost, entry, death, damage, evidence, found)
        described = _describe(lost, entry, evidence)
        found.described.append(f"{cause or 'NO CAUSE'}: {described}")
        if cause is None:
            found.unexplained.append((lost, described))
            continue
        found.causes[lost.kind, cause] += 1
        if cause == death and lost.visit not in counted:
            counted.add(lost.visit)
            found.of_worker[pid] += 1
    return found


def _cause(
    lost: Lost, entry: Entry | None, death: str | None, damage: Damage, evidence: Evidence, found: Attribution
) -> str | None:
    if lost.form is Form.WRONG:
        return None
    if lost.form is Form.LOOKS_WHOLE:
        return _program_failed(lost, entry, damage, evidence)
    # What a worker has still answered was not lost with it, although it died soon after.
    if lost.status:
        return _refused(lost, damage, evidence) or death
    if lost.form is Form.REFUSED or (entry is not None and entry.reason == "refused"):
        return _lacking(lost, damage, "refused") or death
    if death:
        return death
    if cause := _program_failed(lost, entry, damage, evidence):
        return cause
    if cause := _program_died(lost, entry, damage, evidence):
        return cause
    if entry is not None and _closed_while_idle(lost, entry):
        return "sent again: the server closed an idle connection"
    if entry is None and not lost.visit.pid:
        for at, cause in damage.killed.values():
            if lost.visit.began - SLACK <= at <= lost.at + SLACK:
                found.by_time += 1
                return cause
        if any(lost.visit.began - SLACK <= at <= lost.at + SLACK for at in evidence.no_room):
            found.by_time += 1
            return _lacking(lost, damage, "lost, as the log says")
    return None


def _died(pid: int, lost: Lost, entry: Entry | None, damage: Damage, evidence: Evidence) -> str | None:
    """Why the process that had the connection has ended, if that was before the client noticed."""
    closed = entry.closed if entry is not None and entry.closed is not None else float("inf")
    for victim in (pid, evidence.dispatcher_of.get(pid, 0)):
        if victim in damage.killed:
            at, cause = damage.killed[victim]
            if at <= lost.at + SLACK and at <= closed + SLACK:  # it had not been closed before
                return cause
    end = evidence.ends.get(pid)
    if end is not None and "out of memory" in end.how and end.at <= min(lost.at, closed) + SLACK:
        return "the kernel killed a worker, out of memory"
    return None


def _program_died(lost: Lost, entry: Entry | None, damage: Damage, evidence: Evidence) -> str | None:
    ended = [request for request in evidence.requests.get(lost.number, ()) if request.get("signal") in (9, 15)]
    ended += [
        program
        for program in evidence.programs_of(entry)
        if program.get("exit") in (-9, -15) and program["pid"] in damage.programs
    ]
    if ended and any(at <= lost.at + SLACK for at in damage.programs.values()):
        return "a program was killed"
    return None


def _refused(lost: Lost, damage: Damage, evidence: Evidence) -> str | None:
    """An error that the server has counted, while it lacked what the request needed."""
    counted = [request for request in evidence.requests.get(lost.number, ()) if request.get("status") == lost.status]
    if not counted or lost.status not in REFUSALS:
        return None
    if cause := _program_died(lost, None, damage, evidence):
        return cause
    return _lacking(lost, damage, f"refused with {lost.status}")


def _lacking(lost: Lost, damage: Damage, what: str) -> str | None:
    """What was scarce while the request was served."""
    for kind in SCARCITY:
        for began, end in damage.windows(kind):
            if began - SLACK <= lost.at and lost.began <= end + SLACK:
                return f"{what}: {kind}"
    return None


def _program_failed(lost: Lost, entry: Entry | None, damage: Damage, evidence: Evidence) -> str | None:
    """A program that lacked something has ended by itself, with an exit status that says so."""
    ended = [request.get("exit", 0) for request in evidence.requests.get(lost.number, ())]
    ended += [program.get("exit") or 0 for program in evidence.programs_of(entry)]
    return _lacking(lost, damage, "the program failed") if any(status > 0 for status in ended) else None


def _closed_while_idle(lost: Lost, entry: Entry) -> bool:
    """Whether the server has closed a connection that had been idle for long (RFC 9112, 9.3.1)."""
    if "before a response" not in lost.why and "reset" not in lost.why.lower():
        return False
    idle_since = lost.visit.answered_at or lost.visit.began
    return (
        lost.kind in ("keep-alive", "CGI warm", "https")
        and entry.closed is not None
        and lost.began >= entry.closed - SLACK
        and lost.began - idle_since >= IDLE_BEFORE_CLOSE
    )


def _describe(lost: Lost, entry: Entry | None, evidence: Evidence) -> str:
    where = "no worker's journal has it"
    if entry is not None:
        closed = f"closed at {entry.closed:.3f} ({entry.reason})" if entry.closed is not None else "not closed"
        where = f"connection #{entry.number} of worker {entry.pid}, opened at {entry.opened:.3f}, {closed}"
        if end := evidence.ends.get(entry.pid):
            where += f"; that worker {end.how} at {end.at:.3f}"
    requests = evidence.requests.get(lost.number, ()) if lost.number else ()
    return (
        f"{lost.kind} #{lost.number} {lost.visit.peer}: {lost.why}; connected at {lost.visit.began:.3f}, asked at"
        f" {lost.began:.3f}, seen at {lost.at:.3f}; {where}; access log: {list(requests)}"
    )
