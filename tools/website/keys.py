"""The reference of every key of a config and every option of a bundled plugin, made of their structs."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import msgspec

from poolsrv.cli import plugin_list
from poolsrv.cli.plugin_list import Option
from poolsrv.config import model

from .markdown import cell, code, table

# The structs of the tables, and their members that are keys.
TABLES: dict[str, tuple[type[msgspec.Struct], Collection[str]]] = {
    "[pool]": (model.PoolTable, model.POOL_KEYS),
    "[limits]": (model.LimitsConfig, model.LIMITS_KEYS),
    "[log]": (model.LogConfig, model.LOG_KEYS),
    "[listeners.NAME]": (model.ListenerConfig, model.LISTENER_KEYS),
    "[listeners.NAME.tls]": (model.TlsTable, model.TlsTable.__struct_fields__),
    "[[listeners.NAME.tls.sni]]": (model.SniTable, model.SniTable.__struct_fields__),
}


def page() -> str:
    """Every key, by its table."""
    parts = [
        "# Every key\n",
        "As poolsrv declares them, in the order of `poolsrv config`. "
        "[Configuration](../configuration.md) explains the rules between them, with examples. "
        "The options of plugins have [a page of their own](plugin-options.md).\n",
    ]
    for header, (schema, known) in TABLES.items():
        options = [option for option in plugin_list.options_in(schema) if option.name in known]
        parts += [f"## `{header}`\n", _table(options)]
    return "\n".join(parts)


def plugin_options() -> str:
    """Every option of the plugins that poolsrv brings."""
    parts = [
        "# Options of plugins\n",
        "Of the plugins that come with poolsrv. `poolsrv plugins NAME` shows the same for any plugin, "
        "with those that you have installed.\n",
    ]
    for entry in plugin_list.entries():
        if entry.distribution != "poolsrv":
            continue
        parts.append(f"## `{entry.name}`\n")
        if entry.summary:
            parts.append(f"{cell(entry.summary)}\n")
        parts.append(
            f"Hooks: {', '.join(f'[`{hook}`](hooks.md#poolsrv.worker.hookspecs.{hook})' for hook in entry.hooks)}.\n"
        )
        if entry.options:
            parts.append(f"In `[listeners.NAME.{entry.name}]`:\n")
            parts.append(_table(plugin_list.flat(entry.options)))
        else:
            parts.append("It has no options.\n")
    return "\n".join(parts)


def _table(options: Iterable[Option] | Iterable[tuple[str, Option]]) -> str:
    rows = []
    for item in options:
        name, option = item if isinstance(item, tuple) else (item.name, item)
        default = "required" if option.required else _default(option.default)
        meaning = f"{option.meaning[:1].upper()}{option.meaning[1:]}"
        rows.append((code(name), cell(option.type), default, cell(meaning)))
    return table(("key", "type", "default", "meaning"), rows)


def _default(default: str | None) -> str:
    if default is None or default in ("not set", "made when it starts"):
        return default or "not set"
    return code(default)
