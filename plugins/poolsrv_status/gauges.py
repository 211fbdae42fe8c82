"""The families that `/metrics` makes of the record itself: the server, its listeners, its workers, its programs.

docs/operations.md lists them, and those of the server's own counters and histograms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from poolsrv import ServerReport

__all__ = ["FAMILIES", "Family", "samples_of"]

HEALTH = ("well", "degraded", "down")
STATES = ("starting", "serving", "full", "draining", "stopped", "stalled", "condemned", "empty")

Sample = tuple[dict[str, str], float]


class Family(NamedTuple):
    """A family of metrics."""

    name: str
    kind: str
    labels: tuple[str, ...]
    help: str


FAMILIES = (
    Family("poolsrv_info", "gauge", ("version",), "Always 1; the version of poolsrv that serves"),
    Family("poolsrv_health", "gauge", ("health",), "1 for what poolsrv status --check says, 0 for the others"),
    Family("poolsrv_ready", "gauge", (), "1 if the server should get new traffic, as /readyz says"),
    Family("poolsrv_start_time_seconds", "gauge", (), "When the server was started, in seconds since the epoch"),
    Family("poolsrv_pool_start_time_seconds", "gauge", (), "When the pool that serves was started"),
    Family("poolsrv_pool_generation", "gauge", (), "The number of the pool that serves; a reload makes the next one"),
    Family("poolsrv_pool_crashes", "counter", (), "Pools that have crashed and been replaced"),
    Family("poolsrv_draining_pools", "gauge", (), "Former pools that still have connections"),
    Family("poolsrv_last_reload_successful", "gauge", (), "1 if the last reload was successful; missing before one"),
    Family("poolsrv_last_reload_time_seconds", "gauge", (), "When the last reload ended; missing before one"),
    Family("poolsrv_workers", "gauge", ("state",), "Workers by their state"),
    Family("poolsrv_programs", "gauge", (), "Programs that run: children of the workers and of their launchers"),
    Family("poolsrv_listener_info", "gauge", ("listener", "handler", "addresses"), "Always 1; what a listener is"),
    Family("poolsrv_listener_connections", "gauge", ("listener",), "Open connections"),
    Family("poolsrv_listener_max_connections", "gauge", ("listener",), "The limit of these; missing if there is none"),
    Family("poolsrv_listener_waiting_connections", "gauge", ("listener",), "Accepted, and taken by no worker yet"),
    Family("poolsrv_listener_paused", "gauge", ("listener",), "1 while nothing is accepted: a limit, or no room"),
    Family(
        "poolsrv_listener_queue_connections", "gauge", ("listener", "address"), "Waiting in the kernel to be accepted"
    ),
    Family("poolsrv_listener_queue_limit", "gauge", ("listener", "address"), "How many can wait there (backlog)"),
    Family("poolsrv_worker_connections", "gauge", ("worker",), "Open connections"),
    Family("poolsrv_worker_in_flight_connections", "gauge", ("worker",), "Sent to the worker, and not taken yet"),
    Family("poolsrv_worker_memory_bytes", "gauge", ("worker",), "Resident memory; what workers share counts for each"),
    Family("poolsrv_worker_cpu_ratio", "gauge", ("worker",), "CPUs that it uses, the mean of the last seconds"),
    Family("poolsrv_worker_loop_lag_seconds", "gauge", ("worker",), "How long an event may have to wait in it"),
    Family("poolsrv_worker_silent_seconds", "gauge", ("worker",), "Since its last report; idle workers do not report"),
    Family("poolsrv_worker_descriptors", "gauge", ("worker",), "Open descriptors"),
    Family("poolsrv_worker_descriptor_limit", "gauge", ("worker",), "The limit of these; missing if there is none"),
)


def samples_of(report: ServerReport) -> dict[str, list[Sample]]:
    """Make the samples of all families, by name."""
    found: dict[str, list[Sample]] = defaultdict(list)
    for name, labels, value in (*_server(report), *_listeners(report), *_workers(report)):
        found[f"poolsrv_{name}"].append((labels, float(value)))
    return found


Found = Iterator[tuple[str, dict[str, str], float]]


def _server(report: ServerReport) -> Found:
    status = report.status
    assert status is not None
    server = status.server
    yield "info", {"version": server.version}, 1
    for health in HEALTH:
        yield "health", {"health": health}, health == report.health
    yield "ready", {}, report.is_ready
    yield "start_time_seconds", {}, server.started_at
    yield "pool_start_time_seconds", {}, server.pool_started_at
    yield "pool_generation", {}, server.generation
    yield "pool_crashes", {}, server.restarts
    yield "draining_pools", {}, len(server.leaving)
    if server.last_reload is not None:
        yield "last_reload_successful", {}, server.last_reload.ok
        yield "last_reload_time_seconds", {}, server.last_reload.at
    states = [worker.state for worker in status.workers]
    for state in STATES:
        yield "workers", {"state": state}, states.count(state)
    yield "programs", {}, status.totals.programs


def _listeners(report: ServerReport) -> Found:
    assert report.status is not None
    for one in report.status.listeners:
        own = {"listener": one.name}
        yield "listener_info", {**own, "handler": one.handler, "addresses": ", ".join(one.addresses)}, 1
        yield "listener_connections", own, one.open
        if one.max_connections:
            yield "listener_max_connections", own, one.max_connections
        yield "listener_waiting_connections", own, one.waiting
        yield "listener_paused", own, one.paused
        for address in one.addresses:  # which may have a queue for each worker
            queues = [queue for queue in one.queues if queue.address == address]
            if queues:
                labels = {**own, "address": address}
                yield "listener_queue_connections", labels, sum(queue.queued for queue in queues)
                yield "listener_queue_limit", labels, sum(queue.limit for queue in queues)


def _workers(report: ServerReport) -> Found:
    """A worker that drains has the number of its successor: they are shown as one."""
    assert report.status is not None
    by_slot: dict[int, list[int]] = defaultdict(list)
    workers = [*report.status.workers, *report.status.apart]
    for place, worker in enumerate(workers):
        by_slot[worker.slot].append(place)
    for slot, places in by_slot.items():
        own = {"worker": str(slot) if slot >= 0 else "apart"}
        these = [workers[place] for place in places]
        yield "worker_connections", own, sum(worker.open for worker in these)
        yield "worker_in_flight_connections", own, sum(worker.in_flight for worker in these)
        yield "worker_memory_bytes", own, sum(worker.memory for worker in these)
        yield "worker_cpu_ratio", own, sum(worker.cpu_percent for worker in these) / 100
        yield "worker_loop_lag_seconds", own, max(worker.lag for worker in these)
        yield "worker_silent_seconds", own, max(worker.silent for worker in these)
        yield "worker_descriptors", own, sum(worker.descriptors for worker in these)
        if limit := max(worker.descriptor_limit for worker in these):
            yield "worker_descriptor_limit", own, limit
