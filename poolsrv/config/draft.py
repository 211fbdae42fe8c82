"""A config file on its way to a ``Config``: what has been read of it so far, and the errors found so far.

``reader.read`` makes the draft and fills it. ``plugins.loader`` adds the errors of the plugins, and calls ``finish``.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..core import cgroups
from ..core.privileges import Identity
from ..core.words import bare_or_quoted, nearest
from .decoder import Decoder
from .errors import Key, Problems
from .model import TABLES, Config, LimitsConfig, ListenerConfig, LogConfig, PoolConfig
from .plugin_reference import PluginReference

if TYPE_CHECKING:
    from ..net.tls import ServerTls
    from .arguments import Setting


class ListenerDraft:
    """One listener.

    :ivar key: where its table is.
    :ivar fields: the correct ones of its keys, with values as in ``ListenerConfig``.
    :ivar places: where the file has each member of those keys that are lists of addresses or networks.
    :ivar plugins: every plugin that it names; the handler comes last.
    :ivar tables: its tables that are not keys of a listener, by name.
    :ivar strays: names that are neither keys of a listener nor tables.
    :ivar options: the options of those plugins that take any, by plugin name, once the plugins have been loaded.
    :ivar settings: what a command's arguments set, and is not one of the listener's own keys.
    :ivar marks: of those ``fields`` that plugins have set, not the file: which one, in words.
    :ivar apart: whether its handler is to have a worker of its own.
    :ivar programs: the user of its programs; None: the pool's.
    :ivar server_tls: its certificates, read; None without TLS, or if they have errors.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.key: Key = ("listeners", name)
        self.fields: dict[str, Any] = {}
        self.places: dict[str, list[Key]] = {}
        self.plugins: list[PluginReference] = []
        self.tables: dict[str, Mapping[str, Any]] = {}
        self.strays: list[str] = []
        self.options: dict[str, msgspec.Struct] = {}
        self.settings: list[Setting] = []
        self.marks: dict[str, str] = {}
        self.apart = False
        self.programs: Identity | None = None
        self.server_tls: ServerTls | None = None

    @property
    def header(self) -> str:
        """The header of its table."""
        return f"[listeners.{bare_or_quoted(self.name)}]"

    def plugin_header(self, plugin: str) -> str:
        """The header of the table with a plugin's options."""
        return f"[listeners.{bare_or_quoted(self.name)}.{bare_or_quoted(plugin)}]"

    @property
    def has_only_unix_sockets(self) -> bool:
        """Whether it has addresses, and all of them are unix sockets."""
        return {address.family for address in self.fields.get("bind", ())} == {socket.AF_UNIX}

    def placed(self, name: str) -> list[tuple[Any, Key]]:
        """The members of a list of addresses or networks, each with its place."""
        return list(zip(self.fields.get(name, ()), self.places.get(name, ()), strict=True))


class Draft:
    """A whole file, or what a command's arguments say in place of one.

    :param base: of arguments, the directory that they were given in.
    :param name: of arguments, writes a place for messages.
    :ivar path: the file, as the user named it; or the command.
    :ivar base: its directory, absolute: relative paths are relative to it.
    :ivar text: the file's text.
    :ivar document: the TOML document.
    :ivar uid: the user that reads it.
    :ivar is_served: whether this user serves it, and does not only look at it.
    :ivar pool: the correct keys of ``[pool]``, and ``identity``; ``limits`` and ``log`` likewise.
    """

    def __init__(self, path: Path, base: Path | None = None, name: Callable[[Key], str] | None = None) -> None:
        self.path = path
        self.base = base or Path(os.path.abspath(path)).parent
        self.is_file = base is None
        self.problems = Problems(path, name)
        self.decoder = Decoder(self.problems, self.base)
        self.text = ""
        self.document: dict[str, Any] = {}
        self.pool: dict[str, Any] = {}
        self.limits: dict[str, Any] = {}
        self.log: dict[str, Any] = {}
        self.listeners: list[ListenerDraft] = []
        self.uid = os.geteuid()
        self.is_served = True

    @property
    def identity(self) -> Identity | None:
        """The user and group that the pool runs as; None: unchanged.

        :raises ConfigErrors: the file tries to name them, but has an error there. So no plugin is imported as root by
            mistake.
        """
        if any(map(_is_about_identity, self.problems.keys)):
            raise self.problems.error(self.document)
        identity: Identity | None = self.pool.get("identity")
        return identity

    def finish(self) -> Config:
        """Make the config.

        :raises ConfigErrors: there are errors, in the file or in its plugins.
        """
        if self.problems:
            raise self.problems.error(self.document)
        pool = _finish_pool(self.pool, any(listener.programs for listener in self.listeners))
        shares = pool.workers == 1 or not any(listener.fields.get("exclusive") for listener in self.listeners)
        listeners = tuple(_finish_listener(listener, pool, shares) for listener in self.listeners)
        place = os.path.abspath(self.path) if self.is_file else str(self.path)
        return Config(self.path, pool, listeners, LimitsConfig(**self.limits), LogConfig(**self.log), place)


def _is_about_identity(key: Key) -> bool:
    """Whether an error at this key may hide that the file names a user or a group."""
    if not key:
        return False
    names = [str(part) for part in key]
    if names[0] == "pool" and len(names) > 1:
        return nearest(names[1], ("user", "group")) is not None
    return names[0] in ("user", "group") or nearest(names[0], TABLES) == "pool"


def _finish_pool(fields: Mapping[str, Any], has_program_users: bool) -> PoolConfig:
    decided = dict(fields)
    if fields.get("workers", "auto") == "auto":
        decided["workers"] = cgroups.usable()
    if fields.get("no_new_privs") is None:
        identity = fields.get("identity")
        decided["no_new_privs"] = (identity is not None and identity.uid is not None) or has_program_users
    return PoolConfig(**decided)


def _finish_listener(listener: ListenerDraft, pool: PoolConfig, shares: bool) -> ListenerConfig:
    """Decide which workers serve a listener.

    :param shares: False if the first worker is for the exclusive listeners alone: on reload it ends before the others.
    """
    fields = dict(listener.fields)
    if fields.get("exclusive"):
        if "workers" not in fields:
            listener.marks["workers"] = "since it is exclusive"
        fields["workers"] = 1
    elif not shares and not listener.apart:
        fields["first_worker"] = 1
    if fields.get("workers") is not None:
        # With "auto" the machine decides how many workers there are: a listener that wants more gets all of them.
        fields["workers"] = min(fields["workers"], pool.workers - fields.get("first_worker", 0))
    return ListenerConfig(
        name=listener.name, plugin_options=listener.tables, apart=listener.apart, programs=listener.programs, **fields
    )
