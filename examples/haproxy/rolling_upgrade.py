#!/usr/bin/env python3
"""Upgrade nodes behind a load balancer, one at a time, and stop at the first that does not come back.

A command upgrades one node: it stops the server there, which finishes its requests (`pool.drain_notice`,
`pool.graceful_timeout`), installs what is new, and starts the server again. Over ssh, with a script of your own there:

    rolling_upgrade.py a=10.0.0.11 b=10.0.0.12 c=10.0.0.13 --version 1.2.0 --haproxy /run/haproxy/admin.sock \\
        -- ssh root@{host} upgrade-poolsrv 1.2.0

{name} and {host} in the command are replaced. A node is upgraded only while all nodes are ready. Then this waits until
another server answers there, is ready, has the version, and HAProxy sends it requests again; only then comes the next
node. Needs a listener with the handler `status` on each node, and nothing but Python.

exit codes: 0 all nodes have been upgraded, 1 a node has not come back (the nodes after it are untouched), 2 wrong usage
"""

from __future__ import annotations

import argparse
import csv
import http.client
import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

PATIENCE: Final = 10.0  # seconds that a node may be in trouble, before its turn or that of another


class Failed(Exception):
    """Why the upgrade ends here."""


@dataclass(frozen=True)
class Node:
    """A machine with a server.

    :ivar name: the server's name in HAProxy's config.
    """

    name: str
    host: str
    port: int

    def ask(self, path: str) -> bytes:
        """What the status listener answers.

        :raises OSError: nothing, or an error.
        """
        host = f"[{self.host}]" if ":" in self.host else self.host
        try:
            with urllib.request.urlopen(f"http://{host}:{self.port}{path}", timeout=5) as answer:
                return bytes(answer.read())
        except http.client.HTTPException as error:
            raise OSError(f"no HTTP: {error!r}") from None

    def trouble(self) -> str:
        """Why it is not ready; empty if it is."""
        try:
            self.ask("/readyz")
        except urllib.error.HTTPError as error:
            return error.read().decode(errors="replace").strip() or str(error)
        except OSError as error:
            return str(error)
        return ""

    def server(self) -> dict[str, Any]:
        """Which server answers: see `server` in docs/operations.md, As JSON.

        :raises Failed: none does.
        """
        try:
            found: dict[str, Any] = json.loads(self.ask("/status.json"))["server"]
        except (OSError, ValueError, KeyError) as error:
            raise Failed(f"{self.name}: no status: {error}") from None
        return found


class Haproxy:
    """HAProxy's view of the nodes, through its runtime API.

    :param address: the path of its socket, or HOST:PORT.
    """

    def __init__(self, address: str, backend: str) -> None:
        self._address = address
        self._backend = backend

    def _ask(self, command: str) -> str:
        with self._connect() as sock, sock.makefile("rb") as answer:
            sock.sendall(f"{command}\n".encode())
            return answer.read().decode()

    def _connect(self) -> socket.socket:
        if "/" not in self._address:
            host, _, port = self._address.rpartition(":")
            return socket.create_connection((host.strip("[]"), int(port)), 10)
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(10)
            sock.connect(self._address)
        except OSError:
            sock.close()
            raise
        return sock

    def trouble(self, name: str) -> str:
        """Why a server does not get requests; empty if it does."""
        try:
            lines = csv.DictReader(self._ask("show stat").removeprefix("# ").splitlines())
            found = [one["status"] for one in lines if (one["pxname"], one["svname"]) == (self._backend, name)]
        except (OSError, ValueError) as error:
            return f"HAProxy does not answer at {self._address}: {error}"
        if not found:
            return f"HAProxy has no server {self._backend}/{name}"
        return "" if found[0] == "UP" else f"HAProxy calls it {found[0]}"


def parse(arguments: list[str]) -> argparse.Namespace:
    """Read the command line; ends the process with status 2 if it is wrong."""
    usage = "%(prog)s [OPTION]... NAME=HOST... -- COMMAND [ARGUMENT]..."
    description, _, codes = (__doc__ or "").rpartition("\n\n")
    parser = argparse.ArgumentParser(
        usage=usage, description=description, epilog=codes, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("nodes", nargs="+", metavar="NAME=HOST", help="in this order; NAME as in HAProxy's config")
    parser.add_argument("--status-port", type=int, default=9187, metavar="PORT", help="of the status listener (9187)")
    parser.add_argument("--version", help="the version of poolsrv that has to answer afterwards")
    parser.add_argument("--timeout", type=float, default=120, metavar="S", help="seconds for a node to come back (120)")
    parser.add_argument("--haproxy", metavar="SOCKET", help="its runtime API: a path, or HOST:PORT")
    parser.add_argument("--backend", default="poolsrv", help="the backend with the nodes (poolsrv)")
    parser.add_argument(
        "--settle", type=float, default=10, metavar="S", help="seconds after a node, without --haproxy (10)"
    )
    own, command = arguments, []
    if "--" in arguments:
        own, command = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    options = parser.parse_args(own)
    if not command:
        parser.error("the command that upgrades a node is missing: -- COMMAND")
    if wrong := [each for each in options.nodes if not all(each.partition("="))]:
        parser.error(f"{wrong[0]}: expected NAME=HOST")
    options.command = command
    pairs = (each.split("=", 1) for each in options.nodes)
    options.nodes = [Node(name, host, options.status_port) for name, host in pairs]
    if len({node.name for node in options.nodes}) < len(options.nodes):
        parser.error("a node is named twice")
    return options


def say(text: str) -> None:
    """Print a line, with the time. Nobody may read it any more: that is no reason to stop between two nodes."""
    with suppress(OSError):
        print(time.strftime("%H:%M:%S"), text, flush=True)


def wait(trouble: Callable[[], str], seconds: float) -> str:
    """Wait until there is no trouble; return what there is at the end."""
    deadline = time.monotonic() + seconds
    while (left := trouble()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return left


def upgrade(node: Node, options: argparse.Namespace, haproxy: Haproxy | None) -> None:
    """Upgrade a node, and wait until it serves again.

    :raises Failed: it does not.
    """
    before = identity(node.server())
    command = [word.replace("{name}", node.name).replace("{host}", node.host) for word in options.command]
    say(f"{node.name}: upgrading")
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, check=False)
    except OSError as error:
        raise Failed(f"{node.name}: the command can't be started: {error}") from None
    if done.returncode:
        raise Failed(f"{node.name}: the command has ended with {done.returncode}")
    if trouble := wait(lambda: what_is_missing(node, before, options.version, haproxy), options.timeout):
        raise Failed(f"{node.name}: not back after {options.timeout:.0f} s: {trouble}")
    say(f"{node.name}: serves, version {node.server()['version']}")


def identity(server: dict[str, Any]) -> tuple[object, ...]:
    """What differs after a restart, and after a reload."""
    return server["started_at"], server["generation"]


def what_is_missing(node: Node, before: tuple[object, ...], version: str | None, haproxy: Haproxy | None) -> str:
    """Why a node is not back yet; empty if it is."""
    if trouble := node.trouble():
        return trouble
    try:
        server = node.server()
    except Failed as error:
        return str(error)
    if identity(server) == before:
        return "the same server as before answers"
    if version and server["version"] != version:
        return f"version {server['version']} answers, not {version}"
    return haproxy.trouble(node.name) if haproxy else ""


def trouble_of(node: Node, haproxy: Haproxy | None) -> str:
    """Why a node does not serve; empty if it does."""
    return node.trouble() or (haproxy.trouble(node.name) if haproxy else "")


def names(nodes: list[Node]) -> str:
    """For a message."""
    return ", ".join(node.name for node in nodes) or "none"


def run(options: argparse.Namespace) -> None:
    """Upgrade all nodes.

    :raises Failed: the upgrade has ended early.
    """
    haproxy = Haproxy(options.haproxy, options.backend) if options.haproxy else None
    for index, node in enumerate(options.nodes):
        try:
            for each in options.nodes:
                if trouble := wait(partial(trouble_of, each, haproxy), PATIENCE):
                    raise Failed(f"{each.name}: {trouble}")
            upgrade(node, options, haproxy)
        except Failed as error:
            done, rest = options.nodes[:index], options.nodes[index + 1 :]
            raise Failed(f"{error} (at {node.name}; upgraded: {names(done)}; untouched: {names(rest)})") from None
        if haproxy is None and node != options.nodes[-1]:
            time.sleep(options.settle)
    say(f"all {len(options.nodes)} nodes have been upgraded")


def main(arguments: list[str]) -> int:
    """Run as a program."""
    options = parse(arguments)
    try:
        run(options)
    except Failed as error:
        print(f"rolling_upgrade.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("rolling_upgrade.py: interrupted", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
