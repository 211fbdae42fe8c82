"""One pluggy manager per listener, the callers that the worker uses, and which plugin is to blame for an exception.

pluggy finds the implementations, checks them and puts them in order, once. Where a listener has one plain
implementation of a hook, the caller is that bound method itself; where it has several, it calls one after the other;
where a wrapper is among them, it goes through pluggy, which costs 1 to 2 µs more per call. All ways behave alike.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from traceback import walk_tb
from types import CodeType, FrameType
from typing import Any, Protocol

import msgspec
import pluggy

from . import hookspecs
from .metrics import PluginOf

log = logging.getLogger("poolsrv.plugins")

HOOK_NAMES: tuple[str, ...] = tuple(
    name for name, member in vars(hookspecs).items() if hasattr(member, f"{hookspecs.PROJECT}_spec")
)
WORKER_HOOKS = frozenset({"on_worker_start", "on_worker_stop"})
# These reach every plugin even if one raises; the others stop at the first exception.
NOTIFICATIONS = frozenset({"on_child_exit", "on_connection_close", *WORKER_HOOKS})

Caller = Callable[..., Any]
# Told of an exception in one plugin's notification: the hook's name, the plugin's, the arguments, the exception.
FaultHandler = Callable[[str, str, dict[str, Any], BaseException], None]


class NamedPlugin(msgspec.Struct, frozen=True):
    """A plugin instance with the name that the config knows it by."""

    name: str
    instance: object


class HookError(Exception):
    """A plugin whose hooks can't be used as they are written."""

    def __init__(self, plugin: str, message: str) -> None:
        super().__init__(f"plugin {plugin!r}: {message}")
        self.plugin = plugin
        self.message = message


class _Manager(pluggy.PluginManager):
    """Does not look for hooks among ``__init__`` and all the others that every object has: that takes a while."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        return None if name.startswith("__") else super().parse_hookimpl_opts(plugin, name)


class Hooks:
    """The plugins of one listener, in calling order, and a caller for each hook (None where nobody implements it).

    :param plugins: in the order in which they are to be called: the further plugins, then the handler.
    :raises HookError: an implementation doesn't fit its hook's specification, or names no hook at all.
    """

    def __init__(self, plugins: Sequence[NamedPlugin]) -> None:
        self.plugins = tuple(plugins)
        self.manager = _Manager(hookspecs.PROJECT)
        self.manager.add_hookspecs(hookspecs)
        # pluggy calls the last registered first.
        for plugin in reversed(self.plugins):
            _register(self.manager, plugin)
        self.fault_handler: FaultHandler = log_fault
        self._implementers: dict[CodeType, list[NamedPlugin]] = {}  # several where one inherits from the other
        for impl in self._impls():
            if _has_code(impl):
                plugin = NamedPlugin(impl.plugin_name, impl.plugin)
                self._implementers.setdefault(impl.function.__code__, []).append(plugin)
        self._guard_notifications()
        self.called = ""  # the plugin whose on_worker_start or on_worker_stop is being called
        self._called: list[str] = []  # whose on_connection_init the latest chain has called
        self._chains: list[list[Caller]] = []
        self._closers: dict[frozenset[str], Caller | None] = {}
        if len(self.plugins) > 1:
            self._note_calls("on_connection_init")
        self.on_connection_init = self._caller("on_connection_init")
        self.on_readable = self._caller("on_readable")
        self.on_writable = self._caller("on_writable")
        self.on_connection_close = self._caller("on_connection_close")
        self.on_child_exit = self._caller("on_child_exit")
        self.on_worker_start = self._caller("on_worker_start")
        self.on_worker_stop = self._caller("on_worker_stop")
        self.on_drain = self._caller("on_drain")

    def culprit(self, error: BaseException) -> str:
        """The name of the plugin out of whose hook, or else callback, the exception came.

        A callback is any callable: it is taken for the plugin whose instance is its ``self`` (of a lambda, the
        ``self`` that it sees), in whose class it is written, or whose module it comes from; what can't be told is put
        down to the handler.
        """
        frames = [frame for frame, _ in walk_tb(error.__traceback__)][::-1]  # a wrapper lets pass what came from within
        return blamed(frames, [self]) or self.plugins[-1].name

    def _by_hook(self, frame: FrameType) -> str | None:
        code = frame.f_code
        implementers = self._implementers.get(code)
        if implementers is None:
            return None
        first = frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None
        for plugin in implementers:
            if plugin.instance is first:
                return plugin.name
        (plugin, *others) = implementers
        # An instance that is not here is another listener's. Of a function without an instance one plugin has it.
        return None if others or isinstance(first, type(plugin.instance)) else plugin.name

    def _by_self(self, frame: FrameType) -> str | None:
        instance = frame.f_locals.get("self")
        return next((plugin.name for plugin in self.plugins if plugin.instance is instance), None)

    def _by_class(self, frame: FrameType) -> str | None:
        """Of a function that is written in a method."""
        written_in = frame.f_globals.get("__name__"), frame.f_code.co_qualname.partition(".")[0]
        names = {
            plugin.name
            for plugin in self.plugins
            if any((cls.__module__, cls.__qualname__) == written_in for cls in type(plugin.instance).__mro__)
        }
        return names.pop() if len(names) == 1 else None

    def _by_module(self, frame: FrameType) -> str | None:
        package = _package(frame.f_globals.get("__name__"))
        names = [plugin.name for plugin in self.plugins if _package(type(plugin.instance).__module__) == package]
        return names[0] if len(names) == 1 else None

    def closer_after_ended_chain(self) -> Caller | None:
        """The caller of ``on_connection_close`` for a connection whose chain of ``on_connection_init`` has just ended
        early (a result, or an exception): it tells only the plugins that the chain had reached.

        A plugin without ``on_connection_init`` counts as reached where it comes before one that was called.
        """
        names = [plugin.name for plugin in self.plugins]
        implementers = {impl.plugin_name for impl in self.manager.hook.on_connection_init.get_hookimpls()}
        last = max((names.index(name) for name in self._called), default=-1)
        unreached = frozenset(
            name
            for index, name in enumerate(names)
            if name not in self._called and (name in implementers or index > last)
        )
        if unreached not in self._closers:
            removed = [plugin.instance for plugin in self.plugins if plugin.name in unreached]
            subset = self.manager.subset_hook_caller("on_connection_close", removed)
            self._closers[unreached] = (
                (lambda conn, reason: subset(conn=conn, reason=reason)) if subset.get_hookimpls() else None
            )
        return self._closers[unreached]

    def abandon(self) -> None:
        """In a copy of the process that has not been meant: whatever is being called, no further plugin is."""
        for chain in self._chains:
            chain.clear()

    def _note_calls(self, hook: str) -> None:
        """Have ``_called`` tell which plugins the latest call of a chain has reached."""
        impls = [i for i in getattr(self.manager.hook, hook).get_hookimpls() if not i.wrapper and not i.hookwrapper]
        for position, impl in enumerate(reversed(impls)):
            impl.function = self._noted(impl, first=position == 0)

    def _noted(self, impl: pluggy.HookImpl, first: bool) -> Caller:
        function, name, called = impl.function, impl.plugin_name, self._called

        def noted(*values: Any) -> Any:
            if first:
                called.clear()
            called.append(name)
            return function(*values)

        return noted

    def _impls(self) -> Iterable[pluggy.HookImpl]:
        for name in HOOK_NAMES:
            yield from getattr(self.manager.hook, name).get_hookimpls()

    def _caller(self, hook: str) -> Caller | None:
        """What the worker calls, with the hook's arguments by position."""
        relay = getattr(self.manager.hook, hook)
        impls = relay.get_hookimpls()
        if not impls:
            return None
        arguments = tuple(relay.spec.argnames)
        if not any(impl.wrapper or impl.hookwrapper for impl in impls):
            functions = [_by_position(impl, arguments) for impl in reversed(impls)]
            if len(functions) == 1:
                return functions[0]
            self._chains.append(functions)
            return _first_result_of(functions) if relay.spec.opts["firstresult"] else _all_of(functions)
        if len(arguments) == 1:
            (argument,) = arguments
            return lambda value: relay(**{argument: value})
        return lambda *values: relay(**dict(zip(arguments, values, strict=True)))

    def _guard_notifications(self) -> None:
        for name in NOTIFICATIONS:
            for impl in getattr(self.manager.hook, name).get_hookimpls():
                if not impl.wrapper and not impl.hookwrapper:
                    impl.function = self._guarded(name, impl)

    def _named(self, plugin: str, function: Caller) -> Caller:
        def named(*values: Any) -> Any:
            self.called = plugin
            try:
                return function(*values)
            finally:
                self.called = ""

        return named

    def _guarded(self, hook: str, impl: pluggy.HookImpl) -> Caller:
        function, argnames, plugin = impl.function, impl.argnames, impl.plugin_name
        if hook in WORKER_HOOKS:
            function = self._named(plugin, function)

        def guarded(*values: Any) -> Any:
            try:
                return function(*values)
            except BaseException as error:  # noqa: BLE001 - the fault boundary: a plugin's sys.exit() is its fault too
                self.fault_handler(hook, plugin, dict(zip(argnames, values, strict=False)), error)
                return None

        return guarded


# How to tell a plugin from a frame, the surest way first.
_RULES = (Hooks._by_hook, Hooks._by_self, Hooks._by_class, Hooks._by_module)


class HookedListener(Protocol):
    """A listener in this worker."""

    name: str
    hooks: Hooks


def owner(frames: Sequence[FrameType], listeners: Sequence[HookedListener]) -> PluginOf | None:
    """The plugin whose code these frames are, and on which listener; None if that can't be told.

    :param frames: the innermost first.
    """
    for rule in _RULES:
        for frame in frames:
            found = [PluginOf(one.name, name) for one in listeners if (name := rule(one.hooks, frame)) is not None]
            if len(found) == 1:
                return found[0]
    return None


def blamed(frames: Sequence[FrameType], all_hooks: Iterable[Hooks]) -> str | None:
    """The name of the plugin whose code these frames are; see ``Hooks.culprit``.

    :param frames: the innermost first.
    :param all_hooks: of the listeners that it may be.
    """
    hooks = list(all_hooks)
    for rule in _RULES:
        for frame in frames:
            names = {name for one in hooks if (name := rule(one, frame)) is not None}
            if len(names) == 1:
                return names.pop()
    return None


def _by_position(impl: pluggy.HookImpl, arguments: tuple[str, ...]) -> Caller:
    """The implementation, taking all of the hook's arguments in their order."""
    function: Caller = impl.function
    if tuple(impl.argnames) == arguments:
        return function
    places = tuple(arguments.index(name) for name in impl.argnames)
    return lambda *values: function(*[values[place] for place in places])


def _first_result_of(functions: Sequence[Caller]) -> Caller:
    def chain(conn: Any) -> Any:
        for function in functions:
            result = function(conn)
            if result is not None:
                return result
        return None

    return chain


def _all_of(functions: Sequence[Caller]) -> Caller:
    def chain(*values: Any) -> None:
        for function in functions:
            function(*values)

    return chain


def log_fault(hook: str, plugin: str, arguments: dict[str, Any], error: BaseException) -> None:
    """Say in the log which plugin failed in which hook, with the traceback."""
    log.error("plugin %r failed in %s", plugin, hook, exc_info=error)


def _register(manager: pluggy.PluginManager, plugin: NamedPlugin) -> None:
    try:
        manager.register(plugin.instance, plugin.name)
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise HookError(plugin.name, " ".join(str(error).split())) from None


def _package(module: object) -> str:
    return str(module).partition(".")[0]


def _has_code(impl: pluggy.HookImpl) -> bool:
    return isinstance(getattr(impl.function, "__code__", None), CodeType)
