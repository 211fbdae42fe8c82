"""Installed plugins: which there are, importing one, and what its class declares.

Runs in the process that forks, so an import that leaves a thread behind is an error.
"""

from __future__ import annotations

import inspect
import logging
import os
import select
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from ..config.model import LISTENER_KEYS, RESERVED_NAMES
from ..core.words import did_you_mean, one_of, quoted
from ..errors import PoolsrvError
from ..worker import hookspecs
from ..worker.hooks import HOOK_NAMES
from . import entry_points

if TYPE_CHECKING:
    from importlib import metadata


log = logging.getLogger("poolsrv.plugins")

FIRST_HOOKS = ("on_connection_init", "on_readable")  # a handler has at least one of them

HOOK_ARGUMENTS = {name: tuple(inspect.signature(getattr(hookspecs, name)).parameters) for name in HOOK_NAMES}

_MARK = f"{hookspecs.PROJECT}_impl"  # where @hookimpl leaves its options
TRIAL_TIME = 5.0  # seconds
_OWN_FOLDER = str(Path(__file__).parent.parent) + os.sep
_THREAD_GRACE = 1.0  # seconds: the kernel may still list a thread that has been joined


class PluginError(PoolsrvError):
    """A plugin that can't be used, in one line that doesn't name it: the caller does."""


class Installed(msgspec.Struct, frozen=True):
    """A plugin that some distribution offers.

    :ivar name: the entry point's name, which the config uses.
    :ivar target: what it names: ``"poolsrv_shout:Shout"``.
    :ivar source: the distribution that it is installed by, or the folder with its metadata, which is not read unless
        somebody asks.
    :ivar rivals: the other distributions that offer a plugin of this name; then none of them can be used.
    """

    name: str
    target: str
    source: metadata.Distribution | str | None
    rivals: tuple[str, ...] = ()

    @property
    def distribution(self) -> str:
        """The distribution's name."""
        source = self._read_source()
        return source.name if source else "?"

    @property
    def version(self) -> str:
        """The distribution's version."""
        source = self._read_source()
        return source.version if source else "?"

    def _read_source(self) -> metadata.Distribution | None:
        if not isinstance(self.source, str):
            return self.source
        from importlib import metadata  # slow to import, see entrypoints.py

        return metadata.Distribution.at(self.source)

    def __str__(self) -> str:
        return f"the plugin {quoted(self.name)} ({self.target}, of {self.distribution} {self.version})"


def installed() -> dict[str, Installed]:
    """Every installed plugin, by name. Nothing is imported."""
    found: dict[str, Installed] = {}
    for entry_point in _entry_points():
        plugin = Installed(entry_point.name, entry_point.value, entry_point.dist)
        earlier = found.get(plugin.name)
        if earlier is not None and earlier.distribution != plugin.distribution:
            plugin = msgspec.structs.replace(earlier, rivals=(*earlier.rivals, plugin.distribution))
        found[plugin.name] = plugin
    return dict(sorted(found.items()))


def _entry_points() -> Iterable[metadata.EntryPoint]:
    from importlib import metadata  # slow to import, see entrypoints.py

    try:
        return metadata.entry_points(group=hookspecs.PROJECT)
    except ValueError:
        pass  # of one distribution they are not UTF-8, which is to hide no other
    found: list[metadata.EntryPoint] = []
    for distribution in metadata.distributions():
        try:
            found += distribution.entry_points.select(group=hookspecs.PROJECT)
        except ValueError as error:
            log.warning("the entry points of %s can't be read: %s", distribution.name, error)
    return found


def found_quickly() -> dict[str, Installed]:
    """Installed plugins, by name, but perhaps not all."""
    return {
        name: Installed(name, target, folder) for name, (target, folder) in entry_points.find(hookspecs.PROJECT).items()
    }


def import_class(plugin: Installed) -> type[Any]:
    """Import a plugin's class.

    :raises PluginError: it can't be imported, is no class, or its import starts a thread.
    """
    if plugin.name in RESERVED_NAMES:
        raise PluginError("has the name of one of a listener's own keys, expected another name")
    if plugin.rivals:
        raise PluginError(f"is offered by {one_of((plugin.distribution, *plugin.rivals), 'and')}, expected one of them")
    module_name, _, attribute = plugin.target.partition(":")
    with blamed("can't be imported"), no_new_threads("its import"):
        target: Any = import_module(module_name.strip())
    path = module_name.strip()
    for name in filter(None, attribute.strip().split(".")):
        if not hasattr(target, name):
            raise PluginError(f"can't be imported: {path} has no {quoted(name)}{did_you_mean(name, vars(target))}")
        target = getattr(target, name)
        path = f"{path}.{name}"
    if not isinstance(target, type):
        raise PluginError(f"is a {type(target).__name__}, expected a class, such as {module_name}:Shout")
    return target


def usable(plugins: Iterable[Installed]) -> list[str]:
    """The names of those that can be imported. That is tried in a copy of this process, so that what they do has no
    effect on this one; what has not been found out within ``TRIAL_TIME`` counts as not usable."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    pid = os.fork()
    if pid == 0:
        try:
            _try(plugins, writer)
        finally:
            os._exit(0)
    os.close(writer)
    deadline, found = time.monotonic() + TRIAL_TIME, b""
    try:
        while select.select([reader], [], [], max(deadline - time.monotonic(), 0.0))[0]:
            if not (piece := os.read(reader, 65536)):
                break
            found += piece
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return [os.fsdecode(name) for name in found.split(b"\0")[:-1]]


def _try(plugins: Iterable[Installed], writer: int) -> None:
    logging.disable()
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    for plugin in plugins:
        try:
            cls = import_class(plugin)
            options_of(cls)
        except PluginError:
            continue
        if not any(hook_errors(cls)):
            os.write(writer, os.fsencode(plugin.name) + b"\0")


def options_of(cls: type[Any]) -> type[msgspec.Struct] | None:
    """The struct of the options that a plugin's class takes; None where it takes none.

    :raises PluginError: ``Options`` is not a struct, or has types that msgspec can't decode.
    """
    options = getattr(cls, "Options", None)
    if options is None:
        return None
    if not (isinstance(options, type) and issubclass(options, msgspec.Struct)):
        raise PluginError(f"has {options!r} as its Options, expected a subclass of msgspec.Struct")
    taken = [name for name in options.__struct_encode_fields__ if name in LISTENER_KEYS]
    if taken:
        names, key = one_of(map(quoted, taken), "and"), "key" if len(taken) == 1 else "keys"
        raise PluginError(f"has {names} among its Options, the {key} of every listener, expected other names")
    try:
        msgspec.json.Decoder(options)  # resolves the annotations, and refuses a type that can't be decoded
    except Exception as error:  # resolving runs the plugin's annotations
        text = " ".join(str(error).split())
        raise PluginError(f"has Options that can't be understood: {type(error).__name__}: {text}") from error
    return options


def hooks_of(cls: type[Any]) -> tuple[str, ...]:
    """The hooks that a plugin's class fills, in the order of their specifications."""
    filled = {options["specname"] or name for name, options in _marked(cls)}
    return tuple(name for name in HOOK_NAMES if name in filled)


def hook_errors(cls: type[Any]) -> Iterator[str]:
    """What is wrong with the hooks of a plugin's class, as it is written."""
    for name in HOOK_NAMES:
        member = getattr(cls, name, None)
        if inspect.isroutine(member) and not isinstance(getattr(member, _MARK, None), dict):
            yield f"has a method {name} that is not marked as a hook, expected @hookimpl above it"
    for name, options in _marked(cls):
        hook = options["specname"] or name
        if hook not in HOOK_ARGUMENTS:
            if not options["optionalhook"]:
                yield f"has a hook {hook}{did_you_mean(hook, HOOK_NAMES)}, expected {one_of(HOOK_NAMES)}"
            continue
        function, arguments, known = getattr(cls, name), _arguments(cls, name), HOOK_ARGUMENTS[hook]
        for argument in arguments:
            if argument not in known:
                yield f"takes {quoted(argument)} in its {name}, expected no arguments but {one_of(known, 'and')}"
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            yield f'has an "async def {name}", expected a plain "def": hooks are called, not awaited'
        elif inspect.isgeneratorfunction(function) and not (options["wrapper"] or options["hookwrapper"]):
            yield f'has a "yield" in its {name}, expected none, or @hookimpl(wrapper=True)'


def handler_error(cls: type[Any]) -> str | None:
    """Why a plugin's class can't be the handler of a listener, if it can't."""
    if any(name in FIRST_HOOKS for name in hooks_of(cls)):
        return None
    if any(inspect.isroutine(getattr(cls, name, None)) for name in FIRST_HOOKS):
        return None  # it is there, but not marked: that is its own error
    return f"can't be a handler: it has neither of the hooks {one_of(FIRST_HOOKS, 'and')}, expected one of them"


@contextmanager
def blamed(failing: str) -> Iterator[None]:
    """Whatever a plugin's code raises becomes a PluginError of one line that tells where it came from."""
    try:
        yield
    except (PluginError, KeyboardInterrupt):
        raise
    except BaseException as error:  # a plugin's sys.exit() is its fault too
        raise PluginError(f"{failing}: {_in_one_line(error)}") from error


@contextmanager
def no_new_threads(where: str) -> Iterator[None]:
    """A forked copy has only the thread that forked, and the locks that the others held are held for ever.

    :raises PluginError: the block left a thread behind.
    """
    before = _threads()
    yield
    deadline = time.monotonic() + _THREAD_GRACE
    while new := _threads() - before:
        if time.monotonic() > deadline:
            names = {thread.native_id: thread.name for thread in threading.enumerate()}
            shown = ", ".join(quoted(names.get(number) or _thread_name(number)) for number in sorted(new))
            raise PluginError(f"starts a thread in {where} ({shown}), expected none before on_worker_start")
        time.sleep(0.005)


def _threads() -> set[int]:
    return {int(name) for name in os.listdir("/proc/self/task")}


def _thread_name(number: int) -> str:
    try:
        return Path(f"/proc/self/task/{number}/comm").read_text(errors="replace").strip()  # any bytes
    except OSError:
        return str(number)


def _marked(cls: type[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name in dir(cls):
        options = getattr(getattr(cls, name, None), _MARK, None)
        if isinstance(options, dict):
            yield name, options


def _arguments(cls: type[Any], name: str) -> list[str]:
    """The arguments that pluggy will pass: those without a default, and without ``self``."""
    function: Callable[..., object] = getattr(cls, name)
    parameters = [
        parameter
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if not isinstance(inspect.getattr_static(cls, name), staticmethod | classmethod):
        parameters = parameters[1:]
    return [parameter.name for parameter in parameters if parameter.default is parameter.empty]


def _in_one_line(error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    text = " ".join(str(error).split())
    return ": ".join(filter(None, (type(error).__name__, text))) + _place(error)


def _place(error: BaseException) -> str:
    """The line of the plugin, or of a library that it uses, where it was raised; not one of the standard library."""
    import sysconfig  # only a plugin with an error needs it

    standard = sysconfig.get_path("stdlib")
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        packaged = "site-packages" in frame.filename or "dist-packages" in frame.filename
        own = frame.filename.startswith(_OWN_FOLDER)
        if own or frame.filename.startswith("<frozen") or (frame.filename.startswith(standard) and not packaged):
            continue
        return f" ({frame.filename}, line {frame.lineno})"
    return ""
