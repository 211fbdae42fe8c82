"""Makes of a plugin's class and its options what a worker serves, in the same way as from a config file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import msgspec

from ..config import reader
from ..config.draft import Draft
from ..config.model import RESERVED_NAMES
from ..plugins.loader import class_of, load_plugins
from ..plugins.plugin_class import options_of
from ..worker.hookspecs import hookimpl
from ..worker.spec import ServerSpec

LISTENER = "test"  # its name in the config
FILE = "poolsrv.toml"  # the file's name in errors


def load_options(plugin: type[Any], table: Mapping[str, Any], *, folder: Path | None = None) -> Any:
    """Convert options as the config does, to the class's ``Options``.

    :param plugin: the class; its ``__init__`` is not called.
    :param table: the plugin's table of a config, with the values that TOML has; paths and tuples may stand for strings
        and lists.
    :param folder: relative paths among the options are relative to it; None: to the current directory.
    :returns: the ``Options``.
    :raises ConfigErrors: every error, with the text that ``poolsrv check`` has for it.
    :raises TypeError: the class has no ``Options``.
    :raises PluginError: its ``Options`` can't be used.
    """
    options = options_of(plugin)
    if options is None:
        raise TypeError(f"{plugin.__qualname__} takes no options: it has no nested class Options")
    stand_in = type(plugin.__name__, (_TakesOptions,), {"Options": options, "__module__": plugin.__module__})
    spec = load(stand_in, table, folder=folder)
    taken = spec.listeners[0].hooks.plugins[-1].instance
    assert isinstance(taken, _TakesOptions)
    return taken.options


class _TakesOptions:
    def __init__(self, options: msgspec.Struct) -> None:
        self.options = options

    @hookimpl
    def on_readable(self) -> None:
        return None


def load(
    handler: object,
    options: Mapping[str, Any] | None = None,
    *,
    plugins: Sequence[object] = (),
    plugin_options: Mapping[str, Mapping[str, Any]] | None = None,
    listener: Mapping[str, Any] | None = None,
    workers: int = 1,
    folder: Path | None = None,
) -> ServerSpec:
    """A server with one listener.

    :param handler: a class, an instance, or the name of an installed plugin; so are ``plugins``.
    :param options: the handler's table.
    :param plugin_options: the tables of the further plugins, by name.
    :param listener: further keys of the listener.
    :raises ConfigErrors: every error.
    """
    given: dict[str, object] = {}
    further = [_name(plugin, given) for plugin in plugins]
    name = _name(handler, given)
    table: dict[str, Any] = {"bind": "127.0.0.1:0", "handler": name, "plugins": further}
    table |= toml_value(listener or {}) | toml_value(plugin_options or {})
    if options is not None:
        table[name] = toml_value(options)
    draft = Draft((folder or Path.cwd()) / FILE)
    draft.problems.file = Path(FILE)
    draft.document = {"pool": {"workers": workers}, "listeners": {LISTENER: table}}
    return load_plugins(reader.read_document(draft), given)


def name_of(plugin: object) -> str:
    """The name that a plugin has in the config of a harness: of a class, its own in lower case."""
    if isinstance(plugin, str):
        return plugin
    name = class_of(plugin).__name__.lower()
    return f"{name}-plugin" if name in RESERVED_NAMES else name


def _name(plugin: object, given: dict[str, object]) -> str:
    name = name_of(plugin)
    if not isinstance(plugin, str):
        given[name] = plugin
    return name


def toml_value(value: Any) -> Any:
    """The value as TOML would have it."""
    if isinstance(value, Mapping):
        return {key: toml_value(member) for key, member in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [toml_value(member) for member in value]
    return str(value) if isinstance(value, PurePath) else value
