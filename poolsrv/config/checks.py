"""Rules that hold across the keys of a config."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from ..core.words import bare_or_quoted, did_you_mean, nearest, one_of, quoted
from ..net import access_list
from .draft import TABLES, Draft, ListenerDraft, _named_plugins, _tables
from .errors import Key, Problems
from .model import (
    LIMITS_KEYS,
    LISTENER_KEYS,
    LOG_KEYS,
    POOL_KEYS,
    RESERVED_NAMES,
)


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


def _homes(name: str) -> list[str]:
    """The tables that have such a key."""
    tables = (
        ("[pool]", POOL_KEYS),
        ("[limits]", LIMITS_KEYS),
        ("[log]", LOG_KEYS),
        ("[listeners.NAME]", LISTENER_KEYS),
    )
    return [home for home, known in tables if name in known]


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
            f"missing, expected the networks of the proxies, such as {access_list.EXAMPLES}: what they say is believed",
        )
