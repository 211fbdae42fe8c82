"""``poolsrv reload`` and ``poolsrv stop``: find a running server by its pid file, signal it, wait for the outcome."""

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
RELOAD_PATIENCE: Final = 330.0  # seconds; the server itself gives a new pool start_timeout, 60 without it


def reload(config: Path) -> Reload | None:
    """Have the server reload, and wait for the outcome.

    :returns: None where it can't be known, for want of a control socket.
    :raises ConfigErrors: the config does not tell where the server is.
    :raises NoAnswer: it does not run, or is somebody else's, or does not come to an end with it.
    """
    table, server = _find(config)
    with closing(server):
        sent_at = seconds_since_boot()
        _signal(server, signal.SIGHUP)
        if table.control is None:
            return None
        deadline = time.monotonic() + RELOAD_PATIENCE
        while time.monotonic() < deadline:
            has_ended = server.wait(POLL_INTERVAL)
            try:
                last = ask(config).server.last_reload
            except NoAnswer:
                last = None  # one pool is going, the other coming
            if last is not None and last.began >= sent_at:
                return last
            if has_ended:
                raise NoAnswer(f"the server (pid {server.pid}) has ended meanwhile; its log says why")
    raise NoAnswer(
        f"no outcome within {RELOAD_PATIENCE:.0f} seconds; the log of the server (pid {server.pid}) says more"
    )


def stop(config: Path, at_once: bool) -> int:
    """Have the server stop, and wait for its end.

    :param at_once: open connections get no time to finish.
    :returns: its pid.
    :raises ConfigErrors: as ``reload``.
    :raises NoAnswer: it does not run, or is somebody else's.
    """
    _, server = _find(config)
    with closing(server):
        _signal(server, signal.SIGTERM)
        while not server.wait(POLL_INTERVAL):
            if at_once:
                # Two signals that come together are one; a third does no harm.
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
        raise NoAnswer(f"no server runs: nobody holds {table.pidfile}")
    return table, server


def _signal(server: Server, number: signal.Signals) -> None:
    try:
        server.signal(number)
    except ProcessLookupError:
        pass  # it has just ended
    except PermissionError:
        raise NoAnswer(f"the server (pid {server.pid}) is another user's") from None
