"""The start of the dispatcher's process: limits, sockets, privileges."""

from __future__ import annotations

import importlib
import logging
import os
import resource
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ..config import program_users
from ..config.model import Config, LimitsConfig, PoolConfig
from ..core import privileges, processes
from ..core.dumpable import set_dumpable
from ..core.listening_sockets import ListeningSocket
from ..ipc.pool_link import PoolLink, send_sockets
from . import bind
from .bound import Bound
from .descriptor_limits import check_descriptor_limit
from .shares import Shares

if TYPE_CHECKING:
    from .spawner_process import SpawnerProcess

log = logging.getLogger("poolsrv.pool")

# What a worker otherwise imports when a plugin first asks for TLS with a server, or for a host name.
IMPORTED_LATE: Final = ("encodings.idna", "poolsrv.net.tls", "poolsrv.net.tls_transport")


class Place(NamedTuple):
    """What a pool has before any plugin is loaded.

    :ivar bound: the sockets of each listener.
    :ivar control: the control socket.
    :ivar path: the config file's absolute path; or the command whose arguments are the config.
    :ivar alive_interval: seconds between two signs of life that the supervisor expects.
    :ivar spawner: starts programs as their own users, or with their own /tmp; None if there are none.
    """

    bound: list[list[Bound]]
    control: Bound | None
    path: str
    alive_interval: float
    spawner: SpawnerProcess | None


def take_place(config: Config, link: PoolLink, held: Mapping[str, ListeningSocket], start: Mapping[str, Any]) -> Place:
    """Do all that may need root, then drop privileges.

    :param link: to the supervisor, blocking.
    :param held: the listening sockets that the supervisor holds, by key.
    :param start: the supervisor's message at the start.
    :raises StartError: an address can't be bound, or the limit of open descriptors is too low.
    :raises EOFError: the supervisor is gone, or does not want the pool any more.
    """
    _open_standard_descriptors()
    _set_limits(config)
    check_descriptor_limit(config)
    processes.close_on_exec_from(3)
    bound, control, alive_interval = _agree_on_sockets(
        config, link, held, Shares(config.pool, bool(start["about"].get("shares")))
    )
    spawner = None
    if any(one.programs or program_users.wants_tmp(one.plugin_options) for one in config.listeners):
        from . import spawner_process  # few pools have one

        spawner = spawner_process.start(config, start["log_level"])
    _drop_privileges(config.pool)
    _keep_private(config.limits)
    return Place(bound, control, config.place, alive_interval, spawner)


def _agree_on_sockets(
    config: Config, link: PoolLink, held: Mapping[str, ListeningSocket], shares: Shares
) -> tuple[list[list[Bound]], Bound | None, float]:
    """Bind the missing sockets, tell the supervisor which are used, and close the rest.

    :returns: the sockets of each listener, the control socket, and ``Place.alive_interval``.
    """
    pool = config.pool
    wanted = list(config.listeners)
    if pool.control is not None:
        wanted.append(bind.control_listener(pool.control))
    owner = bind.UNCHANGED
    if pool.identity is not None and os.geteuid() == 0:
        owner = _id(pool.identity.uid), _id(pool.identity.gid)
    bound = bind.bind(tuple(wanted), held, owner, shares)
    used = [one for group in bound for one in group]
    send_sockets(link, "bound", [one.held for one in used if one.is_new])
    link.send(
        "configured",
        keys=[one.held.key for one in used],
        graceful_timeout=pool.graceful_timeout,
        drain_notice=pool.drain_notice,
        hang_timeout=pool.hang_timeout,
        max_draining_pools=pool.max_draining_pools,
        runs=pool.runs if pool.control is not None else 0,
        pidfile=os.fspath(pool.pidfile) if pool.pidfile is not None else None,
        log=config.log.settings(pool.identity),
    )
    go = link.receive()  # otherwise the supervisor kills this process
    if go is None or go.kind != "go":
        raise EOFError
    kept = {one.held for one in used}
    for one in held.values():
        if one not in kept:
            one.socket.close()
    control = bound.pop()[0] if pool.control is not None else None
    return bound, control, go.fields["alive_every"]


def _set_limits(config: Config) -> None:
    limits = config.limits
    if limits.open_files is not None:
        privileges.limit(resource.RLIMIT_NOFILE, limits.open_files, "limits.open_files")
    if limits.core_size is not None:
        privileges.limit(resource.RLIMIT_CORE, limits.core_size, "limits.core_size")
    if config.pool.umask is not None:
        os.umask(config.pool.umask)


def _drop_privileges(pool: PoolConfig) -> None:
    if pool.identity is not None:
        folder = privileges.become_for_imports(pool.identity)
        if folder:
            log.warning("pool.user can't read %s: plugins are imported with the right to read every file", folder)
    if pool.no_new_privs:
        privileges.forbid_new()


def stop_reading() -> None:
    """Give up the right to read every file, if the user of the workers needed it: plugins are imported.

    :raises StartError: the kernel refuses.
    """
    if privileges.keeps_reading():
        for module in IMPORTED_LATE:
            importlib.import_module(module)
    privileges.stop_reading()


def _keep_private(limits: LimitsConfig) -> None:
    """Keep other processes from reading this one's memory, unless the config wants core dumps."""
    wants_dumps = bool(limits.core_size)
    set_dumpable(wants_dumps)  # again, for a change of user resets it
    if wants_dumps:
        log.warning("limits.core_size: for the sake of core dumps, programs of this user can read the pool's memory")


def _id(number: int | None) -> int:
    return -1 if number is None else number  # -1: unchanged, chown(2)


def _open_standard_descriptors() -> None:
    """Occupy the descriptors 0, 1 and 2, so that no connection gets these numbers."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
