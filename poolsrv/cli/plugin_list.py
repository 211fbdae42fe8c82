"""``poolsrv plugins``: every installed plugin with its hooks and options, or why it can't be used."""

from __future__ import annotations

import inspect
from collections.abc import Iterable

import msgspec

from ..config.describe import describe, to_toml
from ..plugins import discovery
from ..plugins.discovery import Installed, PluginError
from ..plugins.importing import import_class
from ..plugins.plugin_class import hook_errors, hooks_of, options_of


class Option(msgspec.Struct, frozen=True):
    """An option of a plugin.

    :ivar type: its type in words.
    :ivar default: its default in TOML; None if the option is required.
    """

    name: str
    type: str
    required: bool
    default: str | None = None


class Entry(msgspec.Struct, frozen=True):
    """An installed plugin.

    :ivar error: why it can't be used; None if it can.
    :ivar summary: the first line of its docstring.
    """

    name: str
    target: str
    distribution: str
    version: str
    error: str | None = None
    summary: str = ""
    hooks: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()


def entries() -> list[Entry]:
    """Describe every installed plugin, in the order of their names. All of them are imported."""
    return [_entry(plugin) for plugin in discovery.installed().values()]


def as_text(plugins: Iterable[Entry]) -> str:
    """Write the list for a reader."""
    return "\n\n".join(map(_as_text, plugins)) or "no plugin is installed"


def _entry(plugin: Installed) -> Entry:
    entry = Entry(plugin.name, plugin.target, plugin.distribution, plugin.version)
    try:
        cls = import_class(plugin)
        hooks, errors = hooks_of(cls), list(hook_errors(cls))
        summary = next(iter((inspect.getdoc(cls) or "").splitlines()), "") if cls.__doc__ else ""
        entry = msgspec.structs.replace(entry, summary=summary, hooks=hooks, error="; it ".join(errors) or None)
        schema = options_of(cls)
    except PluginError as error:
        return msgspec.structs.replace(entry, error=str(error))
    fields = msgspec.structs.fields(schema) if schema else ()
    return msgspec.structs.replace(entry, options=tuple(map(_option, fields)))


def _option(field: msgspec.structs.FieldInfo) -> Option:
    if field.required:
        return Option(field.encode_name, describe(field.type), True)
    if field.default is not msgspec.NODEFAULT:
        default = "not set" if field.default is None else to_toml(field.default)
    else:
        factory = field.default_factory
        default = to_toml(factory()) if factory in (list, dict, set, tuple) else "made when it starts"
    return Option(field.encode_name, describe(field.type), False, default)


def _as_text(entry: Entry) -> str:
    lines = [f"{entry.name}  ({entry.distribution} {entry.version}, {entry.target})"]
    if entry.summary:
        lines.append(f"  {entry.summary}")
    if entry.error:
        lines.append(f"  broken: it {entry.error}")
    if entry.hooks:
        lines.append(f"  hooks: {', '.join(entry.hooks)}")
    if entry.options:
        lines.append("  options:")
        width = max(len(option.name) for option in entry.options)
        for option in entry.options:
            default = "required" if option.required else f"default {option.default}"
            lines.append(f"    {option.name:<{width}}  {option.type}; {default}")
    return "\n".join(lines)
