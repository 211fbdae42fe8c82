"""``poolsrv plugins``: the installed plugins with their hooks and options, or why they can't be used."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import msgspec

from ..config.describe import describe, is_struct, own_first, plain, to_toml
from ..config.plugin_reference import is_class, mistake_in, name_of
from ..core.words import did_you_mean, one_of, quoted
from ..errors import PoolsrvError
from ..plugins import discovery
from ..plugins.discovery import Installed, PluginError
from ..plugins.importing import import_class
from ..plugins.listener_keys import said_by
from ..plugins.plugin_class import class_errors, hooks_of, options_of
from ..plugins.uninstalled import Uninstalled


class Option(msgspec.Struct, frozen=True):
    """An option of a plugin.

    :ivar type: its type in words.
    :ivar default: its default in TOML; None if the option is required.
    :ivar meaning: what the docstring of the options says about it; empty if it says nothing.
    :ivar members: the options in it, if it is a table of options.
    """

    name: str
    type: str
    required: bool
    default: str | None = None
    meaning: str = ""
    members: tuple[Option, ...] = ()


class Entry(msgspec.Struct, frozen=True):
    """An installed plugin.

    :ivar error: why it can't be used; None if it can.
    :ivar summary: the first line of its docstring.
    :ivar defaults: its defaults for keys of its listener, in TOML, by key.
    :ivar requires_workers: the number of workers that its listener must have; None: any.
    :ivar apart: whether a worker of its own serves its listeners.
    """

    name: str
    target: str
    distribution: str
    version: str
    error: str | None = None
    summary: str = ""
    hooks: tuple[str, ...] = ()
    options: tuple[Option, ...] = ()
    defaults: dict[str, str] = {}
    requires_workers: int | None = None
    apart: bool = False


class UnknownPlugin(PoolsrvError):
    """No plugin of this name is installed."""


def entries() -> list[Entry]:
    """Describe every installed plugin, in the order of their names. All of them are imported."""
    return [_entry(plugin) for plugin in discovery.installed().values()]


def entry(name: str) -> Entry:
    """Describe one plugin, which is imported.

    :param name: that of an installed plugin; or ``module:Class``, from the current directory or installed.
    :raises UnknownPlugin: no plugin of this name is installed.
    """
    if is_class(name):
        if mistake := mistake_in(name):
            raise UnknownPlugin(f"{quoted(name)} is {mistake}")
        plugin = _entry(Uninstalled(name_of(name), name, None, base=Path.cwd()))
        return msgspec.structs.replace(plugin, distribution="not installed", version="")
    installed = discovery.installed()
    if name not in installed:
        expected = one_of(map(quoted, installed)) if installed else "one that is installed (none is)"
        raise UnknownPlugin(
            f"no plugin {quoted(name)} is installed{did_you_mean(name, installed)}, expected {expected}"
        )
    return _entry(installed[name])


def as_text(plugins: Iterable[Entry]) -> str:
    """Write the list for a reader."""
    return "\n\n".join(map(_as_text, plugins)) or "no plugin is installed"


def _entry(plugin: Installed) -> Entry:
    entry = Entry(plugin.name, plugin.target, plugin.distribution, plugin.version)
    try:
        cls = import_class(plugin)
        errors, hooks = class_errors(cls), hooks_of(cls)
        summary = next(iter((inspect.getdoc(cls) or "").splitlines()), "") if cls.__doc__ else ""
        entry = msgspec.structs.replace(entry, summary=summary, hooks=hooks, error="; it ".join(errors) or None)
        if not errors:
            defaults = {key: to_toml(value) for key, value in said_by(cls).items()}
            required = getattr(cls, "requires_workers", None)
            apart = getattr(cls, "apart", False)
            entry = msgspec.structs.replace(entry, defaults=defaults, requires_workers=required, apart=apart)
        schema = options_of(cls)
    except PluginError as error:
        return msgspec.structs.replace(entry, error=str(error))
    return msgspec.structs.replace(entry, options=tuple(options_in(schema)) if schema else ())


def options_in(schema: type[msgspec.Struct], enclosing: tuple[type, ...] = ()) -> Iterator[Option]:
    """The options that a struct declares.

    :param enclosing: the structs that it is a member of, because a struct may have itself as a member.
    """
    meanings = _meanings(schema)
    fields = {field.encode_name: field for field in msgspec.structs.fields(schema)}
    for field in map(fields.__getitem__, own_first(schema)):
        members: tuple[Option, ...] = ()
        kinds = [kind for kind in (plain(field.type), *get_args(plain(field.type))) if is_struct(plain(kind))]
        if len(kinds) == 1 and plain(kinds[0]) not in (schema, *enclosing):
            members = tuple(options_in(plain(kinds[0]), (schema, *enclosing)))
        default = None if field.required else _default(field)
        meaning = meanings.get(field.name, "")
        yield Option(field.encode_name, describe(field.type), field.required, default, meaning, members)


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.default is not msgspec.NODEFAULT:
        return "not set" if field.default is None else to_toml(field.default)
    factory = field.default_factory
    return to_toml(factory()) if factory in (list, dict, set, tuple) else "made when it starts"


def _meanings(schema: type) -> dict[str, str]:
    """What the ``:ivar NAME:`` entries in the docstrings of a class and its bases say, each on one line."""
    found: dict[str, str] = {}
    for cls in reversed(schema.__mro__):
        text = inspect.cleandoc(cls.__dict__.get("__doc__") or "")
        for name, meaning in re.findall(r"^:ivar (\w+): *(.*(?:\n[ \t]+.*)*)", text, re.MULTILINE):
            found[name] = " ".join(meaning.split())
    return found


def explanation(entry: Entry) -> str:
    """Write one plugin for a reader, and what its options mean."""
    lines = _head(entry)
    if entry.options:
        lines += ["", f"options, in [listeners.NAME.{entry.name}]:"]
        for name, option in flat(entry.options):
            lines += ["", f"  {name}  {option.type}; {_default_of(option)}"]
            if option.meaning:
                lines.append(f"      {option.meaning[0].upper()}{option.meaning[1:]}")
    return "\n".join(lines)


def flat(options: Iterable[Option], prefix: str = "") -> Iterator[tuple[str, Option]]:
    for option in options:
        yield prefix + option.name, option
        yield from flat(option.members, f"{prefix}{option.name}.")


def _default_of(option: Option) -> str:
    return "required" if option.required else f"default {option.default}"


def _head(entry: Entry) -> list[str]:
    origin = f"{entry.distribution} {entry.version}".rstrip()
    lines = [f"{entry.name}  ({origin}, {entry.target})"]
    if entry.summary:
        lines.append(f"  {entry.summary}")
    if entry.error:
        lines.append(f"  broken: it {entry.error}")
    if entry.hooks:
        lines.append(f"  hooks: {', '.join(entry.hooks)}")
    if entry.defaults:
        lines.append(
            f"  defaults of its listener: {', '.join(f'{key} = {value}' for key, value in entry.defaults.items())}"
        )
    if entry.requires_workers is not None:
        lines.append(f"  its listener must have: workers = {entry.requires_workers}")
    if entry.apart:
        lines.append("  served by a worker of its own, beside those of [pool]")
    return lines


def _as_text(entry: Entry) -> str:
    lines = _head(entry)
    if entry.options:
        lines.append("  options:")
        width = max(len(option.name) for option in entry.options)
        for option in entry.options:
            lines.append(f"    {option.name:<{width}}  {option.type}; {_default_of(option)}")
    return "\n".join(lines)
