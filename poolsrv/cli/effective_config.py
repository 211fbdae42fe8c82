"""``poolsrv config``: the config in effect, as TOML. Keys that the file leaves at their default are marked."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from ..config.checks import TCP_KEYS
from ..config.draft import Draft, ListenerDraft
from ..config.model import LIMITS_KEYS, LISTENER_KEYS, LOG_KEYS, POOL_KEYS, PoolConfig, TlsTable
from ..core.text import printable
from ..core.toml import DATES, toml
from ..core.words import bare_or_quoted
from ..worker.spec import ListenerSpec, ServerSpec

# A key with its value, and a mark: empty, or where the value comes from.
_Entry: TypeAlias = tuple[str, object, str]

DEFAULT = "default"


def as_toml(draft: Draft, server: ServerSpec) -> str:
    """Write a config that has been loaded. Paths are absolute, so the text can be used in another directory."""
    config, document = server.config, draft.document
    lines = ["[pool]", *_lines(_pool(draft, config.pool))]
    lines += ["", "[limits]", *_lines(_struct(config.limits, LIMITS_KEYS, document.get("limits", {})))]
    lines += ["", "[log]", *_lines(_struct(config.log, LOG_KEYS, document.get("log", {})))]
    for listener, spec in zip(draft.listeners, server.listeners, strict=True):
        lines += ["", *_listener(listener, spec, document["listeners"][listener.name])]
    return "\n".join(lines)


def _pool(draft: Draft, pool: PoolConfig) -> Iterator[_Entry]:
    for name, value, mark in _struct(pool, POOL_KEYS, draft.document.get("pool", {})):
        if name == "workers" and draft.pool.get("workers", "auto") == "auto":
            yield name, value, f'{mark}: "auto"' if mark else '"auto"'
        else:
            yield name, value, mark


def _struct(struct: msgspec.Struct, keys: Iterable[str], table: Mapping[str, object]) -> Iterator[_Entry]:
    for key in keys:
        yield key, getattr(struct, key), "" if key in table else DEFAULT


def _listener(listener: ListenerDraft, spec: ListenerSpec, table: Mapping[str, Any]) -> Iterator[str]:
    config = spec.config
    yield listener.header
    for key, value, mark in _struct(config, [key for key in LISTENER_KEYS if key != "tls"], table):
        if key == "bind":
            yield from _lines([(key, [str(address) for address in config.bind], mark)])
        elif key == "half_close" and value is None:
            yield from _lines([(key, spec.half_close, "default of the handler")])
        elif key in TCP_KEYS and mark and listener.has_only_unix_sockets:
            yield f"# {key} has no effect on unix sockets"
        else:
            yield from _lines([(key, value, listener.marks.get(key, mark))])
    if config.tls is not None:
        yield ""
        yield listener.plugin_header("tls")
        yield from _tls(listener, config.tls, table["tls"])
    for plugin, _, _ in listener.plugins:
        options = listener.options.get(plugin)
        if options is not None:
            given = listener.tables.get(plugin, {})
            fields = msgspec.structs.fields(options)
            yield ""
            yield listener.plugin_header(plugin)
            yield from _lines(
                (field.encode_name, getattr(options, field.name), "" if field.encode_name in given else DEFAULT)
                for field in fields
            )


def _tls(listener: ListenerDraft, tls: TlsTable, table: Mapping[str, Any]) -> Iterator[str]:
    keys = [key for key in tls.__struct_fields__ if key != "sni"]
    yield from _lines(_struct(tls, keys, table))
    for entry, given in zip(tls.sni, table.get("sni", ()), strict=True):
        yield ""
        yield f"[{listener.plugin_header('tls').removesuffix(']')}.sni]]"
        yield from _lines(_struct(entry, entry.__struct_fields__, given))


def _lines(entries: Iterable[_Entry]) -> Iterator[str]:
    for name, value, mark in entries:
        if value is None:
            yield f"# {bare_or_quoted(name)} is not set"
        else:
            text = _octal(value) if name in ("umask", "socket_mode") else toml(plain(value))
            yield f"{bare_or_quoted(name)} = {text}{f'  # {mark}' if mark else ''}"


def _octal(value: object) -> str:
    return f"0o{value:03o}" if isinstance(value, int) else toml(plain(value))


def plain(value: object) -> Any:
    """A value of a config in the types of a TOML document."""
    return msgspec.to_builtins(value, builtin_types=DATES, str_keys=True, enc_hook=str)


def title(config: Path) -> str:
    """The comment in the first line."""
    return f"# {printable(str(config))}, with every default"
