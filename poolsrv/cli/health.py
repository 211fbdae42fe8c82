"""``poolsrv status --check``: one line and an exit code for monitoring."""

from __future__ import annotations

from enum import IntEnum
from pathlib import Path

from ..config.errors import ConfigErrors
from ..core.words import counted
from ..ipc.stats import Status
from .control_client import NoAnswer, ask

USELESS = ("empty", "stopped", "stalled", "condemned")  # states of a worker that serves nobody
TROUBLED = (*USELESS, "full")


class Health(IntEnum):
    """The exit codes."""

    WELL = 0
    DEGRADED = 1
    DOWN = 2
    UNKNOWN = 3


def check(config: Path | None) -> tuple[Health, str]:
    """Ask the server of a config how it is, whatever is wrong.

    :param config: None if the user has named none, and none is found.
    :returns: its health, and a line that says why.
    """
    if config is None:
        return _line(Health.UNKNOWN, "there is no config to tell where the server is")
    try:
        status = ask(config)
    except ConfigErrors as errors:
        first, *others = errors.problems
        more = f" (and {counted(len(others), 'more error')})" if others else ""
        return _line(Health.UNKNOWN, f"{first}{more}")
    except NoAnswer as error:
        return _line(Health.DOWN if error.is_down else Health.UNKNOWN, str(error))
    return judge(status)


def judge(status: Status) -> tuple[Health, str]:
    """Judge a server by its status."""
    server = status.server
    troubles = [] if server.state == "serving" else [f"the pool is {server.state}"]
    for state in TROUBLED:
        slots = [str(worker.slot) for worker in status.workers if worker.state == state]
        if slots:
            troubles.append(f"{counted(len(slots), 'worker')} {state} ({', '.join(slots)})")
    if server.last_reload is not None and not server.last_reload.ok:
        troubles.append("the last reload has failed")
    if all(worker.state in USELESS for worker in status.workers):
        return _line(Health.DOWN, f"no worker serves: {'; '.join(troubles)}")
    if troubles:
        return _line(Health.DEGRADED, "; ".join(troubles))
    workers, connections = len(status.workers), status.totals.open
    return _line(Health.WELL, f"{counted(workers, 'worker')}, {counted(connections, 'connection')}")


def _line(health: Health, text: str) -> tuple[Health, str]:
    return health, f"{health.name.lower()}: {text}"
