"""``poolsrv reload`` and ``poolsrv stop``: find a running server by its pid file, signal it, wait for the outcome."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Final

from . import configfile, pidfile
from .config import PoolTable
from .figures import Reload
from .procfs import seconds_since_boot
from .status import NoAnswer, ask

LOOK_EVERY: Final = 0.05  # seconds
RELOAD_PATIENCE: Final = 330.0  # seconds; the server itself gives a new pool 300


def reload(config: Path) -> Reload | None:
    """Have the server reload, and wait for the outcome.

    :returns: None where it can't be known, for want of a control socket.
    :raises ConfigErrors: the config does not tell where the server is.
    :raises NoAnswer: it does not run, or is somebody else's, or does not come to an end with it.
    """
    table, pid = _find(config)
    sent_at = seconds_since_boot()
    _signal(pid, signal.SIGHUP)
    if table.control is None:
        return None
    deadline = time.monotonic() + RELOAD_PATIENCE
    while time.monotonic() < deadline:
        time.sleep(LOOK_EVERY)
        try:
            last = ask(config).server.last_reload
        except NoAnswer:
            last = None  # one pool is going, the other coming
        if last is not None and last.began >= sent_at:
            return last
        if _running(table) != pid:
            raise NoAnswer(f"the server (pid {pid}) has ended meanwhile; its log says why")
    raise NoAnswer(f"no outcome within {RELOAD_PATIENCE:.0f} seconds; the log of the server (pid {pid}) says more")


def stop(config: Path, at_once: bool) -> int:
    """Have the server stop, and wait for its end.

    :param at_once: open connections get no time to finish.
    :returns: its pid.
    :raises ConfigErrors: as ``reload``.
    :raises NoAnswer: it does not run, or is somebody else's.
    """
    table, pid = _find(config)
    _signal(pid, signal.SIGTERM)
    while _running(table) == pid:
        time.sleep(LOOK_EVERY)
        if at_once:
            # Two signals that come together are one; a third does no harm.
            _signal(pid, signal.SIGTERM)
    return pid


def _find(config: Path) -> tuple[PoolTable, int]:
    table = configfile.locate(config)
    if table.pidfile is None:
        raise NoAnswer(f'{config}: pool.pidfile: missing, expected a path for it, such as "run/poolsrv.pid"', 2)
    pid = _running(table)
    if not pid:
        raise NoAnswer(f"no server runs: nobody holds {table.pidfile}")
    return table, pid


def _running(table: PoolTable) -> int:
    assert table.pidfile is not None
    try:
        return pidfile.running(os.fspath(table.pidfile))
    except OSError as error:
        raise NoAnswer(f"{table.pidfile}: {error.strerror}") from None


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass  # it has just ended
    except PermissionError:
        raise NoAnswer(f"the server (pid {pid}) is another user's") from None
