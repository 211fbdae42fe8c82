"""Read a config file, and find every error that the file alone shows.

What plugins have to say is left to ``plugins.loader``: whether their own tables are correct, and what a key means that
is neither a listener's nor a table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..core.privileges import Identity
from ..core.words import bare_or_quoted, nearest, one_of, quoted
from ..net import access_list, addresses
from . import checks, places, toml_file
from .describe import show, unknown
from .draft import Draft, ListenerDraft
from .errors import Key
from .model import (
    LIMITS_KEYS,
    LISTENER_KEYS,
    LOG_KEYS,
    POOL_KEYS,
    RESERVED_NAMES,
    LimitsConfig,
    ListenerConfig,
    LogConfig,
    PoolTable,
    TlsTable,
    tables_with,
)
from .plugin_reference import PluginReference, mistake_in, name_of

ADDRESS = f"a string with an address, such as {addresses.EXAMPLES}"
HANDLER = 'the name of a plugin (`poolsrv plugins` lists them), or "module:Class"'
NETWORKS = ("allow", "deny", "trusted_proxies")
MODES = ("socket_mode", "umask")
READ_APART = ("bind", *NETWORKS, *MODES)  # keys whose values are more than what a TOML type says


def read(path: Path) -> Draft:
    """Read a config file, and the certificates that it names.

    :raises ConfigErrors: the file can't be read, or is not TOML. All other errors are in the draft.
    """
    draft = Draft(path)
    draft.document, draft.text = toml_file.read(path)
    return read_document(draft)


def read_document(draft: Draft) -> Draft:
    """Do as ``read`` does, with a document that is already there.

    :param draft: with its ``document``; its path is the file that errors name.
    """
    _read_pool(draft)
    draft.limits = _read_table(draft, "limits", LimitsConfig, LIMITS_KEYS)
    draft.log = _read_table(draft, "log", LogConfig, LOG_KEYS)
    _read_listeners(draft)
    checks.check_top_level(draft)
    for listener in draft.listeners:
        checks.check_listener(draft, listener)
    places.check(draft)
    for listener in draft.listeners:
        _read_certificates(draft, listener)
    return draft


def locate(path: Path) -> PoolTable:
    """Read only where the server is to be found, ``pool.control`` and ``pool.pidfile``, and what time it has to start
    and to stop, ``pool.start_timeout`` and ``pool.graceful_timeout``.

    All other keys of the result have their defaults, and other errors of the file do not matter. A time that is wrong
    has its default too.

    :raises ConfigErrors: the file can't be read, is not TOML, or these two keys are wrong.
    """
    draft = Draft(path)
    draft.document, draft.text = toml_file.read(path)
    pool = draft.document.get("pool", {})
    table = {key: pool[key] for key in ("control", "pidfile") if key in pool} if isinstance(pool, Mapping) else {}
    draft.pool = draft.decoder.decode_table(PoolTable, table, ("pool",))
    places.check_control(draft)
    if draft.problems:
        raise draft.problems.error(draft.document)
    if isinstance(pool, Mapping):
        times = {key: pool[key] for key in ("start_timeout", "graceful_timeout") if key in pool}
        draft.pool |= draft.decoder.decode_table(PoolTable, times, ("pool",))
    return PoolTable(**draft.pool)


def _read_table(draft: Draft, header: str, schema: type[msgspec.Struct], known: tuple[str, ...]) -> dict[str, Any]:
    """The correct keys of one of the file's own tables, decoded."""
    key = (header,)
    table = draft.document.get(header, {})
    if not isinstance(table, Mapping):
        draft.problems.add(key, f"got {show(table)}, expected a table: [{header}]")
        return {}
    for name in table:
        if name not in known:
            headers = tables_with(name)
            message = f"`{name}` belongs in {one_of(headers)}" if headers else unknown(name, known)
            draft.problems.add((*key, name), message)
    return _read_keys(draft, schema, {name: table[name] for name in table if name in known}, key)


def _read_keys(draft: Draft, schema: type[msgspec.Struct], table: Mapping[str, Any], key: Key) -> dict[str, Any]:
    fields = draft.decoder.decode_table(schema, {name: table[name] for name in table if name not in READ_APART}, key)
    for name in MODES:
        if name in table:
            fields[name] = _read_mode(draft, table[name], (*key, name))
    return fields


def _read_pool(draft: Draft) -> None:
    draft.pool = _read_table(draft, "pool", PoolTable, POOL_KEYS)
    if "user" in draft.pool or "group" in draft.pool:
        _read_identity(draft)


def _read_identity(draft: Draft) -> None:
    from . import identity  # most pools run as they are started

    uid, gid, name = None, None, ""
    if (wanted := draft.pool.get("user")) is not None:
        try:
            uid, gid, name = identity.user_of(wanted)
        except ValueError as error:
            draft.problems.add(("pool", "user"), str(error))
        else:
            if gid is None and "group" not in draft.document["pool"]:
                message = f"missing, expected one: user {uid} is not in the user database"
                draft.problems.add(("pool", "group"), message)
    if (wanted := draft.pool.get("group")) is not None:
        try:
            gid = identity.group_of(wanted)
        except ValueError as error:
            draft.problems.add(("pool", "group"), str(error))
    if (uid, gid) != (None, None):
        draft.pool["identity"] = Identity(uid, gid, name)


def _read_listeners(draft: Draft) -> None:
    listeners = draft.document.get("listeners", {})
    if not isinstance(listeners, Mapping):
        message = f"got {show(listeners)}, expected a table for each listener: [listeners.NAME]"
        draft.problems.add(("listeners",), message)
        return
    for name, table in listeners.items():
        if isinstance(table, Mapping):
            draft.listeners.append(_read_listener(draft, name, table))
        elif name in LISTENER_KEYS:
            draft.problems.add(("listeners", name), f"`{name}` belongs in the table of one listener: [listeners.NAME]")
        else:
            message = f"got {show(table)}, expected a table: [listeners.{bare_or_quoted(name)}]"
            draft.problems.add(("listeners", name), message)


def _read_listener(draft: Draft, name: str, table: Mapping[str, Any]) -> ListenerDraft:
    listener = ListenerDraft(name)
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        draft.problems.add(listener.key, "not a name for a listener, expected letters, digits, - and _")
    own = {}
    for entry, value in table.items():
        is_table = isinstance(value, Mapping)
        if entry in RESERVED_NAMES or (entry in LISTENER_KEYS and not is_table):
            own[entry] = value
        elif is_table:
            listener.tables[entry] = value
        else:
            listener.strays.append(entry)
    misspelt = {nearest(stray, LISTENER_KEYS) for stray in listener.strays}
    for required, expected in (("bind", ADDRESS), ("handler", HANDLER)):
        if required not in table and required not in misspelt:
            draft.problems.add((*listener.key, required), f"missing, expected {expected}")
    listener.fields = _read_keys(draft, ListenerConfig, own, listener.key)
    if "bind" in own:
        _read_bind(draft, listener, own["bind"])
    for access in NETWORKS:
        if access in own:
            _read_networks(draft, listener, access, own[access])
    _read_plugins(draft, listener)
    if not {"user", "group"}.isdisjoint(listener.tables.get("cgi", ())):
        from . import program_users  # few listeners have them

        program_users.read(draft, listener)
    return listener


def _read_bind(draft: Draft, listener: ListenerDraft, value: object) -> None:
    key = (*listener.key, "bind")
    if value == []:
        draft.problems.add(key, f"got an empty list, expected at least one address, such as {addresses.EXAMPLES}")
    is_list = isinstance(value, list)
    found, keys = [], []
    for index, text in enumerate(value if isinstance(value, list) else [value]):
        place = (*key, index) if is_list else key
        if isinstance(text, str):
            try:
                found.append(addresses.parse(text, draft.base))
                keys.append(place)
            except ValueError as error:
                draft.problems.add(place, str(error))
        elif isinstance(text, int) and not isinstance(text, bool) and 0 <= text <= 65535:
            expected = f'":{text}" for every address, or "127.0.0.1:{text}"'
            draft.problems.add(place, f"got {text} (a number), expected a string with an address: {expected}")
        else:
            message = f"got {show(text, 'string')}, expected {ADDRESS}{'' if is_list else ', or a list of these'}"
            draft.problems.add(place, message)
    listener.fields["bind"], listener.places["bind"] = tuple(found), keys


def _read_networks(draft: Draft, listener: ListenerDraft, name: str, value: object) -> None:
    key = (*listener.key, name)
    texts = draft.decoder.decode(list[str], value, key)
    if texts is None:
        return
    found, keys = [], []
    for index, text in enumerate(texts):
        try:
            found.append(access_list.parse(text))
            keys.append((*key, index))
        except ValueError as error:
            draft.problems.add((*key, index), str(error))
    listener.fields[name], listener.places[name] = tuple(found), keys


def _read_plugins(draft: Draft, listener: ListenerDraft) -> None:
    """The plugins that a listener names, without those that can't be meant."""
    named = [(text, (*listener.key, "plugins", index)) for index, text in enumerate(listener.fields.get("plugins", ()))]
    if "handler" in listener.fields:
        named.append((listener.fields["handler"], (*listener.key, "handler")))
    seen: dict[str, str] = {}
    for text, place in named:
        plugin = PluginReference(name_of(text), text, place)
        if message := _mistake_in(plugin, seen.get(plugin.name)):
            draft.problems.add(place, message)
        else:
            seen[plugin.name] = text
            listener.plugins.append(plugin)


def _mistake_in(plugin: PluginReference, earlier: str | None) -> str | None:
    """Why a plugin can't be meant; None if it can.

    :param earlier: what the listener has named before, if that has the same name.
    """
    if message := mistake_in(plugin.text):
        return f"{quoted(plugin.text)} is {message}"
    if plugin.name in RESERVED_NAMES and plugin.is_class:
        own = f"{quoted(plugin.name)}, which is one of a listener's own keys"
        return f"the plugin {plugin.text} would be named {own}, expected another name for its class"
    if plugin.name in RESERVED_NAMES:
        return f"a plugin can't be named {quoted(plugin.name)}: that is one of a listener's own keys"
    if earlier is None:
        return None
    as_handler = " (it is the handler)" if plugin.is_handler else ""
    if earlier == plugin.text:
        return f"the plugin {quoted(plugin.text)} is named a second time{as_handler}, expected each plugin once"
    return f"{quoted(plugin.text)} and {quoted(earlier)} are both named {quoted(plugin.name)}, expected different names"


def _read_mode(draft: Draft, value: object, key: Key) -> int | None:
    if isinstance(value, str) and re.fullmatch(r"(0o?)?[0-7]{3}", value):
        return int(value[-3:], 8)
    hint = ""
    if isinstance(value, int) and not isinstance(value, bool):
        # Up to 7 a number is the same in octal. From there on, 22 is meant as 0o022, but is 0o026.
        is_decimal = value not in range(8) and toml_file.is_decimal(draft.text, key)
        if 0 <= value <= 0o777 and not is_decimal:
            return value
        if is_decimal and re.fullmatch("[0-7]{2,3}", str(value)):
            hint = f" (write 0o{value:0>3})"
    example = "0o022" if key[-1] == "umask" else "0o660"
    expected = f"permission bits in octal, such as {example}{hint}"
    draft.problems.add(key, f"got {show(value, 'string number')}, expected {expected}")
    return None


def _read_certificates(draft: Draft, listener: ListenerDraft) -> None:
    """While this process may still be root, which the keys may need."""
    table: TlsTable | None = listener.fields.get("tls")
    if table is not None:
        from . import certificates  # ssl takes a while to import

        listener.server_tls = certificates.load(table, (*listener.key, "tls"), draft.problems)
