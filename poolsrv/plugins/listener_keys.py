"""What a plugin's class says about its listener: defaults of keys, how many workers, whether one of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from ..config.checks import TCP_KEYS
from ..config.decoder import Decoder
from ..config.describe import show
from ..config.draft import Draft, ListenerDraft
from ..config.errors import Problems
from ..config.model import DEFAULT_KEYS, LISTENER_KEYS, ListenerConfig
from ..core.words import did_you_mean, one_of, quoted
from ..worker.hooks import NamedPlugin


def defaults_of(cls: type[Any]) -> Mapping[str, Any]:
    """The defaults that a class sets for keys of its listener: its attribute ``defaults``, or none."""
    defaults = getattr(cls, "defaults", None)
    return defaults if isinstance(defaults, Mapping) else {}


def said_by(cls: type[Any]) -> Mapping[str, Any]:
    """All keys of its listener for which a class without errors has a value, with that value."""
    said = dict(defaults_of(cls))
    if isinstance(half_close := getattr(cls, "half_close", None), str):
        said.setdefault("half_close", half_close)
    if getattr(cls, "exclusive", False):
        said["exclusive"] = True
    return said


def errors_of_attributes(cls: type[Any]) -> Iterator[str]:
    """What is wrong with ``defaults``, ``exclusive``, ``apart`` and ``requires_workers`` of a class."""
    defaults = getattr(cls, "defaults", None)
    if isinstance(defaults, Mapping):
        for key, value in defaults.items():
            yield from _errors_of_default(key, value)
    elif defaults is not None:
        yield f"has defaults = {_shown(defaults)}, expected a dict of keys of its listener"
    required = getattr(cls, "requires_workers", None)
    if required is not None and (required != 1 or isinstance(required, bool)):
        yield f"has requires_workers = {_shown(required)}, expected 1"
    for name in ("exclusive", "apart"):
        value = getattr(cls, name, False)
        if not isinstance(value, bool):
            yield f"has {name} = {_shown(value)}, expected True or False"


def _errors_of_default(key: object, value: object) -> Iterator[str]:
    if key not in DEFAULT_KEYS:
        expected = f"expected {one_of(map(quoted, DEFAULT_KEYS))}"
        if key in LISTENER_KEYS:
            yield f"has {quoted(str(key))} among its defaults, which only the config may set, {expected}"
        else:
            yield f"has {_shown(key)} among its defaults{did_you_mean(str(key), DEFAULT_KEYS)}, {expected}"
        return
    problems = Problems(Path())
    field = next(field for field in msgspec.structs.fields(ListenerConfig) if field.name == key)
    if value is None:
        yield f"has {key} = None among its defaults, expected a value"
        return
    Decoder(problems, Path()).decode(field.type, value, (str(key),))
    for message in problems.messages:
        yield f"has a wrong {key} among its defaults: {message}"


def apply(draft: Draft, listener: ListenerDraft, plugins: list[NamedPlugin]) -> None:
    """Complete the keys of a listener with what its plugins say; what the file says counts.

    :param plugins: all of the listener's; the handler is the last.
    """
    handler = plugins[-1]
    given = draft.document["listeners"][listener.name]
    for key, value in defaults_of(type(handler.instance)).items():
        if key not in given and not (key in TCP_KEYS and listener.has_only_unix_sockets):
            _set(listener, key, value, handler)
    if getattr(handler.instance, "apart", False):
        _apply_apart(draft, listener, handler, plugins)
        return
    for plugin in plugins:
        _apply_exclusive(draft, listener, plugin)
        _check_workers(draft, listener, plugin)


def _apply_apart(draft: Draft, listener: ListenerDraft, handler: NamedPlugin, plugins: list[NamedPlugin]) -> None:
    listener.apart = True
    given = draft.document["listeners"][listener.name]
    for key in ("workers", "exclusive"):
        if key in given and given[key] is not False:
            message = f"has no meaning here: the plugin {quoted(handler.name)} has a worker of its own"
            draft.problems.add((*listener.key, key), message)
    for plugin in plugins:
        if getattr(plugin.instance, "exclusive", False):
            message = f"{quoted(plugin.name)} is exclusive, and {quoted(handler.name)} has a worker of its own"
            draft.problems.add((*listener.key, "plugins"), message)


def _apply_exclusive(draft: Draft, listener: ListenerDraft, plugin: NamedPlugin) -> None:
    given = draft.document["listeners"][listener.name]
    if "exclusive" in given or not getattr(plugin.instance, "exclusive", False):
        return
    workers = given.get("workers", 1)
    if workers != 1:
        message = f"got {show(workers, 'number')}, expected 1: the plugin {quoted(plugin.name)} is exclusive"
        draft.problems.add((*listener.key, "workers"), message)
    if listener.fields.get("reuse_port"):
        message = f"is for several servers on one address, and the plugin {quoted(plugin.name)} is exclusive"
        draft.problems.add((*listener.key, "reuse_port"), message)
    if not listener.fields.get("exclusive"):
        _set(listener, "exclusive", True, plugin)


def _check_workers(draft: Draft, listener: ListenerDraft, plugin: NamedPlugin) -> None:
    if getattr(plugin.instance, "requires_workers", None) is None or listener.fields.get("exclusive"):
        return
    if "workers" not in listener.fields and draft.pool.get("workers") == 1:
        _set(listener, "workers", 1, plugin)  # and so it stays, however many are added later
    workers = listener.fields.get("workers")
    is_wrong_anyway = workers is None and "workers" in draft.document["listeners"][listener.name]
    if workers != 1 and not is_wrong_anyway:
        got = "missing" if workers is None else f"got {workers}"
        why = f"the plugin {quoted(plugin.name)} keeps in one worker what all clients share"
        message = f"{got}, expected `workers = 1` in {listener.header}: {why}"
        draft.problems.add((*listener.key, "workers"), message)


def _set(listener: ListenerDraft, key: str, value: Any, plugin: NamedPlugin) -> None:
    listener.fields[key] = value
    listener.marks[key] = f"default of {plugin.name}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
