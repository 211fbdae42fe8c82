"""Services that inetd and xinetd provide by themselves, and the wrapper tcpd."""

from __future__ import annotations

import os
from collections.abc import Sequence

from .command import Preparation
from .service import Service

_INSTEAD = {
    "chargen": "only a program can do it",
    "time": "only a program can do it",
    "servers": "`poolsrv status` shows what runs",
    "services": "`poolsrv status` shows what is served",
    "xadmin": "`poolsrv status` and `poolsrv reload` take its place",
}
_PROGRAMS = {"discard": ("/bin/sh", "-c", "cat >/dev/null"), "daytime": ("/bin/date",)}
DAEMONS = "/usr/sbin"  # where tcpd looks for programs without a slash (REAL_DAEMON_DIR)


def serve(service: Service, name: str) -> None:
    """Make a listener of an internal service, if there is a plugin for it.

    If a program does the same, the listener is held back: that a program starts for each client is the user's choice.
    """
    if name == "echo":
        service.handler = "echo"
        service.user = service.group = ""
    elif service.held_back:
        return
    elif (program := _PROGRAMS.get(name)) is not None:
        service.held_back.append(
            f"the internal service {name}: no counterpart; {program[0]} does it, if you uncomment the listener"
        )
        service.command = program
        service.option("timeout", 0.0, "as before: no limit")
        service.option("max_programs", 0, "as before: no limit")
    else:
        instead = _INSTEAD.get(name, "no such internal service is known")
        service.held_back.append(f"the internal service {name}: no counterpart; {instead}")


def without_wrapper(
    service: Service, server: str, arguments: Sequence[str], preparation: Preparation
) -> tuple[str, list[str]]:
    """The program and its arguments, where the first argument is the program's name for itself.

    ``tcpd`` starts the program of that name: its rules are this server's ``allow`` and ``deny``.
    """
    name, rest = arguments[0], list(arguments[1:])
    if os.path.basename(server) == "tcpd":
        service.lose("tcpd", "no counterpart: write the rules of hosts.allow and hosts.deny as `allow` and `deny`")
        return (name if "/" in name else f"{DAEMONS}/{name}"), rest
    if os.path.basename(name) != os.path.basename(server):
        preparation.call_it(name)
    return server, rest
