"""What a plugin's class declares: its hooks and its options, and what is wrong with them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

from ..config.model import LISTENER_KEYS
from ..core.words import did_you_mean, one_of, quoted
from ..worker import hookspecs
from ..worker.hooks import HOOK_NAMES
from .blame import blamed
from .discovery import PluginError
from .listener_keys import errors_of_attributes

FIRST_HOOKS = ("on_connection_init", "on_readable")  # a handler has at least one of them
_SPECS = {name: getattr(hookspecs, name).__code__ for name in HOOK_NAMES}
HOOK_ARGUMENTS = {name: code.co_varnames[: code.co_argcount] for name, code in _SPECS.items()}

UNREADABLE = "has an attribute that can't be read"
_MARK = f"{hookspecs.PROJECT}_impl"  # the attribute in which @hookimpl leaves its options


def options_of(cls: type[Any]) -> type[msgspec.Struct] | None:
    """The struct of the options that a class takes; None if it takes none.

    :raises PluginError: ``Options`` is not a struct, or has types that msgspec can't decode.
    """
    with blamed("has Options that can't be understood", tells_place=False):
        options = getattr(cls, "Options", None)
        if options is None:
            return None
        if not (isinstance(options, type) and issubclass(options, msgspec.Struct)):
            raise PluginError(f"has {options!r} as its Options, expected a subclass of msgspec.Struct")
        taken = [name for name in options.__struct_encode_fields__ if name in LISTENER_KEYS]
        if taken:
            names, key = one_of(map(quoted, taken), "and"), "key" if len(taken) == 1 else "keys"
            raise PluginError(f"has {names} among its Options, the {key} of every listener, expected other names")
        # This resolves the annotations, which are the plugin's code, and refuses a type that can't be decoded.
        msgspec.json.Decoder(options)
    return options


def hooks_of(cls: type[Any]) -> tuple[str, ...]:
    """The hooks that a class implements, in the order of their specifications."""
    implemented = {options["specname"] or name for name, options in _marked(cls)}
    return tuple(name for name in HOOK_NAMES if name in implemented)


def hook_errors(cls: type[Any]) -> Iterator[str]:
    """What is wrong with the hooks of a class, as far as its source shows."""
    for name in HOOK_NAMES:
        member = getattr(cls, name, None)
        if inspect.isroutine(member) and not isinstance(getattr(member, _MARK, None), dict):
            yield f"has a method {name} that is not marked as a hook, expected @hookimpl above it"
    for name, options in _marked(cls):
        hook = options["specname"] or name
        if hook in HOOK_ARGUMENTS:
            yield from _errors_of_hook(cls, name, options, HOOK_ARGUMENTS[hook])
        elif not options["optionalhook"]:
            yield f"has a hook {hook}{did_you_mean(hook, HOOK_NAMES)}, expected {one_of(HOOK_NAMES)}"


def class_errors(cls: type[Any]) -> list[str]:
    """What is wrong with the hooks and the attributes of a class.

    :raises PluginError: reading one of them fails.
    """
    with blamed(UNREADABLE):
        return [*hook_errors(cls), *errors_of_attributes(cls)]


def _errors_of_hook(cls: type[Any], name: str, options: dict[str, Any], known: tuple[str, ...]) -> Iterator[str]:
    for argument in _arguments(cls, name):
        if argument not in known:
            yield f"takes {quoted(argument)} in its {name}, expected no arguments but {one_of(known, 'and')}"
    function = getattr(cls, name)
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        yield f'has an "async def {name}", expected a plain "def": hooks are called, not awaited'
    elif inspect.isgeneratorfunction(function) and not (options["wrapper"] or options["hookwrapper"]):
        yield f'has a "yield" in its {name}, expected none, or @hookimpl(wrapper=True)'


def handler_error(cls: type[Any]) -> str | None:
    """Why a class can't be the handler of a listener; None if it can."""
    if any(name in FIRST_HOOKS for name in hooks_of(cls)):
        return None
    if any(inspect.isroutine(getattr(cls, name, None)) for name in FIRST_HOOKS):
        return None  # the method is there, but not marked: hook_errors says so
    return f"can't be a handler: it has neither of the hooks {one_of(FIRST_HOOKS, 'and')}, expected one of them"


def _marked(cls: type[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The members that @hookimpl has marked, with the options that it was given."""
    for name in dir(cls):
        options = getattr(getattr(cls, name, None), _MARK, None)
        if isinstance(options, dict):
            yield name, options


def _arguments(cls: type[Any], name: str) -> list[str]:
    """The arguments that pluggy passes: those without a default, and without ``self``."""
    function: Callable[..., object] = getattr(cls, name)
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if not isinstance(inspect.getattr_static(cls, name), staticmethod | classmethod):
        parameters = parameters[1:]
    return [parameter.name for parameter in parameters if parameter.default is parameter.empty]
