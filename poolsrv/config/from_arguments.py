"""Make the document of a config from a command's arguments, and turn texts into values."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec

from . import reader
from .arguments import Arguments, Setting
from .decoder import Decoder
from .describe import TABLES, UNIONS, is_struct, plain
from .draft import Draft
from .errors import Key, Problems, format_key
from .model import LISTENER_KEYS, LOG_KEYS, POOL_KEYS, ListenerConfig, LogConfig, PoolTable
from .plugin_reference import name_of

_TEXTS = ("socket_mode", "umask")  # 660 is meant in octal, as a shell's user writes it
_LISTS = {"allow": list[str], "deny": list[str], "trusted_proxies": list[str]}


def read(arguments: Arguments) -> Draft:
    """Read the config that a command's arguments say. All errors are in the draft, and name arguments."""
    draft = Draft(Path(arguments.command), Path(arguments.directory), arguments.name_of)
    settings = _read_into(draft, arguments)
    reader.read_document(draft)
    draft.listeners[0].settings = settings
    return draft


def _read_into(draft: Draft, arguments: Arguments) -> list[Setting]:
    """Make the document of a draft.

    :returns: the settings of plugins' options, which can't be placed yet.
    """
    listener: dict[str, Any] = {
        "bind": arguments.bind[0] if len(arguments.bind) == 1 else list(arguments.bind),
        "handler": arguments.handler,
    }
    if arguments.plugins:
        listener["plugins"] = list(arguments.plugins)
    document: dict[str, Any] = draft.document
    if arguments.workers is not None:
        document["pool"] = {"workers": arguments.workers}
    document["listeners"] = {arguments.listener: listener}
    later = []
    for setting in arguments.settings:
        name, inner = setting.key[0], setting.key[1:]
        if name in LISTENER_KEYS:
            put(draft, ListenerConfig, listener, setting, ("listeners", arguments.listener))
        elif inner and inner[0] in {"pool": POOL_KEYS, "log": LOG_KEYS}.get(name, ()):
            table = document.setdefault(name, {})
            put(draft, PoolTable if name == "pool" else LogConfig, table, Setting(inner, setting.text), (name,))
        else:
            later.append(setting)
    if arguments.options:
        listener[name_of(arguments.handler)] = dict(arguments.options)
    return later


def put(draft: Draft, schema: type[msgspec.Struct], table: dict[str, Any], setting: Setting, place: Key) -> None:
    """Put the value of a setting into a table.

    :param schema: what the table is decoded to.
    :param place: of the table.
    """
    *outer, last = setting.key
    for index, name in enumerate(outer):
        inner = table.setdefault(name, {})
        if not isinstance(inner, dict):
            message = f"{format_key(tuple(setting.key[: index + 1]))} has a value already, expected one of the two"
            draft.problems.add((*place, *setting.key), message)
            return
        table = inner
    table[last] = _value(draft, _annotation(schema, setting.key), setting)


def _value(draft: Draft, annotation: Any, setting: Setting) -> object:
    """The value in TOML; or the text itself, if that fits the type better, or is no TOML."""
    import tomli

    try:
        parsed = tomli.loads(f"value = {setting.text}")
        value = parsed["value"] if len(parsed) == 1 else setting.text
    except (tomli.TOMLDecodeError, ValueError, RecursionError):
        return setting.text
    if isinstance(value, str):
        return value
    if setting.key[0] in _TEXTS and annotation is not None:
        return setting.text
    fits_text = not _fits(draft, annotation, value) and _fits(draft, annotation, setting.text)
    return setting.text if fits_text else value


def _fits(draft: Draft, annotation: Any, value: object) -> bool:
    problems = Problems(draft.path)
    if annotation is not None:
        Decoder(problems, draft.base).decode(annotation, value, ())
    return not problems


def _annotation(schema: type[msgspec.Struct], key: tuple[str, ...]) -> Any:
    """The type of the value at a key; None if there is no such key."""
    if schema is ListenerConfig and key[0] in _LISTS:
        return _LISTS[key[0]]
    annotation: Any = schema
    for name in key:
        wanted = plain(annotation)
        members = get_args(wanted) if get_origin(wanted) in UNIONS else (wanted,)
        annotation = next(filter(None, (_member(plain(member), name) for member in members)), None)
    return annotation


def _member(table: Any, name: str) -> Any:
    if is_struct(table):
        fields = {field.encode_name: field.type for field in msgspec.structs.fields(table)}
        return fields.get(name)
    if (get_origin(table) or table) in TABLES:
        return (get_args(table) or (str, Any))[1]
    return None
