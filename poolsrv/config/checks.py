"""Rules that hold across several keys of a config."""

from __future__ import annotations

import socket
from collections.abc import Mapping

from ..core.words import bare_or_quoted, did_you_mean, nearest, one_of
from ..net import access_list
from .draft import Draft, ListenerDraft
from .model import LISTENER_KEYS, LOG_KEYS, POOL_KEYS, POOL_LIMITS, TABLES, tables_with
from .plugin_reference import name_of

TCP_KEYS = ("tcp_nodelay", "keepalive", "tcp_user_timeout", "reuse_port")


def check_top_level(draft: Draft) -> None:
    """The file has only tables that exist, and at least one listener."""
    document = draft.document
    for name, value in document.items():
        if name not in TABLES:
            draft.problems.add((name,), _unknown_at_top_level(document, name, value))
    others = (name for name in document if name != "listeners")
    if document.get("listeners", {}) == {} and not any(nearest(name, ("listeners",)) for name in others):
        message = "no listeners, expected at least one table [listeners.NAME] with `bind` and `handler`"
        draft.problems.add((), message)


def _unknown_at_top_level(document: Mapping[str, object], name: str, value: object) -> str:
    if isinstance(value, Mapping):
        if name in _plugins_of(document):
            return f"no place for a plugin's options, expected them on a listener: [listeners.NAME.{name}]"
        if nearest(name, ("listeners",)):
            inner = next((bare_or_quoted(key) for key, member in value.items() if isinstance(member, Mapping)), "NAME")
            return f"unknown table [{bare_or_quoted(name)}.{inner}], expected [listeners.{inner}]"
    if isinstance(value, Mapping | list):
        hint = did_you_mean(name, TABLES)
        return f"unknown table [{bare_or_quoted(name)}]{hint}, expected [pool], [limits], [log] or [listeners.NAME]"
    if headers := tables_with(name):
        return f"`{name}` belongs in {one_of(headers)}"
    hint = did_you_mean(name, (*POOL_KEYS, *LOG_KEYS, *LISTENER_KEYS))
    return f"unknown key{hint}, expected the tables [pool], [limits], [log] and [listeners.NAME]"


def _plugins_of(document: Mapping[str, object]) -> set[str]:
    """The names of plugins that the listeners of a document name, whatever else is wrong with it."""
    listeners = document.get("listeners")
    names: list[object] = []
    for table in listeners.values() if isinstance(listeners, Mapping) else ():
        if isinstance(table, Mapping):
            plugins = table.get("plugins")
            names += [table.get("handler"), *(plugins if isinstance(plugins, list) else ())]
    return {name_of(name) for name in names if isinstance(name, str)}


def check_listener(draft: Draft, listener: ListenerDraft) -> None:
    """Check the keys of one listener against each other."""
    _check_workers(draft, listener)
    _check_companions(draft, listener)
    _check_access(draft, listener)
    _check_socket_options(draft, listener)
    if listener.fields.get("proxy_protocol"):
        check_trusted_proxies(draft, listener)


def _check_workers(draft: Draft, listener: ListenerDraft) -> None:
    workers, of_pool = listener.fields.get("workers"), draft.pool.get("workers", "auto")
    if workers is not None and of_pool != "auto" and workers > of_pool:
        draft.problems.add((*listener.key, "workers"), f"got {workers}, expected at most the {of_pool} of [pool]")
    if listener.fields.get("exclusive") and workers is not None and workers > 1:
        draft.problems.add((*listener.key, "workers"), f"got {workers}, expected 1: the listener is `exclusive`")
    if listener.fields.get("exclusive") and listener.fields.get("reuse_port"):
        message = "is for several servers on one address, and an `exclusive` listener has one instance in the world"
        draft.problems.add((*listener.key, "reuse_port"), message)


def _check_companions(draft: Draft, listener: ListenerDraft) -> None:
    """Some keys mean nothing without another one."""
    misspelt = {nearest(stray, LISTENER_KEYS) for stray in listener.strays}
    for name, needed in (
        ("connection_rate_burst", ("connection_rate",)),
        ("rate_per_source_burst", ("rate_per_source",)),
        ("when_full", ("max_connections", "connection_rate")),
        ("ipv6_prefix", ("max_per_source", "rate_per_source")),
    ):
        if name in listener.fields and not any(other in listener.fields or other in misspelt for other in needed):
            expected = one_of([f"`{other}`" for other in needed])
            draft.problems.add((*listener.key, name), f"has no effect alone, expected {expected} beside it")
    if "proxy_header_timeout" in listener.fields and "proxy_protocol" not in draft.document["listeners"][listener.name]:
        message = "has no effect alone, expected `proxy_protocol` beside it"
        draft.problems.add((*listener.key, "proxy_header_timeout"), message)


def _check_access(draft: Draft, listener: ListenerDraft) -> None:
    """Clients of unix sockets have no IP address, and a network is either allowed or denied."""
    fields = listener.fields
    if listener.has_only_unix_sockets and not fields.get("proxy_protocol"):
        for name in ("allow", "deny", "max_per_source", "rate_per_source"):
            if fields.get(name):
                message = "is about IP addresses, and this listener has only unix sockets: see `socket_mode`"
                draft.problems.add((*listener.key, name), message)
    allowed = set(fields.get("allow", ()))
    for network, place in listener.placed("deny"):
        if network in allowed:
            draft.problems.add(place, f'"{network}" is in `allow` too, expected it in one of them')


def check_pool_limits(draft: Draft, listener: ListenerDraft) -> None:
    """A limit over all workers needs a process through which all connections pass; once plugins have had their say."""
    fields = listener.fields
    if draft.pool.get("dispatch") != "kernel" or listener.apart or fields.get("reuse_port"):
        return
    if not _has_ip_addresses(listener):
        return  # there the dispatcher accepts
    for name in POOL_LIMITS:
        if fields.get(name):
            mark = listener.marks.get(name, "")
            expected = f"`{name} = 0`" if mark else "no such limit"
            why = 'with `dispatch = "kernel"` workers accept by themselves, and nothing counts over all of them'
            message = f"got {fields[name]:g}{mark and f' ({mark})'}, expected {expected}, or another `dispatch`: {why}"
            draft.problems.add((*listener.key, name), message)


def _check_socket_options(draft: Draft, listener: ListenerDraft) -> None:
    fields = listener.fields
    if listener.has_only_unix_sockets:
        for name in TCP_KEYS:
            if fields.get(name):
                message = "is about TCP, and this listener has only unix sockets"
                draft.problems.add((*listener.key, name), message)
    elif fields.get("bind") and fields.get("reuse_port") and not _has_ip_addresses(listener):
        message = "comes too late for sockets of systemd, expected ReusePort= in their unit"
        draft.problems.add((*listener.key, "reuse_port"), message)


def check_trusted_proxies(draft: Draft, listener: ListenerDraft) -> None:
    """This listener believes proxies: the file has to say which. On a unix socket, its permissions do."""
    table = draft.document["listeners"][listener.name]
    if _has_ip_addresses(listener) and table.get("trusted_proxies", []) == []:
        expected = f"expected the networks of the proxies, such as {access_list.EXAMPLES}: what they say is believed"
        draft.problems.add((*listener.key, "trusted_proxies"), f"missing, {expected}")


def _has_ip_addresses(listener: ListenerDraft) -> bool:
    return any(address.family in (socket.AF_INET, socket.AF_INET6) for address in listener.fields.get("bind", ()))
