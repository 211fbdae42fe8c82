"""A config file as far as it has been read: what plugins have to finish."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..core import cgroups
from ..core.privileges import Identity
from ..core.words import bare_or_quoted, nearest
from .decoder import Decoder
from .errors import Key, Problems
from .model import (
    Config,
    LimitsConfig,
    ListenerConfig,
    LogConfig,
    PoolConfig,
)

TABLES = ("pool", "limits", "log", "listeners")
IDENTITY_KEYS = ("user", "group")


class ListenerDraft:
    """A listener as far as the file alone tells.

    :ivar key: where its table is.
    :ivar fields: those keys of its own that are right, decoded.
    :ivar plugins: every plugin that it names, with the place; the handler last.
    :ivar tables: the tables that are not its own keys, by name.
    :ivar strays: names of keys that are neither its own nor tables.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.key: Key = ("listeners", name)
        self.fields: dict[str, Any] = {}
        self.plugins: list[tuple[str, Key]] = []
        self.tables: dict[str, Mapping[str, Any]] = {}
        self.strays: list[str] = []

    @property
    def header(self) -> str:
        """The header of its table."""
        return f"[listeners.{bare_or_quoted(self.name)}]"

    def plugin_header(self, plugin: str) -> str:
        """The header of the table with a plugin's options."""
        return f"[listeners.{bare_or_quoted(self.name)}.{bare_or_quoted(plugin)}]"


class Draft:
    """A config as far as the file alone tells, with the errors that it shows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.base = Path(os.path.abspath(path)).parent
        self.problems = Problems(path)
        self.decoder = Decoder(self.problems, self.base)
        self.document: dict[str, Any] = {}
        self.text = ""
        self.pool: dict[str, Any] = {}
        self.limits: dict[str, Any] = {}
        self.log: dict[str, Any] = {}
        self.listeners: list[ListenerDraft] = []

    @property
    def identity(self) -> Identity | None:
        """Whom the pool is to run as.

        :raises ConfigErrors: the file means to say, and has it wrong. So no plugin is imported as root by mistake.
        """
        for key in self.problems.keys:
            tables = nearest(str(key[0]), TABLES) if key else None
            if key[:1] == ("pool",) and len(key) > 1:
                if key[1] in IDENTITY_KEYS or nearest(str(key[1]), IDENTITY_KEYS):
                    raise self.problems.error(self.document)
            elif key and (tables == "pool" or key[0] in IDENTITY_KEYS):
                raise self.problems.error(self.document)
        identity: Identity | None = self.pool.get("identity")
        return identity

    def finish(self) -> Config:
        """The config.

        :raises ConfigErrors: there are errors, of the file or of its plugins.
        """
        if self.problems:
            raise self.problems.error(self.document)
        pool = _finish_pool(self.pool)
        listeners = tuple(_finish_listener(draft, pool) for draft in self.listeners)
        return Config(self.path, pool, listeners, LimitsConfig(**self.limits), LogConfig(**self.log))


def _finish_pool(fields: Mapping[str, Any]) -> PoolConfig:
    workers, identity = fields.get("workers", "auto"), fields.get("identity")
    forbids = fields.get("no_new_privs")
    return PoolConfig(
        **{
            **fields,
            "workers": cgroups.usable() if workers == "auto" else workers,
            "no_new_privs": forbids if forbids is not None else identity is not None and identity.uid is not None,
        }
    )


def _finish_listener(draft: ListenerDraft, pool: PoolConfig) -> ListenerConfig:
    fields = dict(draft.fields)
    for several in ("bind", "allow", "deny", "trusted_proxies"):
        fields[several] = tuple(member for member, _ in fields.get(several, ()))
    fields["plugins"] = tuple(fields.get("plugins", ()))
    if fields.get("workers") is not None:
        # With "auto" the machine decides how many there are: a listener that wants more has all of them.
        fields["workers"] = min(fields["workers"], pool.workers)
    return ListenerConfig(name=draft.name, plugin_options=draft.tables, **fields)


def _tables(value: object) -> list[Mapping[str, Any]]:
    return [member for member in value.values() if isinstance(member, Mapping)] if isinstance(value, Mapping) else []


def _named_plugins(listener: Mapping[str, Any]) -> list[str]:
    plugins = listener.get("plugins")
    names = [listener.get("handler"), *(plugins if isinstance(plugins, list) else ())]
    return [name for name in names if isinstance(name, str)]
