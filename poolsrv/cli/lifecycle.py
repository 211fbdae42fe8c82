"""``poolsrv reload`` and ``poolsrv stop``: find a server by its pid file, signal it, and wait for the outcome."""

from __future__ import annotations

import os
import signal
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from ..config import reader
from ..config.model import PoolTable
from ..core import pid_file
from ..core.pid_file import Server
from ..core.procfs import seconds_since_boot
from ..ipc.stats import Reload
from .control_client import NoAnswer, ask

POLL_INTERVAL: Final = 0.05  # seconds
RELOAD_MARGIN: Final = 15.0  # seconds more than what the config allows for: the server ends a pool in several steps


def reload(config: Path) -> Reload | None:
    """Have the server reload, and wait for the outcome.

    :returns: None if there is no control socket, so that the outcome can't be known.
    :raises ConfigErrors: the config does not say where the server is.
    :raises NoAnswer: the server does not run, is another user's, or gives no outcome.
    """
    table, server = _find(config)
    with closing(server):
        sent_at = seconds_since_boot()
        _signal(server, signal.SIGHUP)
        if table.control is None:
            return None
        longest = _longest_reload(table)
        deadline = time.monotonic() + longest
        while time.monotonic() < deadline:
            has_ended = server.wait(POLL_INTERVAL)
            try:
                last = ask(config).server.last_reload
            except NoAnswer:
                last = None  # while one pool takes over from the other
            if last is not None and last.began >= sent_at:
                return last
            if has_ended:
                raise NoAnswer(f"the server (pid {server.pid}) has ended; its log says why")
    raise NoAnswer(f"no outcome within {longest:.0f} seconds; the log of the server (pid {server.pid}) says more")


def _longest_reload(table: PoolTable) -> float:
    """Seconds within which the outcome is known: a start that the server was busy with when the signal came, the stop
    of the former pool where a plugin is exclusive, and the new pool's own start."""
    return 2 * table.start_timeout + table.graceful_timeout + RELOAD_MARGIN


def stop(config: Path, at_once: bool) -> int:
    """Have the server stop, and wait for its end.

    :param at_once: open connections get no time to finish.
    :returns: its pid.
    :raises ConfigErrors: the config does not say where the server is.
    :raises NoAnswer: the server does not run, or is another user's.
    """
    _, server = _find(config)
    with closing(server):
        _signal(server, signal.SIGTERM)
        while not server.wait(POLL_INTERVAL):
            if at_once:
                # The second signal makes it end at once. Two that come together count as one; a third does no harm.
                _signal(server, signal.SIGTERM)
        return server.pid


def _find(config: Path) -> tuple[PoolTable, Server]:
    table = reader.locate(config)
    if table.pidfile is None:
        raise NoAnswer(f'{config}: pool.pidfile: missing, expected a path for it, such as "run/poolsrv.pid"', 2)
    try:
        server = pid_file.find(os.fspath(table.pidfile))
    except PermissionError:
        raise NoAnswer(f"{table.pidfile}: permission denied: it is another user's server") from None
    except OSError as error:
        raise NoAnswer(f"{table.pidfile}: {error.strerror}") from None
    if server is None:
        raise NoAnswer(f"no server runs: no process holds {table.pidfile}")
    return table, server


def _signal(server: Server, number: signal.Signals) -> None:
    try:
        server.signal(number)
    except ProcessLookupError:
        pass  # it has just ended
    except PermissionError:
        raise NoAnswer(f"the server (pid {server.pid}) is another user's") from None
