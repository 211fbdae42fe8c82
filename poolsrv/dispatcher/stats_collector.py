"""Collects the stats that ``poolsrv status`` shows (ipc/stats.py): what the dispatcher knows, and what /proc says.

No worker is asked, for it may be stuck. Rates need totals of a few seconds ago, so the totals of every worker and
listener are sampled each second. A pool without a control socket and without a worker apart
has no ``StatsCollector``.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ..config.model import APART
from ..core import procfs
from ..core.accept_queue import accept_queue
from ..core.event_loop import EventLoop
from ..ipc import figures
from ..ipc.metrics import BOUNDS, Distribution, Labels
from ..ipc.stats import (
    PROTOCOL,
    WINDOW,
    About,
    Answer,
    HistogramStats,
    ListenerStats,
    MetricStats,
    QueueStats,
    RefusalStats,
    SeriesStats,
    ServerStats,
    Status,
    Totals,
    WorkerStats,
)
from ..plugins import entry_points
from . import program_stats
from .dispatcher import Dispatcher
from .ledger import Amount, gauge, gauges
from .listener import Listener
from .worker_manager import WorkerManager
from .worker_slot import EMPTY, STARTING, WorkerSlot

if TYPE_CHECKING:
    from .spawner_process import SpawnerProcess

SAMPLE_INTERVAL: Final = 1.0  # seconds
SAMPLES: Final = round(WINDOW / SAMPLE_INTERVAL) + 1

Counted = Mapping[str, Mapping[Labels, Amount]]


class _Sample(msgspec.Struct, frozen=True, gc=False):
    """Totals of a worker at one moment; for a listener, only the first two fields are used."""

    time: float
    accepted: int
    events: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    cpu: float = 0.0


class StatsCollector:
    """Collects the stats of a pool.

    :param config: the config file's absolute path.
    :param about: what the supervisor knows, the fields of ``About``.
    :ivar about: the same, as it is now.
    :ivar before_answer: called before anything is shown.
    :ivar state: of the pool, as in ``ServerStats``; so is ``drain_notice``.
    :ivar spawner: None if no programs need launchers.
    """

    def __init__(
        self,
        loop: EventLoop,
        workers: WorkerManager,
        dispatcher: Dispatcher,
        listeners: list[Listener],
        config: str,
        generation: int,
        about: dict[str, Any],
    ) -> None:
        self.set_about(about)
        self.state = "starting"
        self.drain_notice = 0.0
        self.spawner: SpawnerProcess | None = None
        self._drains_at: float | None = None
        self.before_answer: Callable[[], object] = lambda: None
        self._loop = loop
        self._workers = workers
        self._dispatcher = dispatcher
        self._listeners = listeners
        self._addresses = [[str(bound) for bound in listener.sockets] for listener in listeners]
        self._config = config
        self._generation = generation
        self._version = entry_points.version_of("poolsrv")  # read now: the installed version may change
        self._started_at = time.time()
        self._samples: dict[int, deque[_Sample]] = {}  # of workers, by pid
        self._accepted: list[deque[_Sample]] = [deque(maxlen=SAMPLES) for _ in listeners]

    def set_about(self, fields: dict[str, Any]) -> None:
        """Take over what the supervisor has sent."""
        self.about = msgspec.convert(fields, About)

    def give_notice(self, seconds: float) -> None:
        """Say from now on that the pool is stopping, and begins to drain after this time."""
        self.state = "stopping"
        self._drains_at = self._loop.now + seconds

    def drain(self) -> None:
        """Say from now on that the pool drains."""
        self.state, self._drains_at = "stopping", None

    def begin(self) -> None:
        """Begin to sample totals."""
        self._loop.call_later(SAMPLE_INTERVAL, self.begin)
        now, former = self._loop.now, self._samples
        self._samples = {}
        for pid, slot in self._workers.by_pid.items():
            samples = self._samples[pid] = former.get(pid) or deque(maxlen=SAMPLES)
            used = procfs.usage(pid)
            samples.append(_sample(slot, now, used.cpu if used is not None else 0.0))
        for listener, accepted in zip(self._listeners, self._accepted, strict=True):
            accepted.append(_Sample(now, listener.counts.accepted))

    def answer(self) -> Answer:
        """Answer ``status`` on the control socket."""
        return Answer(PROTOCOL, status=self.status())

    def status(self) -> Status:
        """Collect everything."""
        self.before_answer()
        counted = self._dispatcher.ledger.snapshot()
        slots = [slot for slot in (*self._workers.slots, *self._workers.apart) if not slot.pid]
        slots += self._workers.by_pid.values()
        slots.sort(key=lambda slot: (slot.index, slot.pid))
        workers = [self._worker(slot) for slot in slots if slot.index != APART]
        waiting = Counter(number for slot in slots for number in slot.waiting.values())
        listeners = [self._listener(listener, waiting[listener.number], counted) for listener in self._listeners]
        launchers, programs, count = program_stats.below(self._workers.by_pid, self.spawner)

        def total(rate: str) -> float:
            return round(sum(float(getattr(worker, rate)) for worker in workers), 1)

        return Status(
            time=time.time(),
            server=self._server(),
            totals=Totals(
                open=sum(listener.counts.open for listener in self._listeners),
                accepted=_total(counted, figures.ACCEPTED),
                accepted_rate=round(sum(listener.accepted_rate for listener in listeners), 1),
                events_rate=total("events_rate"),
                bytes_in_rate=total("bytes_in_rate"),
                bytes_out_rate=total("bytes_out_rate"),
                programs=count,
                cpu_percent=total("cpu_percent"),
                memory=sum(worker.memory for worker in workers),
                events=_total(counted, figures.EVENTS),
                bytes_in=_total(counted, figures.BYTES_IN),
                bytes_out=_total(counted, figures.BYTES_OUT),
                cpu=round(sum(map(_number, counted.get(figures.CPU, {}).values())), 2),
            ),
            workers=workers,
            listeners=listeners,
            programs=programs,
            recent_refusals=[
                RefusalStats(time=one.time, listener=one.listener, peer=one.peer, reason=one.reason)
                for one in self._dispatcher.recent_refusals
            ],
            metrics=self._metrics(counted),
            apart=[self._worker(slot) for slot in slots if slot.index == APART],
            launchers=launchers,
        )

    def _server(self) -> ServerStats:
        about = self.about
        return ServerStats(
            version=self._version,
            config=self._config,
            pid=about.pid,
            dispatcher_pid=os.getpid(),
            generation=self._generation,
            state=self.state,
            started_at=about.started_at,
            uptime=procfs.seconds_since_boot() - about.began,
            pool_started_at=self._started_at,
            restarts=about.restarts,
            last_reload=about.last_reload,
            leaving=about.leaving,
            drain_notice=self.drain_notice,
            drains_in=None if self._drains_at is None else max(self._drains_at - self._loop.now, 0.0),
        )

    def _worker(self, slot: WorkerSlot) -> WorkerStats:
        now = self._loop.now
        used = procfs.usage(slot.pid) if slot.pid else None
        sample = _sample(slot, now, used.cpu if used is not None else 0.0)
        rates = _rates(self._samples.get(slot.pid), sample)
        state = "stopped" if slot.stopped else "stalled" if slot.stalled else slot.state
        return WorkerStats(
            slot=slot.index,
            pid=slot.pid,
            state=state,
            age=now - slot.started_at if slot.pid else 0.0,
            open=len(slot.connections),
            accepted=sample.accepted,
            events=sample.events,
            bytes_in=sample.bytes_in,
            bytes_out=sample.bytes_out,
            accepted_rate=rates("accepted"),
            events_rate=rates("events"),
            bytes_in_rate=rates("bytes_in"),
            bytes_out_rate=rates("bytes_out"),
            cpu=round(sample.cpu, 2),
            cpu_percent=round(rates("cpu", 100.0), 1),
            memory=used.memory if used is not None else 0,
            restarts=slot.restarts,
            silent=now - slot.last_report_at if slot.pid else 0.0,
            in_flight=len(slot.waiting),
            lag=_lag(slot, now),
            descriptors=int(gauge(slot, figures.DESCRIPTORS)),
            descriptor_limit=int(gauge(slot, figures.DESCRIPTOR_LIMIT)),
        )

    def _listener(self, listener: Listener, in_channels: int, counted: Counted) -> ListenerStats:
        addresses = self._addresses[listener.number]
        queues = self._queues(listener, addresses)
        own = (("listener", listener.name),)
        rates = _rates(self._accepted[listener.number], _Sample(self._loop.now, listener.counts.accepted))
        return ListenerStats(
            name=listener.name,
            handler=listener.config.handler,
            plugins=list(listener.config.plugins),
            addresses=list(dict.fromkeys(addresses)),
            open=listener.counts.open,
            max_connections=listener.config.max_connections,
            accepted=int(_number(counted[figures.ACCEPTED][own])),
            accepted_rate=rates("accepted"),
            queued=sum(queue.queued for queue in queues) if queues else None,
            waiting=in_channels + len(listener.unassigned),
            homeless=len(listener.unassigned),
            paused=listener.counts.paused and bool(listener.polled),
            refusals={
                labels[1][1]: int(_number(amount))
                for labels, amount in counted.get(figures.REFUSED, {}).items()
                if labels[:1] == own
            },
            queues=queues,
            dispatched={
                address: bound.why_dispatched
                for address, bound in zip(addresses, listener.sockets, strict=True)
                if bound.why_dispatched
            },
        )

    def _queues(self, listener: Listener, addresses: list[str]) -> list[QueueStats]:
        """Look at the sockets; the pool has closed them if it is draining."""
        kernel, found = self._dispatcher.kernel, []
        for address, bound in zip(addresses, listener.sockets, strict=True):
            queue = accept_queue(bound.socket) if bound.socket.fileno() >= 0 else None
            if queue is not None:
                workers, accepted, passed_on = kernel.balance(bound) if kernel is not None else ([], 0, 0)
                found.append(
                    QueueStats(
                        address=address,
                        queued=queue.queued,
                        limit=queue.limit,
                        workers=workers,
                        accepted=accepted,
                        passed_on=passed_on,
                    )
                )
        return found

    def _metrics(self, counted: Counted) -> list[MetricStats]:
        ledger = self._dispatcher.ledger
        found = {(name, ledger.kind(name)): dict(amounts) for name, amounts in counted.items()}
        for series, value in gauges(self._workers.by_pid.values()).items():
            found.setdefault((series.name, series.kind), {})[series.labels] = value
        return [
            MetricStats(name, kind, ledger.helps.get(name, ""), [_series(*one) for one in amounts.items()])
            for (name, kind), amounts in sorted(found.items())
        ]


def _sample(slot: WorkerSlot, now: float, cpu: float) -> _Sample:
    # In the order of worker_channel.COUNTERS; there are none before the first report.
    _, _, events, bytes_in, bytes_out = slot.counters or (0, 0, 0, 0, 0)
    return _Sample(now, slot.given if slot.state not in (EMPTY, STARTING) else 0, events, bytes_in, bytes_out, cpu)


def _rates(samples: deque[_Sample] | None, latest: _Sample) -> Callable[..., float]:
    """Make a function that tells how fast a total has grown, by the field's name, since the oldest sample."""
    first = samples[0] if samples else latest
    seconds = max(latest.time - first.time, SAMPLE_INTERVAL)  # over less, a single event would look like a burst

    def rate(name: str, factor: float = 1.0) -> float:
        grown: float = getattr(latest, name) - getattr(first, name)
        return round(max(grown, 0) * factor / seconds, 1)

    return rate


def _lag(slot: WorkerSlot, now: float) -> float:
    reported = gauge(slot, figures.LAG) if now - slot.last_report_at < WINDOW else 0.0
    return round(max(reported, now - slot.waiting_since if slot.waiting else 0.0), 6)


def _number(amount: Amount) -> float:
    return 0 if isinstance(amount, Distribution) else amount


def _total(counted: Counted, name: str) -> int:
    return int(sum(map(_number, counted.get(name, {}).values())))


def _series(labels: Labels, amount: Amount) -> SeriesStats:
    if not isinstance(amount, Distribution):
        return SeriesStats(dict(labels), value=amount)
    buckets = [(BOUNDS[bucket] if bucket < len(BOUNDS) else None, times) for bucket, times in amount.filled()]
    quantiles = [_rounded(amount.quantile(share)) for share in (0.5, 0.9, 0.99)]
    return SeriesStats(dict(labels), histogram=HistogramStats(amount.count, amount.sum, buckets, *quantiles))


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.3g}")
