"""Write services as a poolsrv.toml. Services that can't be served become comments, so nothing is lost."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from ...core.text import encodable, one_line
from ...core.toml import toml
from ...core.words import counted
from ..printed_config import COMMENTED_PATHS
from . import accounts
from .service import Service

WIDTH = 118
NICE = "/usr/bin/nice"
_INTRODUCTION = """\
`poolsrv check --config FILE` checks this file. Look through all lines with "no counterpart".
Programs have a clean environment: PATH, what `environment` sets, and the connection's addresses in TCPREMOTEIP,
REMOTE_ADDR and so on. hosts.allow and hosts.deny are not asked: write their rules as `allow` and `deny`.
Each connection that is refused sees a reset."""


class Pool(msgspec.Struct, frozen=True):
    """What all services share.

    :ivar user: empty: as the server is started.
    """

    user: str = ""
    group: str = ""


class Document:
    """Services with the names of their listeners.

    :ivar names: of the listeners, in the order of the services.
    """

    def __init__(self, services: Sequence[Service], user: str | None = None) -> None:
        self._services = services
        self.names = _unique(service.name for service in services)
        for service in services:
            _prepare(service, user)
        self._user = user

    @property
    def served(self) -> list[Service]:
        """The services that are listeners of the config, and not comments."""
        return [service for service in self._services if not (service.disabled or service.held_back)]

    def hold_back(self, name: str, reason: str) -> bool:
        """Make a listener a comment.

        :returns: whether it was none before.
        """
        service = dict(zip(self.names, self._services, strict=True)).get(name)
        if service is None or service.held_back:
            return False
        service.held_back.append(reason)
        return True

    def summary(self) -> list[str]:
        """A line for each service that is not served."""
        return [
            f"{service.place}: {service.name}: not served: {'; '.join(service.held_back)}"
            for service in self._services
            if service.held_back and not service.disabled
        ]

    def text(self, sources: Iterable[str]) -> str:
        """The whole file.

        :param sources: the files that it was made of.
        """
        disabled = sum(service.disabled for service in self._services)
        held = len(self._services) - disabled - len(self.served)
        parts = [counted(len(self.served), "service")]
        parts += [f"{disabled} switched off there"] if disabled else []
        parts += [f"{held} in comments, with the reason"] if held else []
        pool = _pool(self.served, self._user)
        lines = _comment(f"From {', '.join(sources)}: {', '.join(parts)}.")
        lines += [f"# {line}" for line in _INTRODUCTION.splitlines()]
        lines += ["", "[pool]", "workers = 1                    # enough if programs do the work"]
        lines.append(COMMENTED_PATHS)
        if pool.user:
            lines.append(f"user = {toml(accounts.value(pool.user))}")
            if pool.group:
                lines.append(f"group = {toml(accounts.value(pool.group))}")
            lines.append("# no_new_privs = false         # if a program needs set-user-ID bits, as sudo does")
        lines += ['chdir = "/"                    # as before', "umask = 0o022"]
        for name, service in zip(self.names, self._services, strict=True):
            lines += ["", *_listener(name, service, pool)]
        return "\n".join(lines) + "\n"


def _listener(name: str, service: Service, pool: Pool) -> Iterator[str]:
    yield from _comment(f"{service.place}: {service.name}")
    if service.disabled:
        yield "# It is switched off there."
    for reason in service.held_back:
        yield from _comment(f"NOT SERVED: {reason}")
    account = _account(service, pool)
    for lost in (*service.lost, *_lost_accounts(service, pool, account)):
        yield from _comment(lost)
    is_comment = service.disabled or bool(service.held_back)
    is_whole = bool(service.bind and (service.command or service.handler == "echo"))
    if is_whole:
        for line in _toml(name, service, account):
            yield one_line(f"# {line}") if is_comment else line
    if service.held_back or not is_whole:
        yield "# The old lines:"
        for line in service.source:
            yield one_line(f"#   {line}")


def _toml(name: str, service: Service, account: Mapping[str, str]) -> Iterator[str]:
    yield f"[listeners.{name}]"
    yield f"bind = {toml(service.bind[0] if len(service.bind) == 1 else service.bind)}"
    yield f'handler = "{service.handler}"'
    yield from _keys(service.listener)
    if service.handler == "cgi":
        yield f"[listeners.{name}.cgi]"
        yield 'protocol = "inetd"'
        options, command = dict(service.options), service.command
        if account and "nice" in options:  # which cgi does not combine with them
            nice = options.pop("nice")[0]
            command = (NICE, "-n", str(nice), *command) if nice > 0 else command
        yield f"program = {toml(command)}"
        for key, value in account.items():
            yield f"{key} = {toml(accounts.value(value))}"
        yield from _keys(options)


def _keys(table: dict[str, tuple[Any, str]]) -> Iterator[str]:
    for key, (value, comment) in table.items():
        line = f"{key} = {toml(value)}"
        yield f"{line:<30} # {one_line(comment)}" if comment else line


def _comment(text: str) -> list[str]:
    """Fold a text into lines of a comment. Long words, such as paths, stay whole."""
    lines: list[str] = []
    line = "#"
    for word in one_line(text).split(" "):
        if len(line) + len(word) >= WIDTH and line.strip("# "):
            lines.append(line)
            line = "#  "
        line += f" {word}"
    return [*lines, line]


def _unique(names: Iterable[str]) -> list[str]:
    """Names that a listener may have: each once."""
    found: list[str] = []
    for name in names:
        clean = re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "service"
        number, candidate = 1, clean
        while candidate in found:
            number += 1
            candidate = f"{clean}-{number}"
        found.append(candidate)
    return found


def _prepare(service: Service, user: str | None) -> None:
    if user is not None and service.user not in ("", user):
        service.held_back.append(f"its user is {service.user}, and --user {user} leaves it out")
    elif service.user and not accounts.has_user(service.user):
        service.held_back.append(f'there is no user "{service.user}" on this machine')
    elif service.group and not accounts.has_group(service.group):
        service.held_back.append(f'there is no group "{service.group}" on this machine')
    if service.server.startswith("/") and not os.access(service.server, os.F_OK) and service.command:
        service.held_back.append(f"there is no program {service.server} on this machine")
    values = (*service.bind, *service.command, toml_text(service.options), toml_text(service.listener))
    if any(encodable(value) != value for value in values):
        service.held_back.append("it has bytes that are not UTF-8, which a TOML file can't contain")


def toml_text(table: dict[str, tuple[Any, str]]) -> str:
    """All values of a table in one string."""
    return " ".join(toml(value) for value, _ in table.values())


def _pool(services: Iterable[Service], user: str | None) -> Pool:
    """The user of most services, but root only if all have it: no program gets more rights than before."""
    pairs = [(service.user, service.group) for service in services if service.user]
    ordinary = Counter(name for name, _ in pairs if not accounts.is_root(name))
    if user is not None:
        chosen = "" if accounts.is_root(user) else user
    else:
        chosen = ordinary.most_common(1)[0][0] if ordinary else ""
    groups = {group for name, group in pairs if name == chosen}
    return Pool(chosen, groups.pop() if len(groups) == 1 else "")


def _account(service: Service, pool: Pool) -> dict[str, str]:
    """The user and group of its programs, where they are not the pool's, and can be given to programs."""
    if service.handler != "cgi" or not pool.user or accounts.is_root(service.user):
        return {}
    if service.user not in ("", pool.user):
        return {"user": service.user} | ({"group": service.group} if service.group else {})
    return {"group": service.group} if service.group not in ("", pool.group) else {}


def _lost_accounts(service: Service, pool: Pool, account: Mapping[str, str]) -> Iterator[str]:
    is_root = accounts.is_root(service.user)
    nice = service.options.get("nice", (0, ""))[0]
    if account and nice < 0:
        yield f"nice = {nice}: no counterpart, only root may raise a priority, and the program runs as another user"
    if not service.user or (service.held_back and is_root):
        return  # a service that is not served takes no rights
    if is_root and pool.user:
        yield (
            f"user = {service.user}: no counterpart, programs are root's only where the whole server is, and this one"
            f" is {pool.user}'s; for root's programs run another server, with the config that"
            f" `poolsrv import --user {service.user}` makes"
        )
    elif not pool.user:
        yield f"user = {service.user}: programs run as the user that starts poolsrv, or as `user` in [pool] says"
    if service.group and service.group != pool.group and "group" not in account:
        yield f"group = {service.group}: no counterpart, programs have the group of their user"
