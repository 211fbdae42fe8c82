"""From a config file to plugins that are ready to be called: one instance of each per listener.

Only the plugins that the config names are imported, before the fork. All errors are found before any is reported:
those of the file, of the imports, of the options, and of each ``__init__``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias, get_args

import msgspec

from ..config import program_users, reader
from ..config.checks import check_pool_limits, check_trusted_proxies
from ..config.decoder import keys
from ..config.describe import own_first, unknown, unknown_option
from ..config.draft import Draft, ListenerDraft
from ..config.model import LISTENER_KEYS, HalfClose
from ..config.plugin_reference import PluginReference, is_class
from ..core import privileges
from ..core.privileges import Identity
from ..core.words import did_you_mean, one_of, quoted, shortlist
from ..errors import ConfigError
from ..worker.hooks import HookError, Hooks, NamedPlugin
from ..worker.spec import ListenerSpec, ServerSpec
from . import discovery, listener_keys, strays
from .blame import blamed
from .discovery import Installed, PluginError
from .importing import import_class, no_new_threads
from .plugin_class import UNREADABLE, class_errors, handler_error, options_of
from .uninstalled import Uninstalled, suggestion

log = logging.getLogger("poolsrv.plugins")

Options: TypeAlias = type[msgspec.Struct] | None

# Attributes of an instance; each is a constant in most classes.
_READ_LATER = ("half_close", "believes_proxies", "defaults", "apart", "exclusive", "requires_workers")
_HALF_CLOSE = f"expected {one_of(map(quoted, get_args(HalfClose)))}"


def load(path: Path) -> ServerSpec:
    """Read a config file and load its plugins, as the user that this process runs as.

    :raises ConfigErrors: every error of the file and of its plugins.
    """
    return load_plugins(reader.read(path))


def load_plugins(draft: Draft, given: Mapping[str, object] | None = None) -> ServerSpec:
    """Import the plugins of a config, and make their instances.

    :param draft: what ``reader.read`` has made of the file, with its errors.
    :param given: classes, or instances, that need not be installed, by the names that the config has for them.
    :raises ConfigErrors: every error of the file and of its plugins.
    """
    loader = _Loader(draft, given or {})
    loaded = [loader.load(listener) for listener in draft.listeners]
    for listener in draft.listeners:
        check_pool_limits(draft, listener)
        if listener.programs or "cgi" in listener.options:
            program_users.check(draft, listener)
    config = draft.finish()
    return ServerSpec(
        config,
        tuple(
            ListenerSpec(listener, hooks, listener.half_close or default, read.server_tls)
            for listener, (hooks, default), read in zip(
                config.listeners, filter(None, loaded), draft.listeners, strict=True
            )
        ),
        draft.base,
    )


def identity_for(draft: Draft) -> Identity | None:
    """The user that this process has to become before plugins are imported.

    :returns: None if it is not root, or is to stay root.
    :raises ConfigErrors: the config tries to name a user, but has an error there.
    """
    if os.geteuid() != 0:
        return None
    identity = draft.identity
    return identity if privileges.has_to_become(identity) else None


def class_of(plugin: object) -> type[Any]:
    """The class of a plugin that is given as a class or as an instance."""
    return plugin if isinstance(plugin, type) else type(plugin)


def target_of(plugin: object) -> str:
    """As an entry point would refer to the plugin's class: ``"poolsrv_shout:Shout"``."""
    cls = class_of(plugin)
    return f"{cls.__module__}:{cls.__qualname__}"


class _Loader:
    """Imports each plugin once, and reports each of its errors once, where the file first names it."""

    def __init__(self, draft: Draft, given: Mapping[str, object]) -> None:
        self.draft = draft
        self._given = given
        self.problems = draft.problems
        self._classes: dict[str, tuple[type[Any], Options] | None] = {}
        self._misfits: set[str] = set()  # plugins with errors in their hooks or attributes

    @cached_property
    def _found_quickly(self) -> dict[str, Installed]:
        return discovery.found_quickly()

    @cached_property
    def _installed(self) -> dict[str, Installed]:
        """All plugins: for those that are not found quickly, and for messages."""
        return discovery.installed()

    @cached_property
    def _usable(self) -> str:
        from . import trial  # only a config with an error needs it

        names = trial.usable(self._installed.values())
        return shortlist(map(quoted, names)) if names else "one that is installed (none is)"

    def load(self, listener: ListenerDraft) -> tuple[Hooks, HalfClose] | None:
        """Load a listener's plugins: their hooks, and the handler's ``half_close``; None if there are errors."""
        found = {plugin.name: self._class(plugin) for plugin in listener.plugins}
        schemas = {name: class_and_options[1] for name, class_and_options in found.items() if class_and_options}
        if listener.settings:
            from . import settings  # few servers have any

            settings.place(self.draft, listener, schemas)
        strays.check(self.draft, listener, found.keys(), schemas, lambda: self._installed)
        instances = []
        half_close: Any = "finish"
        for plugin in listener.plugins:
            class_and_options = found[plugin.name]
            if class_and_options is None:
                continue
            cls, schema = class_and_options
            if plugin.is_handler and (message := handler_error(cls)):
                self._blame(plugin, message)
            before = len(self.problems)
            if (options := self._options(listener, plugin, schema)) is not None:
                listener.options[plugin.name] = options
            instance = self._instance(listener, plugin, cls, options) if len(self.problems) == before else None
            if instance is None:
                continue
            instances.append(NamedPlugin(plugin.name, instance))
            half_close = getattr(instance, "half_close", "finish") if plugin.is_handler else "finish"
            if half_close not in get_args(HalfClose):
                self._blame(plugin, f"has half_close = {half_close!r}, {_HALF_CLOSE}")
        texts = {plugin.text for plugin in listener.plugins}
        if len(instances) < len(listener.plugins) or not instances or self._misfits & texts:
            return None
        self._check_proxies(listener, instances)
        listener_keys.apply(self.draft, listener, instances)
        try:
            return Hooks(instances), half_close
        except HookError as error:  # an error that only pluggy finds
            plugin = next(plugin for plugin in listener.plugins if plugin.name == error.plugin)
            self._blame(plugin, f"has a hook that can't be called: {error.message}")
            return None

    def _check_proxies(self, listener: ListenerDraft, instances: list[NamedPlugin]) -> None:
        """Require ``trusted_proxies`` if a plugin believes proxies, and refuse it if nothing does."""
        table = self.draft.document["listeners"][listener.name]
        if any(getattr(plugin.instance, "believes_proxies", False) for plugin in instances):
            if not table.get("proxy_protocol"):  # with it, the key has been checked already
                check_trusted_proxies(self.draft, listener)
        elif "trusted_proxies" in listener.fields and "proxy_protocol" not in table:
            message = "has no effect alone, expected `proxy_protocol` beside it, or a plugin's options"
            self.problems.add((*listener.key, "trusted_proxies"), f"{message} for what proxies say")

    def _class(self, plugin: PluginReference) -> tuple[type[Any], Options] | None:
        if plugin.text not in self._classes:
            self._classes[plugin.text] = self._import(plugin)
        return self._classes[plugin.text]

    def _find(self, text: str) -> Installed | None:
        if text in self._given:
            return Installed(text, target_of(self._given[text]), None)
        if is_class(text):
            return Uninstalled(text, text, None, base=self.draft.base)
        return self._found_quickly.get(text) or self._installed.get(text)

    def _import(self, reference: PluginReference) -> tuple[type[Any], Options] | None:
        name, place = reference.text, reference.place
        plugin = self._find(name)
        if plugin is None:
            meant = suggestion(self.draft.base, name)
            hint = f" (did you mean {quoted(meant)}?)" if meant else did_you_mean(name, self._installed)
            self.problems.add(place, f"no plugin {quoted(name)} is installed{hint}, expected {self._usable}")
            return None
        try:
            cls = class_of(self._given[name]) if name in self._given else import_class(plugin)
            schema = options_of(cls) if isinstance(self._given.get(name, cls), type) else None
            messages = class_errors(cls)
        except PluginError as error:
            self._blame_code(reference, error)
            return None
        for message in messages:
            self._misfits.add(name)
            self._blame(reference, message)
        return cls, schema

    def _options(self, listener: ListenerDraft, plugin: PluginReference, schema: Options) -> msgspec.Struct | None:
        name = plugin.name
        key = (*listener.key, name)
        if schema is None:
            if name in listener.tables:
                header = listener.plugin_header(name)
                self.problems.add(key, f"the plugin {quoted(name)} takes no options, expected no table {header}")
            return None
        table, known = listener.tables.get(name, {}), keys(schema)
        for option in table:
            if option not in known:
                if plugin.text in self._given:  # `poolsrv plugins` need not know it
                    message = unknown(option, own_first(schema))
                else:
                    message = unknown_option(option, own_first(schema), plugin.text)
                if option in LISTENER_KEYS:
                    message = f"`{option}` belongs in {listener.header}, above {listener.plugin_header(name)}"
                self.problems.add((*key, option), message)
        right = {option: value for option, value in table.items() if option in known}
        try:
            with blamed("failed in its Options"):  # in __post_init__, or where a default is made
                options: msgspec.Struct | None = self.draft.decoder.decode(schema, right, key)
            return options
        except PluginError as error:
            self._blame_code(plugin, error)
            return None

    def _instance(self, listener: ListenerDraft, plugin: PluginReference, cls: type[Any], options: object) -> object:
        given = self._given.get(plugin.text)
        if given is not None and not isinstance(given, type):
            return given
        try:
            with no_new_threads("its __init__"), blamed("failed in __init__"):
                try:
                    instance = cls() if options is None else cls(options)
                except ConfigError as error:
                    option = tuple(error.key.split(".")) if error.key else ()
                    self.problems.add((*listener.key, plugin.name, *option), " ".join(error.message.split()))
                    return None
            with blamed(UNREADABLE):  # it may be a property, which is code
                for name in _READ_LATER:
                    getattr(instance, name, None)
            return instance
        except PluginError as error:
            self._blame_code(plugin, error)
            return None

    def _blame_code(self, plugin: PluginReference, error: PluginError) -> None:
        """Add an error that running the plugin's code has shown."""
        log.debug("plugin %r", plugin.text, exc_info=error.__cause__)
        self._blame(plugin, str(error))

    def _blame(self, plugin: PluginReference, message: str) -> None:
        """Add an error in a plugin's code, at the place where the file names the plugin."""
        self.problems.add(plugin.place, f"{self._find(plugin.text)} {message}")
