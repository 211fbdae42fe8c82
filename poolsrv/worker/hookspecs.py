"""The hooks: every place where a plugin is called, with its contract.

An implementation is a method with the hook's name, decorated with ``@hookimpl``; it takes only those of the arguments
that it names. Order of calls: the listener's ``plugins`` in the order of the config, then its handler; ``tryfirst``,
``trylast`` and wrappers work as pluggy documents them.

An exception out of a hook closes the connection that the hook was called for, is logged with its traceback and the
plugin's name, and touches nothing else. A hook runs in the one thread that serves all connections of its worker: it
must not block (``conn.run_blocking`` is for libraries that do).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from ..net.programs import Child
    from .connection import Connection
    from .worker import Worker


PROJECT = "poolsrv"  # the name of the entry point group, and of the pluggy project

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec(firstresult=True)
def on_connection_init(conn: Connection) -> object | None:
    """Called once for a connection, before its first byte is read, in the worker that got it.

    A result other than None ends the chain: the plugins after this one are not called, and ``on_connection_close``
    will not be called for them. That is how a further plugin refuses a connection (``conn.close``) or takes it over.
    """


@hookspec(firstresult=True)
def on_readable(conn: Connection) -> object | None:
    """Called when there are new bytes to read, and once more at end of stream (``conn.eof``), after the last of them.

    Bytes that are left in the buffer, given back or only looked at cause no further call by themselves: new bytes,
    end of stream and ``resume_reading`` do. A result other than None ends the chain. Not called after a reset.
    """


@hookspec
def on_writable(conn: Connection) -> None:
    """Called when the bytes kept for the peer have fallen below the low-water mark after having been above the high
    one (``conn.congested`` went from True to False)."""


@hookspec
def on_connection_close(conn: Connection, reason: str) -> None:
    """Called once, after the last byte, to the plugins whose ``on_connection_init`` was reached; never from inside
    another hook. Every plugin is told, even if one raises.

    ``reason`` is the one given to ``close`` or ``abort``, or the engine's own: ``"eof"``, ``"reset"``,
    ``"client closed"``, ``"idle timeout"``, ``"max_unsent exceeded"``, ``"plugin failed"``, ``"drain timeout"``,
    ``"worker stop"``.
    """


@hookspec
def on_child_exit(child: Child, conn: Connection | None) -> None:
    """Called when a child has been reaped, in the process that reaped it. Every plugin is told, even if one raises.

    In a worker: a program that a plugin spawned (``child.role`` is ``"program"``); ``conn`` is its connection, or
    None where that is gone. In the parent: a worker (``child.role`` is ``"worker"``, ``conn`` None), once per plugin
    instance, which there has never seen ``on_worker_start``.
    """


@hookspec
def on_worker_start(worker: Worker) -> None:
    """Called once in each worker that serves the listener, before its first connection.

    The place where a plugin opens its own resources: a database, a thread, ``worker.every``. All plugins are called;
    if one raises, the worker can't start, and the pool says so and tries again with growing delays.
    """


@hookspec
def on_worker_stop(worker: Worker) -> None:
    """Called once in each worker that ends in order, after its last connection is closed. Every plugin is told, even
    if one raises. A worker that is killed does not get to it."""


@hookspec
def on_drain(conn: Connection) -> None:
    """Called for each open connection when the worker is to end, and for one that is over ``connection_lifetime``:
    finish what is begun, take nothing new.

    ``conn.draining`` is True from here on. A connection that is still open after ``pool.graceful_timeout`` is
    aborted; an implementation with nothing under way calls ``conn.close()``. Connections that no plugin closes here
    stay open until then.
    """
