"""The verdict: what is compared with what, and what must hold."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from poolsrv.ipc.stats import Status

from .attribution import Attribution
from .books import Books
from .damage import Damage
from .evidence import SLACK, Evidence
from .server import LogLine
from .site import MOST_PER_SOURCE, MOST_TIGHT

# What the documentation promises of counts: of a dispatcher that is killed a second's worth is lost; of a worker's own
# figures another second's worth; with kernel dispatch, of a killed worker's accepts 20 ms' worth.
UNCOUNTED_OF_DISPATCHER: Final = 1.25
UNCOUNTED_OF_WORKER: Final = 1.25
UNCOUNTED_ACCEPTS: Final = 1.0
NEVER: Final = (float("inf"), float("-inf"))  # no time is from here to there
MEMORY_MORE: Final = 0.05  # of a process, from the first measurement to the last
DESCRIPTORS_MORE: Final = {"worker": 9}  # children that wait in three warm interpreters: five to eight in each
MEMORY_GRAIN: Final = 768 << 10  # bytes; less is what the allocator happens to hold

STARTED_NOT: Final = "exited 3"  # a plugin's on_worker_start has failed: that of a broken config
# Lines that mean a fault of the server, whatever was done to it.
FAULTS: Final = re.compile(
    r"fault of the server|can't be trusted|breaks the protocol|worker failed|nobody has caught|can't be acted on"
    r"|can't answer status|exception ignored|thread .* has ended by|could not be started by|does not end: killing"
    r"|can't be formatted|has been silent"
)


@dataclass
class Measurement:
    """The processes of an idle server after the same small load.

    :ivar memory: anonymous bytes by role; of workers the mean.
    :ivar descriptors: how many by role; of workers the most.
    """

    memory: dict[str, int] = field(default_factory=dict)
    descriptors: dict[str, int] = field(default_factory=dict)
    listing: dict[str, list[str]] = field(default_factory=dict)  # of each process


@dataclass
class Check:
    """:ivar wrong: what does not hold; empty if all does.
    :ivar figures: what was compared.
    """

    name: str
    figures: str
    wrong: list[str] = field(default_factory=list)


@dataclass
class Run:
    """All that is judged."""

    books: Books
    damage: Damage
    evidence: Evidence
    attribution: Attribution
    status: Status
    first: Measurement
    last: Measurement
    left: list[str]
    failures: list[str]


def judge_run(run: Run) -> list[Check]:
    """Judge it."""
    return [
        _lost(run),
        _lost_in_workers(run),
        _accepted(run),
        _refused(run),
        _limits(run),
        _requests(run),
        _ends(run),
        _faults(run),
        _idle(run),
        _memory(run),
        _descriptors(run),
        Check("nothing is left behind", "processes, sockets, files, cgroups", run.left),
        Check("reloads, plugins and refusals do what they must", "", run.failures),
        _recovery(run),
    ]


def _lost(run: Run) -> Check:
    found = run.attribution
    figures = f"{len(run.books.lost)} lost, {sum(found.causes.values())} with a cause, {found.by_time} of these by time"
    return Check("each lost request has a cause", figures, [why for _, why in found.unexplained])


def _lost_in_workers(run: Run) -> Check:
    """What clients have lost with a worker is at most what the dispatcher knows to be lost."""
    wrong, known = [], 0
    for pid, lost in run.attribution.of_worker.items():
        end = run.evidence.ends.get(pid)
        if end is None:
            continue  # it has ended with its dispatcher
        known += end.lost
        died = run.damage.killed.get(pid, (end.at, ""))[0]
        just_accepted = sum(
            entry.pid == pid and died - UNCOUNTED_ACCEPTS <= entry.opened for entry in run.evidence.entries
        )
        most = end.lost + (just_accepted if _may_be_kernel(run, pid) else 0)
        if lost > most:
            wrong.append(f"worker {pid}: {lost} connections lost by clients, {most} by the dispatcher's books")
    return Check("workers lose what the dispatcher says", f"{known} by its books", wrong)


def _may_be_kernel(run: Run, worker: int) -> bool:
    """Whether a worker's pool may have kernel dispatch."""
    pool = run.evidence.dispatcher_of.get(worker, 0)
    served = run.evidence.served_from.get(pool)
    return served is None or "kernel" in run.damage.ways_until(served)


def _uncounted(run: Run) -> list[tuple[float, float]]:
    """Times whose counts may have gone with a dispatcher: one that is stopped before it is killed counts nothing."""
    dispatchers = set(run.evidence.dispatcher_of.values())
    return [
        (run.damage.held_up_before(at, pid) - UNCOUNTED_OF_DISPATCHER, at + SLACK)
        for pid, (at, cause) in run.damage.killed.items()
        if pid in dispatchers or "dispatcher" in cause
    ]


def _unreported(run: Run) -> dict[int, tuple[float, float]]:
    """By worker: the time before its death whose accepts and refusals it may not have reported (kernel dispatch)."""
    deaths = {pid: end.at for pid, end in run.evidence.ends.items()}
    deaths.update((pid, at) for pid, (at, _) in run.damage.killed.items() if pid in run.evidence.dispatcher_of)
    return {pid: (at - UNCOUNTED_ACCEPTS, at + SLACK) for pid, at in deaths.items() if _may_be_kernel(run, pid)}


def _accepted(run: Run) -> Check:
    """Each connection that a client has made was accepted or refused, by the server's count."""
    wrong = []
    ends, unreported = _uncounted(run), _unreported(run)
    made = accepted = refused = allowed = 0
    for listener in run.status.listeners:
        connects = run.books.connects[listener.name]
        counted = listener.accepted + sum(listener.refusals.values())
        visits = [visit for visit in run.books.visits if visit.listener == listener.name]
        uncounted = sum(run.evidence.was_accepted_in(visit, ends) for visit in visits)
        uncounted += sum(
            entry.listener == listener.name and begin <= entry.opened <= end
            for entry in run.evidence.entries
            for begin, end in [unreported.get(entry.pid, NEVER)]
        )
        made, accepted, allowed = made + connects, accepted + listener.accepted, allowed + uncounted
        refused += sum(listener.refusals.values())
        if not connects - uncounted <= counted <= connects:
            wrong.append(
                f"{listener.name}: {connects} connections made, {listener.accepted} accepted,"
                f" {sum(listener.refusals.values())} refused; at most {uncounted} may be uncounted"
            )
    figures = f"{made} made, {accepted} accepted, {refused} refused, {allowed} may be uncounted"
    return Check("connections made were accepted or refused", figures, wrong)


def _refused(run: Run) -> Check:
    """Each client that was refused is counted, and no worker has seen it."""
    wrong: list[str] = []
    ends = [*_uncounted(run), *_unreported(run).values()]
    seen: Counter[str] = Counter()
    by_kill: Counter[str] = Counter()
    times: dict[str, list[float]] = defaultdict(list)
    for visit in run.books.refused:
        entry = run.evidence.entry_of(visit)
        pids = {entry.pid, run.evidence.dispatcher_of.get(entry.pid, 0)} if entry is not None else set()
        if pids & run.damage.killed.keys():
            continue
        if entry is not None:
            wrong.append(f"{visit.listener}: {visit.peer} was let in by worker {entry.pid}, and then cut off")
        elif run.evidence.was_accepted_in(visit, ends):
            by_kill[visit.listener] += 1
        else:
            seen[visit.listener] += 1
            times[visit.listener].append(visit.began)
    counted = {one.name: sum(one.refusals.values()) for one in run.status.listeners}
    for name in counted:
        if not seen[name] <= counted[name] <= seen[name] + by_kill[name]:
            wrong.append(
                f"{name}: {seen[name]} clients refused, and {by_kill[name]} near a kill; {counted[name]} counted;"
                f" they had connected at {', '.join(f'{at:.3f}' for at in times[name])}"
            )
    figures = f"{sum(seen.values())} by the clients, {sum(counted.values())} by the server"
    return Check("refusals are counted", figures, wrong)


def _limits(run: Run) -> Check:
    """Never more than max_connections in one pool (with kernel dispatch there is no such limit)."""
    died = {pid: at for pid, (at, _) in run.damage.killed.items()}
    for pid, end in run.evidence.ends.items():
        died.setdefault(pid, end.at - SLACK)
    wrong, figures = [], []
    for listener, limit in (("tight", MOST_TIGHT), ("queue", MOST_TIGHT), ("sources", MOST_PER_SOURCE)):
        most, pool = run.evidence.most_open(listener, died, _pools_with_limits(run))
        figures.append(f"{listener} {most} of {limit}")
        if most > limit:
            wrong.append(f"{listener}: {most} open at a time in the pool of dispatcher {pool}, {limit} allowed")
    return Check("limits are strict", ", ".join(figures), wrong)


def _pools_with_limits(run: Run) -> set[int]:
    """Dispatchers of the pools that certainly had limits."""
    served = run.evidence.served_from.items()
    return {pool for pool, since in served if "kernel" not in run.damage.ways_until(since)}


def _requests(run: Run) -> Check:
    """Each HTTP request that was answered is in the access log, once."""
    wrong = []
    logged = run.evidence.requests
    for number, found in logged.items():
        if number and len(found) > 1:
            wrong.append(f"request {number} is {len(found)} times in the access log: {found}")
    for number, visit, at in run.books.done:
        if not logged.get(number):
            entry = run.evidence.entry_of(visit)
            pid = entry.pid if entry is not None else 0
            deaths = [run.damage.killed.get(one) for one in (pid, run.evidence.dispatcher_of.get(pid, 0))]
            if not any(death is not None and death[0] >= at - SLACK for death in deaths):
                wrong.append(
                    f"request {number} of {visit.peer}, answered at {at:.3f}, is not in the access log ({entry})"
                )
    total = sum(map(len, logged.values()))
    return Check("the access log has each request once", f"{len(run.books.done)} answered, {total} logged", wrong)


def _ends(run: Run) -> Check:
    """No worker has ended by itself."""
    wrong = []
    for pid, end in run.evidence.ends.items():
        pool = run.evidence.dispatcher_of.get(pid, 0)
        is_known = end.how in ("exited 0", STARTED_NOT) or "out of memory" in end.how
        if not is_known and pid not in run.damage.killed and pool not in run.damage.killed:
            wrong.append(f"worker {pid} {end.how} at {end.at:.3f}")
    return Check("each worker's end has a cause", f"{len(run.evidence.ends)} ends", wrong)


def _faults(run: Run) -> Check:
    lines = run.evidence.lines
    wrong = [f"{line.role}[{line.pid}] {line.message} {line.traceback}" for line in lines if _is_fault(line)]
    return Check("the log tells of no fault of the server", f"{len(lines)} lines", wrong)


def _is_fault(line: LogLine) -> bool:
    """Whether a line tells of one: a traceback does, unless it is that of a plugin which is meant to fail."""
    is_meant = any(plugin in line.traceback for plugin in ("chaos_plugins.py", "broken_start.py", "broken_import.py"))
    is_bad = line.level in ("unknown", "critical") or FAULTS.search(line.message) is not None
    return is_bad or (line.traceback != "" and not is_meant)


def _idle(run: Run) -> Check:
    status = run.status
    wrong = [f"{one.name}: {one.open} open" for one in status.listeners if one.open]
    wrong += [f"{one.name}: {one.queued} queued, {one.waiting} waiting" for one in status.listeners if _waits(one)]
    wrong += [f"worker {one.slot}: {one.open} open, {one.in_flight} in flight" for one in status.workers if one.open]
    wrong += [f"{one.pid} {one.command} runs" for one in status.programs if "poolsrv_cgi/warm/" not in one.command]
    wrong += [f"generation {one.generation} (pid {one.pid}) has not left" for one in status.server.leaving]
    return Check("at the end nothing is open", f"{len(status.listeners)} listeners", wrong)


def _waits(listener: object) -> bool:
    return bool(getattr(listener, "queued", 0) or getattr(listener, "waiting", 0))


def _memory(run: Run) -> Check:
    wrong, figures = [], []
    for role, first in run.first.memory.items():
        last = run.last.memory.get(role, 0)
        figures.append(f"{role} {first / 1024:.0f} to {last / 1024:.0f} KiB")
        if last > first * (1 + MEMORY_MORE) + MEMORY_GRAIN:
            wrong.append(f"{role}: {first} bytes at first, {last} at last")
    return Check("memory is where it was", ", ".join(figures), wrong)


def _descriptors(run: Run) -> Check:
    wrong, figures = [], []
    for role, first in run.first.descriptors.items():
        last = run.last.descriptors.get(role, 0)
        figures.append(f"{role} {first} to {last}")
        if last > first + DESCRIPTORS_MORE.get(role, 0):
            wrong.append(f"{role}: {first} at first, {last} at last: {_more(run, role)}")
    return Check("descriptors are as many as they were", ", ".join(figures), wrong)


def _more(run: Run, role: str) -> str:
    """What the process with the most descriptors has open more often than that of the first measurement."""
    first, last = (
        max((each for name, each in taken.listing.items() if name.startswith(role)), key=len)
        for taken in (run.first, run.last)
    )
    return ", ".join((Counter(_nameless(last)) - Counter(_nameless(first))).elements())


def _nameless(targets: list[str]) -> list[str]:
    return [re.sub(r"\[\d+\]", "", target) for target in targets]


def _recovery(run: Run) -> Check:
    kinds = ("kill a worker", "kill a dispatcher", "drain a worker", "drain a dispatcher")
    late = list(_never_recovered(run, kinds))
    return Check("the server is well again after each", f"{len(run.damage.troubles)} disturbances", late)


def _never_recovered(run: Run, kinds: tuple[str, ...]) -> Iterator[str]:
    for trouble in run.damage.troubles:
        if trouble.kind in kinds and trouble.tried and trouble.recovery is None:
            yield f"{trouble.kind} ({trouble.what}) at {trouble.at:.3f}"
