"""From a config file to plugins that are ready to be called: one instance of each per listener.

Only the plugins that the config names are imported, in the parent, before the fork. Where that is root and is to become
somebody else, it does so before (``before_plugins``). All errors are found before any
is reported: those of the file, of the imports, of the options, and of each ``__init__``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import msgspec

from ..config.checks import check_trusted_proxies
from ..config.decoder import keys
from ..config.describe import show, unknown
from ..config.draft import Draft, ListenerDraft
from ..config.errors import Key
from ..config.model import LISTENER_KEYS, POOL_KEYS, HalfClose
from ..config.reader import read
from ..core import privileges
from ..core.privileges import Identity
from ..core.words import did_you_mean, nearest, one_of, quoted, shortlist
from ..errors import ConfigError
from ..worker.hooks import HookError, Hooks, NamedPlugin
from ..worker.spec import ListenerSpec, ServerSpec
from . import discovery
from .discovery import Installed, PluginError

if TYPE_CHECKING:
    from ..net.tls import ServerTls


log = logging.getLogger("poolsrv.plugins")

Options: TypeAlias = type[msgspec.Struct] | None

_HALF_CLOSE = f"expected {one_of(map(quoted, get_args(HalfClose)))}"


def load(path: Path, before_plugins: Callable[[Draft], object] = lambda draft: None) -> ServerSpec:
    """Read a config file, import its plugins, and make their instances.

    :param before_plugins: called when all is read that root may be needed for, certificates and keys too, and no code
        of any plugin has run.
    :raises ConfigErrors: every error of the file and of its plugins.
    """
    loader = _Loader(read(path))
    acceptors = [loader.server_tls(listener) for listener in loader.draft.listeners]
    before_plugins(loader.draft)
    made = [loader.make(listener) for listener in loader.draft.listeners]
    config = loader.draft.finish()
    return ServerSpec(
        config,
        tuple(
            ListenerSpec(listener, hooks, listener.half_close or default, server_tls)
            for listener, (hooks, default), server_tls in zip(
                config.listeners, filter(None, made), acceptors, strict=True
            )
        ),
        loader.draft.base,
    )


def identity_for(draft: Draft) -> Identity | None:
    """Whom this process has to become before plugins are imported; None where it is not root, or is to stay root.

    :raises ConfigErrors: the config means to say, and has it wrong.
    """
    if os.geteuid() != 0:
        return None
    identity = draft.identity
    return identity if privileges.has_to_become(identity) else None


class _Loader:
    """Imports each plugin once, and has each of its errors once, where the file first names it."""

    def __init__(self, draft: Draft) -> None:
        self.draft = draft
        self.problems = draft.problems
        self._at_hand = discovery.found_quickly()
        self._classes: dict[str, tuple[type[Any], Options] | None] = {}
        self._misfits: set[str] = set()  # plugins with errors in their hooks

    @cached_property
    def installed(self) -> dict[str, Installed]:
        """All of them, for what is not at hand, and for messages that name them."""
        return discovery.installed()

    @cached_property
    def _usable(self) -> str:
        names = discovery.usable(self.installed.values())
        return shortlist(map(quoted, names)) if names else "one that is installed (none is)"

    def make(self, listener: ListenerDraft) -> tuple[Hooks, HalfClose] | None:
        """A listener's plugins, and its handler's ``half_close``; None where there are errors."""
        found = {name: self._class(name, place) for name, place in listener.plugins}
        schemas = {name: class_and_options[1] for name, class_and_options in found.items() if class_and_options}
        self._check_strays(listener, found.keys(), schemas)
        instances = []
        half_close: Any = "finish"
        for name, place in listener.plugins:
            class_and_options = found[name]
            if class_and_options is None:
                continue
            cls, schema = class_and_options
            is_handler = place[-1] == "handler"
            if is_handler and (message := discovery.handler_error(cls)):
                self._blame(name, place, message)
            before = len(self.problems)
            options = self._options(listener, name, schema)
            instance = self._instance(listener, name, place, cls, options) if len(self.problems) == before else None
            if instance is None:
                continue
            instances.append(NamedPlugin(name, instance))
            half_close = getattr(instance, "half_close", "finish") if is_handler else "finish"
            if half_close not in get_args(HalfClose):
                self._blame(name, place, f"has half_close = {half_close!r}, {_HALF_CLOSE}")
        if len(instances) < len(listener.plugins) or not instances or self._misfits & found.keys():
            return None
        self._check_proxies(listener, instances)
        try:
            return Hooks(instances), half_close
        except HookError as error:  # what only pluggy sees
            place = next(place for name, place in listener.plugins if name == error.plugin)
            self._blame(error.plugin, place, f"has a hook that can't be called: {error.message}")
            return None

    def _check_proxies(self, listener: ListenerDraft, instances: list[NamedPlugin]) -> None:
        """Whether ``trusted_proxies`` is there where plugins believe proxies, and only there."""
        table = self.draft.document["listeners"][listener.name]
        if any(getattr(plugin.instance, "believes_proxies", False) for plugin in instances):
            if not table.get("proxy_protocol"):  # else it has been looked at
                check_trusted_proxies(self.draft, listener)
        elif "trusted_proxies" in listener.fields and "proxy_protocol" not in table:
            message = "nothing that it could be about, expected `proxy_protocol` beside it, or a plugin's options"
            self.problems.add((*listener.key, "trusted_proxies"), f"{message} for what proxies say")

    def server_tls(self, listener: ListenerDraft) -> ServerTls | None:
        """A listener's certificates; None where it has no TLS, or there are errors."""
        table = listener.fields.get("tls")
        if table is None:
            return None
        from ..config import certificates  # ssl takes a while to import

        return certificates.load(table, (*listener.key, "tls"), self.problems)

    def _class(self, name: str, place: Key) -> tuple[type[Any], Options] | None:
        if name not in self._classes:
            self._classes[name] = self._import(name, place)
        return self._classes[name]

    def _find(self, name: str) -> Installed | None:
        return self._at_hand.get(name) or self.installed.get(name)

    def _import(self, name: str, place: Key) -> tuple[type[Any], Options] | None:
        plugin = self._find(name)
        if plugin is None:
            hint = did_you_mean(name, self.installed)
            self.problems.add(place, f"no plugin {quoted(name)} is installed{hint}, expected {self._usable}")
            return None
        try:
            cls = discovery.import_class(plugin)
            schema = discovery.options_of(cls)
        except PluginError as error:
            log.debug("plugin %r", name, exc_info=error.__cause__)
            self._blame(name, place, str(error))
            return None
        for message in discovery.hook_errors(cls):
            self._misfits.add(name)
            self._blame(name, place, message)
        return cls, schema

    def _options(self, listener: ListenerDraft, name: str, schema: Options) -> msgspec.Struct | None:
        key = (*listener.key, name)
        if schema is None:
            if name in listener.tables:
                message = (
                    f"the plugin {quoted(name)} takes no options, expected no table {listener.plugin_header(name)}"
                )
                self.problems.add(key, message)
            return None
        table, known = listener.tables.get(name, {}), keys(schema)
        for option in table:
            if option not in known:
                message = unknown(option, known)
                if option in LISTENER_KEYS:
                    message = f"`{option}` belongs in {listener.header}, above {listener.plugin_header(name)}"
                self.problems.add((*key, option), message)
        right = {option: value for option, value in table.items() if option in known}
        options: msgspec.Struct | None = self.draft.decoder.decode(schema, right, key)
        return options

    def _instance(self, listener: ListenerDraft, name: str, place: Key, cls: type[Any], options: object) -> object:
        try:
            with discovery.no_new_threads("its __init__"), discovery.blamed("failed in __init__"):
                try:
                    return cls() if options is None else cls(options)
                except ConfigError as error:
                    option = tuple(error.key.split(".")) if error.key else ()
                    self.problems.add((*listener.key, name, *option), " ".join(error.message.split()))
        except PluginError as error:
            log.debug("plugin %r", name, exc_info=error.__cause__)
            self._blame(name, place, str(error))
        return None

    def _blame(self, name: str, place: Key, message: str) -> None:
        """Add an error that a plugin's code has, at the place where the file names the plugin."""
        self.problems.add(place, f"{self._find(name)} {message}")

    def _check_strays(self, listener: ListenerDraft, plugins: Any, schemas: Mapping[str, Options]) -> None:
        """Keys and tables that are neither the listener's own nor the table of one of its plugins."""
        for name in (*listener.strays, *(name for name in listener.tables if name not in plugins)):
            is_table = name in listener.tables
            owners = [plugin for plugin, schema in schemas.items() if schema is not None and name in keys(schema)]
            if name in plugins:
                value = self.draft.document["listeners"][listener.name][name]
                message = f"got {show(value)}, expected a table: {listener.plugin_header(name)}"
            elif owners:
                message = f"`{name}` belongs in {one_of(map(listener.plugin_header, owners))}"
            elif is_table and name in self.installed:
                message = (
                    f"the plugin {quoted(name)} is not on this listener, expected it as `handler` or among `plugins`"
                    f" of {listener.header}"
                )
            elif name in POOL_KEYS:
                message = f"`{name}` belongs in [pool]"
            else:
                message = self._unknown(listener, name, is_table, plugins, schemas)
            self.problems.add((*listener.key, name), message)

    def _unknown(
        self, listener: ListenerDraft, name: str, is_table: bool, plugins: Any, schemas: Mapping[str, Options]
    ) -> str:
        if is_table:
            expected = one_of(map(listener.plugin_header, plugins)) if plugins else "a table of one of its plugins"
            return f"unknown table{did_you_mean(name, plugins)}, expected {expected}"
        owners = {option: plugin for plugin, schema in schemas.items() if schema is not None for option in keys(schema)}
        meant = nearest(name, (*owners, *LISTENER_KEYS))
        if meant is not None and meant not in LISTENER_KEYS:
            hint = f" (did you mean {quoted(meant)} in {listener.plugin_header(owners[meant])}?)"
            return f"unknown key{hint}, expected {shortlist(LISTENER_KEYS)}"
        return unknown(name, LISTENER_KEYS)
