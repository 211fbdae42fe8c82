"""The config file: reading it, and finding every error that it alone shows.

The result is a *draft*: what is in the plugins' own tables, and keys that only a plugin could explain, is for
``plugins.load``, which imports the plugins and then has all errors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..core.privileges import Identity
from ..core.words import bare_or_quoted, nearest, one_of
from ..net import access_list, addresses
from ..net.access_list import Network
from ..net.addresses import Address
from . import identity, places, toml_file
from .checks import _check_listener, _check_top_level, _homes
from .describe import show, unknown
from .draft import Draft, ListenerDraft
from .errors import Key, Problems
from .model import (
    LIMITS_KEYS,
    LISTENER_KEYS,
    LOG_KEYS,
    POOL_KEYS,
    RESERVED_NAMES,
    LimitsConfig,
    ListenerTable,
    LogConfig,
    PoolTable,
)

ADDRESS = f"a string with an address, such as {addresses.EXAMPLES}"


def read(path: Path) -> Draft:
    """Read a config file.

    :raises ConfigErrors: the file can't be read, or is not TOML. All other errors are in the draft.
    """
    draft = Draft(path)
    draft.document, draft.text = toml_file.read(path)
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
    draft.document, draft.text = toml_file.read(path)
    pool = draft.document.get("pool", {})
    table = {key: pool[key] for key in ("control", "pidfile") if key in pool} if isinstance(pool, Mapping) else {}
    draft.pool = draft.decoder.decode_table(PoolTable, table, ("pool",))
    places.check_control(draft)
    if draft.problems:
        raise draft.problems.error(draft.document)
    return PoolTable(**draft.pool)


def _read_pool(draft: Draft, table: Mapping[str, Any]) -> None:
    problems, key = draft.problems, ("pool",)
    plain = {name: value for name, value in table.items() if name != "umask"}
    draft.pool = draft.decoder.decode_table(PoolTable, plain, key)
    if "umask" in table:
        draft.pool["umask"] = _read_mode(draft, table["umask"], (*key, "umask"))
    uid, gid, name = None, None, ""
    if (wanted := draft.pool.pop("user", None)) is not None:
        try:
            uid, gid, name = identity.user_of(wanted)
        except ValueError as error:
            problems.add((*key, "user"), str(error))
        else:
            if gid is None and "group" not in table:
                problems.add((*key, "group"), f"missing, expected one: user {uid} is in no list of users")
    if (wanted := draft.pool.pop("group", None)) is not None:
        try:
            gid = identity.group_of(wanted)
        except ValueError as error:
            problems.add((*key, "group"), str(error))
    if (uid, gid) != (None, None):
        draft.pool["identity"] = Identity(uid, gid, name)


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


def _read_networks(problems: Problems, texts: list[str], key: Key) -> tuple[tuple[Network, Key], ...]:
    """The networks, each with the place where the file has it."""
    found = []
    for index, text in enumerate(texts):
        try:
            found.append((access_list.parse(text), (*key, index)))
        except ValueError as error:
            problems.add((*key, index), str(error))
    return tuple(found)


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
        is_decimal = value not in range(8) and toml_file.is_decimal(draft.text, key)
        if 0 <= value <= 0o777 and not is_decimal:
            return value
        if is_decimal and re.fullmatch("[0-7]{2,3}", str(value)):
            hint = f" (write 0o{value:0>3})"
    example = "0o022" if key[-1] == "umask" else "0o660"
    expected = f"permission bits in octal, such as {example}{hint}"
    draft.problems.add(key, f"got {show(value, 'string number')}, expected {expected}")
    return None
