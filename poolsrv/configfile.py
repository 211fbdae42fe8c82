"""The config file: reading it, and finding every error that it alone shows.

The result is a *draft*: what is in the plugins' own tables, and keys that only a plugin could explain, is for
``plugins.load``, which imports the plugins and then has all errors.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from . import addresses, cpus, networks, places, privileges, syntax
from .addresses import Address
from .config import (
    LIMITS_KEYS,
    LISTENER_KEYS,
    LOG_KEYS,
    POOL_KEYS,
    RESERVED_NAMES,
    Config,
    LimitsConfig,
    ListenerConfig,
    ListenerTable,
    LogConfig,
    PoolConfig,
    PoolTable,
)
from .networks import Network
from .privileges import Identity
from .problems import Key, Problems, bare_or_quoted, did_you_mean, nearest, one_of, quoted
from .schema import Decoder
from .words import show, unknown

TABLES = ("pool", "limits", "log", "listeners")
IDENTITY_KEYS = ("user", "group")
ADDRESS = f"a string with an address, such as {addresses.EXAMPLES}"


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


def read(path: Path) -> Draft:
    """Read a config file.

    :raises ConfigErrors: the file can't be read, or is not TOML. All other errors are in the draft.
    """
    draft = Draft(path)
    draft.document, draft.text = syntax.read(path)
    _check_top_level(draft)
    _read_pool(draft, _checked_table(draft, "pool", POOL_KEYS))
    draft.limits = _read_table(draft, "limits", LimitsConfig, LIMITS_KEYS)
    draft.log = _read_table(draft, "log", LogConfig, LOG_KEYS)
    places.check_folders(draft)
    listeners = draft.document.get("listeners", {})
    if isinstance(listeners, Mapping):
        for name, table in listeners.items():
            _read_listener(draft, name, table)
    else:
        draft.problems.add(
            ("listeners",), f"got {show(listeners)}, expected a table for each listener: [listeners.NAME]"
        )
    places.check_overlaps(draft)
    places.check_control(draft)
    return draft


def locate(path: Path) -> PoolTable:
    """Of a config file only where its server is to be found: ``pool.control`` and ``pool.pidfile``; the rest of the
    table is left at its defaults. Other mistakes do not matter.

    :raises ConfigErrors: the file can't be read, is not TOML, or these two are wrong.
    """
    draft = Draft(path)
    draft.document, draft.text = syntax.read(path)
    pool = draft.document.get("pool", {})
    table = {key: pool[key] for key in ("control", "pidfile") if key in pool} if isinstance(pool, Mapping) else {}
    draft.pool = draft.decoder.decode_table(PoolTable, table, ("pool",))
    places.check_control(draft)
    if draft.problems:
        raise draft.problems.error(draft.document)
    return PoolTable(**draft.pool)


def _check_top_level(draft: Draft) -> None:
    problems, document = draft.problems, draft.document
    named = {name for table in _tables(document.get("listeners")) for name in _named_plugins(table)}
    for name, value in document.items():
        if name in TABLES:
            continue
        header, is_table = f"[{bare_or_quoted(name)}]", isinstance(value, Mapping)
        if is_table and name in named:
            message = f"no place for a plugin's options, expected them on a listener: [listeners.NAME.{name}]"
        elif is_table and nearest(name, ("listeners",)):
            inner = next((bare_or_quoted(key) for key, member in value.items() if isinstance(member, Mapping)), "NAME")
            message = f"unknown table [{bare_or_quoted(name)}.{inner}], expected [listeners.{inner}]"
        elif is_table or isinstance(value, list):
            hint = did_you_mean(name, TABLES)
            message = f"unknown table {header}{hint}, expected [pool], [limits], [log] or [listeners.NAME]"
        elif homes := _homes(name):
            message = f"`{name}` belongs in {one_of(homes)}"
        else:
            hint = did_you_mean(name, (*POOL_KEYS, *LOG_KEYS, *LISTENER_KEYS))
            message = f"unknown key{hint}, expected the tables [pool], [limits], [log] and [listeners.NAME]"
        problems.add((name,), message)
    others = (name for name in document if name != "listeners")
    if document.get("listeners", {}) == {} and not any(nearest(name, ("listeners",)) for name in others):
        problems.add((), "no listeners, expected at least one table [listeners.NAME] with `bind` and `handler`")


def _read_pool(draft: Draft, table: Mapping[str, Any]) -> None:
    problems, key = draft.problems, ("pool",)
    plain = {name: value for name, value in table.items() if name != "umask"}
    draft.pool = draft.decoder.decode_table(PoolTable, plain, key)
    if "umask" in table:
        draft.pool["umask"] = _read_mode(draft, table["umask"], (*key, "umask"))
    uid, gid, name = None, None, ""
    if (wanted := draft.pool.pop("user", None)) is not None:
        try:
            uid, gid, name = privileges.user_of(wanted)
        except ValueError as error:
            problems.add((*key, "user"), str(error))
        else:
            if gid is None and "group" not in table:
                problems.add((*key, "group"), f"missing, expected one: user {uid} is in no list of users")
    if (wanted := draft.pool.pop("group", None)) is not None:
        try:
            gid = privileges.group_of(wanted)
        except ValueError as error:
            problems.add((*key, "group"), str(error))
    if (uid, gid) != (None, None):
        draft.pool["identity"] = Identity(uid, gid, name)


def _finish_pool(fields: Mapping[str, Any]) -> PoolConfig:
    workers, identity = fields.get("workers", "auto"), fields.get("identity")
    forbids = fields.get("no_new_privs")
    return PoolConfig(
        **{
            **fields,
            "workers": cpus.usable() if workers == "auto" else workers,
            "no_new_privs": forbids if forbids is not None else identity is not None and identity.uid is not None,
        }
    )


def _read_table(draft: Draft, header: str, schema: type[msgspec.Struct], known: tuple[str, ...]) -> dict[str, Any]:
    """The keys of one of the file's own tables that are right, decoded."""
    return draft.decoder.decode_table(schema, _checked_table(draft, header, known), (header,))


def _checked_table(draft: Draft, header: str, known: tuple[str, ...]) -> Mapping[str, Any]:
    """One of the file's own tables, and problems for keys that it does not have."""
    table = draft.document.get(header, {})
    if not isinstance(table, Mapping):
        draft.problems.add((header,), f"got {show(table)}, expected a table: [{header}]")
        return {}
    for name in table:
        if name not in known:
            homes = _homes(name)
            message = f"`{name}` belongs in {one_of(homes)}" if homes else unknown(name, known)
            draft.problems.add((header, name), message)
    return table


def _homes(name: str) -> list[str]:
    """The tables that have such a key."""
    tables = (
        ("[pool]", POOL_KEYS),
        ("[limits]", LIMITS_KEYS),
        ("[log]", LOG_KEYS),
        ("[listeners.NAME]", LISTENER_KEYS),
    )
    return [home for home, known in tables if name in known]


def _read_listener(draft: Draft, name: str, table: object) -> None:
    problems, key = draft.problems, ("listeners", name)
    if not isinstance(table, Mapping):
        if name in LISTENER_KEYS:
            message = f"`{name}` belongs in the table of one listener: [listeners.NAME]"
        else:
            message = f"got {show(table)}, expected a table: [listeners.{bare_or_quoted(name)}]"
        problems.add(key, message)
        return
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        problems.add(key, "not a name for a listener, expected letters, digits, - and _")
    listener = ListenerDraft(name)
    draft.listeners.append(listener)
    own = {
        entry: value
        for entry, value in table.items()
        if entry in RESERVED_NAMES or (entry in LISTENER_KEYS and not isinstance(value, Mapping))
    }
    listener.fields = draft.decoder.decode_table(
        ListenerTable, {entry: value for entry, value in own.items() if entry not in ("bind", "socket_mode")}, key
    )
    for entry, value in table.items():
        if entry in own:
            continue
        if isinstance(value, Mapping):
            listener.tables[entry] = value
        else:
            listener.strays.append(entry)
    misspelt = {nearest(stray, LISTENER_KEYS) for stray in listener.strays}
    for required, expected in (("bind", ADDRESS), ("handler", "the name of a plugin (`poolsrv plugins` lists them)")):
        if required not in table and required not in misspelt:
            problems.add((*key, required), f"missing, expected {expected}")
    if "bind" in table:
        listener.fields["bind"] = _read_bind(draft, table["bind"], (*key, "bind"))
    for access in ("allow", "deny", "trusted_proxies"):
        if access in listener.fields:
            listener.fields[access] = _read_networks(problems, listener.fields[access], (*key, access))
    if "socket_mode" in table:
        listener.fields["socket_mode"] = _read_mode(draft, table["socket_mode"], (*key, "socket_mode"))
    _check_listener(draft, listener)


def _check_listener(draft: Draft, listener: ListenerDraft) -> None:
    """What several keys say together."""
    problems, key, fields = draft.problems, listener.key, listener.fields
    for index, plugin in enumerate(fields.get("plugins", ())):
        listener.plugins.append((plugin, (*key, "plugins", index)))
    if "handler" in fields:
        listener.plugins.append((fields["handler"], (*key, "handler")))
    seen: dict[str, Key] = {}
    for plugin, place in list(listener.plugins):
        if plugin in RESERVED_NAMES:
            problems.add(place, f"a plugin can't be named {quoted(plugin)}: that is one of a listener's own keys")
        elif plugin in seen:
            as_handler = " (it is the handler)" if place[-1] == "handler" else ""
            problems.add(place, f"the plugin {quoted(plugin)} a second time{as_handler}, expected each of them once")
        else:
            seen[plugin] = place
            continue
        listener.plugins.remove((plugin, place))
    workers, pool = fields.get("workers"), draft.pool.get("workers", "auto")
    if workers is not None and pool != "auto" and workers > pool:
        problems.add((*key, "workers"), f"got {workers}, expected at most the {pool} of [pool]")
    _check_limits(problems, listener)
    _check_proxies(draft, listener)
    _check_socket_options(problems, listener)


def _check_socket_options(problems: Problems, listener: ListenerDraft) -> None:
    fields = listener.fields
    families = {address.family for address, _ in fields.get("bind", ())}
    if families == {socket.AF_UNIX}:
        for name in ("tcp_nodelay", "keepalive", "tcp_user_timeout", "reuse_port"):
            if fields.get(name):
                problems.add((*listener.key, name), "is about TCP, and this listener has only unix sockets")
    elif families and fields.get("reuse_port") and not families & {socket.AF_INET, socket.AF_INET6}:
        problems.add(
            (*listener.key, "reuse_port"), "comes too late for sockets of systemd, expected ReusePort= in their unit"
        )


def _check_limits(problems: Problems, listener: ListenerDraft) -> None:
    key, fields = listener.key, listener.fields
    misspelt = {nearest(stray, LISTENER_KEYS) for stray in listener.strays}
    for name, needed in (
        ("connection_rate_burst", ("connection_rate",)),
        ("rate_per_source_burst", ("rate_per_source",)),
        ("when_full", ("max_connections", "connection_rate")),
        ("ipv6_prefix", ("max_per_source", "rate_per_source")),
    ):
        if name in fields and not any(other in fields or other in misspelt for other in needed):
            expected = one_of([f"`{other}`" for other in needed])
            problems.add((*key, name), f"nothing that it could be about, expected {expected} beside it")
    binds = fields.get("bind", ())
    if binds and all(address.family == socket.AF_UNIX for address, _ in binds) and not fields.get("proxy_protocol"):
        for name in ("allow", "deny", "max_per_source", "rate_per_source"):
            if fields.get(name):
                problems.add(
                    (*key, name), "goes by IP addresses, and this listener has only unix sockets: see `socket_mode`"
                )
    allowed = {network for network, _ in fields.get("allow", ())}
    for network, place in fields.get("deny", ()):
        if network in allowed:
            problems.add(place, f'"{network}" is in `allow` too, expected it in one of them')


def _read_networks(problems: Problems, texts: list[str], key: Key) -> tuple[tuple[Network, Key], ...]:
    """The networks, each with the place where the file has it."""
    found = []
    for index, text in enumerate(texts):
        try:
            found.append((networks.parse(text), (*key, index)))
        except ValueError as error:
            problems.add((*key, index), str(error))
    return tuple(found)


def _check_proxies(draft: Draft, listener: ListenerDraft) -> None:
    problems, key, fields = draft.problems, listener.key, listener.fields
    table = draft.document["listeners"][listener.name]
    if "proxy_protocol" not in table and "proxy_header_timeout" in fields:
        message = "nothing that it could be about, expected `proxy_protocol` beside it"
        problems.add((*key, "proxy_header_timeout"), message)
    if fields.get("proxy_protocol"):
        check_trusted_proxies(draft, listener)


def check_trusted_proxies(draft: Draft, listener: ListenerDraft) -> None:
    """Proxies are believed here: it has to be said which. On a unix socket its permissions say who may connect."""
    table = draft.document["listeners"][listener.name]
    bound = listener.fields.get("bind", ())
    reachable = any(address.family in (socket.AF_INET, socket.AF_INET6) for address, _ in bound)
    if reachable and table.get("trusted_proxies", []) == []:
        draft.problems.add(
            (*listener.key, "trusted_proxies"),
            f"missing, expected the networks of the proxies, such as {networks.EXAMPLES}: what they say is believed",
        )


def _read_bind(draft: Draft, value: object, key: Key) -> tuple[tuple[Address, Key], ...]:
    """The addresses, each with the place where the file has it."""
    problems = draft.problems
    if value == []:
        problems.add(key, f"got an empty list, expected at least one address, such as {addresses.EXAMPLES}")
    several = isinstance(value, list)
    found = []
    for index, text in enumerate(value if isinstance(value, list) else [value]):
        place = (*key, index) if several else key
        if isinstance(text, str):
            try:
                found.append((addresses.parse(text, draft.base), place))
            except ValueError as error:
                problems.add(place, str(error))
        elif isinstance(text, int) and not isinstance(text, bool) and 0 <= text <= 65535:
            expected = f'":{text}" for every address, or "127.0.0.1:{text}"'
            problems.add(place, f"got {text} (a number), expected a string with an address: {expected}")
        else:
            problems.add(
                place, f"got {show(text, 'string')}, expected {ADDRESS}{'' if several else ', or a list of these'}"
            )
    return tuple(found)


def _read_mode(draft: Draft, value: object, key: tuple[str, ...]) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"(0o?)?[0-7]{3}", value):
        return int(value[-3:], 8)
    hint = ""
    if isinstance(value, int) and not isinstance(value, bool):
        # Up to 7 a number is the same in octal; from there on, 22 means 0o022, and is 0o026.
        is_decimal = value not in range(8) and syntax.is_decimal(draft.text, key)
        if 0 <= value <= 0o777 and not is_decimal:
            return value
        if is_decimal and re.fullmatch("[0-7]{2,3}", str(value)):
            hint = f" (write 0o{value:0>3})"
    example = "0o022" if key[-1] == "umask" else "0o660"
    expected = f"permission bits in octal, such as {example}{hint}"
    draft.problems.add(key, f"got {show(value, 'string number')}, expected {expected}")
    return None


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
