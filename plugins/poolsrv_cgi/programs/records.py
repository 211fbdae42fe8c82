"""Records of the programs that have run, for `poolsrv runs`.

At a program's end no more is kept than references to what is there anyway. A `Run` is made of it only when the worker
asks, once a second, and only of so many as it will report: of a flood, those that have failed or were slow, and the
latest of the others.
"""

from __future__ import annotations

import resource
import time
from collections import deque
from collections.abc import Mapping, Sequence

import msgspec
from poolsrv_http import Outcome

from poolsrv import Run, Worker

from .masking import Masking

__all__ = ["Ended", "Recorder", "reason_of"]

MOST, SLOW = Run.MOST, Run.SLOW  # looking up a member of a struct's class takes long
LONGEST = 1000  # characters of a text in a record
MOST_NEW = 8 * MOST  # ended programs that are looked through at a time
USAGE = {
    "minor_faults": "ru_minflt",
    "major_faults": "ru_majflt",
    "blocks_read": "ru_inblock",
    "blocks_written": "ru_oublock",
    "voluntary_switches": "ru_nvcsw",
    "involuntary_switches": "ru_nivcsw",
}


class Ended(msgspec.Struct, eq=False, gc=False):
    """A program that has ended, or could not be started.

    :ivar began: monotonic.
    :ivar took: seconds.
    :ivar start: seconds that its start took.
    :ivar outcome: of its HTTP request, which may still go on; None for other protocols.
    :ivar failure: why its output was of no use; "" where it was not so. It may be known only after its end.
    :ivar overdue: the timeout that it has exceeded, or "".
    :ivar end: why the server has ended it, where that was not the program's fault; else "".
    :ivar last_lines: of its standard error; the rest may still be read.
    :ivar nph: whether it had the connection as its output.
    :ivar id: of the run, if it is captured.
    :ivar capture: the file for that.
    """

    listener: str
    client: object
    program: str
    argv: Sequence[str]
    directory: str | None
    environment: Mapping[str, str]
    request: str
    outcome: Outcome | None
    pid: int
    warm: bool
    began: float
    queued: float
    start: float
    took: float
    returncode: int | None
    cpu: float | None
    rusage: resource.struct_rusage | None
    overdue: str
    failure: str
    end: str
    last_lines: deque[str]
    nph: bool
    id: str = ""
    capture: str = ""

    @property
    def failed(self) -> bool:
        """Whether the run counts as failed."""
        return (self.returncode != 0 and not self.end) or bool(self.overdue or self.failure)

    def capture_lost(self) -> None:
        """Take note that there is no capture: it could not be written."""
        self.capture = ""

    @property
    def address(self) -> str:
        """The client's address."""
        return _address(self.client)

    @property
    def matters(self) -> bool:
        """Whether its record is kept longer than those of others."""
        return self.took >= SLOW or self.failed


class Recorder:
    """The records of one listener; `open` is for each worker.

    :ivar is_on: whether anything becomes of a record.
    """

    def __init__(self, masking: Masking, is_on: bool = False) -> None:
        self.is_on = is_on
        self._masking = masking
        self._new: list[Ended] = []

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection."""
        self.is_on = worker.report_runs(self._take) or self.is_on

    def ended(self, ended: Ended) -> None:
        """Keep a record."""
        new = self._new
        new.append(ended)
        if len(new) >= MOST_NEW:
            self._new = _most_important(new)

    def _take(self) -> list[Run]:
        new, self._new = self._new, []
        return [self.run_of(ended) for ended in _most_important(new)]

    def run_of(self, ended: Ended) -> Run:
        """The record of a program, without secrets."""
        environment, _ = self._masking.environment(ended.environment, LONGEST)
        rusage, outcome = ended.rusage, ended.outcome
        run = Run(
            at=time.time() - (time.monotonic() - ended.began),
            took=max(ended.took, 0.0),
            failed=ended.failed,
            listener=ended.listener,
            program=ended.program,
            command=list(ended.argv),
            directory=ended.directory or "",
            request=self._masking.parameters(ended.request[:LONGEST]),
            client=ended.address,
            pid=ended.pid,
            warm=ended.warm,
            queued=max(ended.queued, 0.0),
            start=max(ended.start, 0.0),
            returncode=ended.returncode,
            status=outcome.status if outcome is not None else 0,
            reason=reason_of(ended),
            cpu=ended.cpu,
            peak_memory=_peak_memory(rusage),
            usage={} if rusage is None else {name: getattr(rusage, field) for name, field in USAGE.items()},
            environment=environment,
            stderr=list(ended.last_lines),
            capture=ended.capture,
        )
        return msgspec.structs.replace(run, id=ended.id) if ended.id else run


def _most_important(ended: list[Ended]) -> list[Ended]:
    """Those that a worker will report, in their order: the latest that matter, and the latest of the others."""
    if len(ended) <= MOST:
        return ended
    matter: list[Ended] = []
    others: list[Ended] = []
    for one in ended:
        (matter if one.matters else others).append(one)
    return matter[-MOST:] + others[-MOST:]


def reason_of(ended: Ended) -> str:
    """Why the server has ended it, or could not use its output; else ""."""
    if ended.overdue:
        return f"over its {ended.overdue}"
    return ended.failure or ended.end


def _peak_memory(rusage: resource.struct_rusage | None) -> int | None:
    """Bytes, where they are the program's own: until its exec it shares the worker's memory (wait4(2))."""
    if rusage is None or rusage.ru_maxrss <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
        return None
    return rusage.ru_maxrss * 1024


def _address(peer: object) -> str:
    if isinstance(peer, tuple) and len(peer) >= 2:
        return f"[{peer[0]}]:{peer[1]}" if ":" in str(peer[0]) else f"{peer[0]}:{peer[1]}"
    return "unix" if not peer else str(peer)
