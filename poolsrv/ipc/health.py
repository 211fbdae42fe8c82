"""The verdict on a server by its status: for ``poolsrv status --check``, and for plugins that answer health checks."""

from __future__ import annotations

from enum import IntEnum

from ..core.words import counted
from .stats import Status

USELESS = ("empty", "stopped", "stalled", "condemned")  # states of a worker that serves nobody
TROUBLED = (*USELESS, "full")


class Health(IntEnum):
    """The exit codes of ``poolsrv status --check``."""

    WELL = 0
    DEGRADED = 1
    DOWN = 2
    UNKNOWN = 3


def judge(status: Status) -> tuple[Health, str]:
    """Judge a server by its status.

    :returns: its health, and a line that says why.
    """
    server = status.server
    troubles = [] if server.state == "serving" else [f"the pool is {server.state}"]
    # In a pool that stops, an empty slot is that of a worker which has ended as it should.
    for state in TROUBLED if server.state != "stopping" else TROUBLED[1:]:
        slots = [str(worker.slot) for worker in status.workers if worker.state == state]
        if slots:
            troubles.append(f"{counted(len(slots), 'worker')} {state} ({', '.join(slots)})")
    troubles += [f"the worker apart is {worker.state}" for worker in status.apart if worker.state in TROUBLED]
    if server.last_reload is not None and not server.last_reload.ok:
        troubles.append("the last reload has failed")
    if all(worker.state in USELESS for worker in status.workers):
        return line(Health.DOWN, f"no worker serves: {'; '.join(troubles)}")
    if troubles:
        return line(Health.DEGRADED, "; ".join(troubles))
    workers, connections = len(status.workers), status.totals.open
    return line(Health.WELL, f"{counted(workers, 'worker')}, {counted(connections, 'connection')}")


def line(health: Health, text: str) -> tuple[Health, str]:
    """Put the health in front of the reason, as every verdict has it."""
    return health, f"{health.name.lower()}: {text}"


def readiness(status: Status) -> tuple[bool, str]:
    """Tell whether the server should get new traffic.

    :returns: False from the signal to stop on, or while no worker serves; and a line that says why.
    """
    server = status.server
    if server.state != "serving":
        left = counted(status.totals.open, "connection is", "connections are")
        when = f"it drains in {server.drains_in:.0f} s" if server.drains_in is not None else f"{left} open"
        return False, f"not ready: the pool is {server.state} ({when})"
    health, why = judge(status)
    return (False, f"not ready: {why}") if health == Health.DOWN else (True, f"ready: {why}")
