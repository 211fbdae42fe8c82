"""``--dev``: a process beside the server, which sends it HUP when a file of its plugins, or its config, has changed.

The process imports no plugin: it looks for the files of their modules. What counts as a change is a comparison of
sizes and times with those of before, not what ``watchfiles`` reports, so nothing is missed between two watches. A
reload that fails changes nothing, and the server logs why; so after a broken edit the former code goes on serving.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from ..core import logs, processes
from ..core.titles import set_title
from .output import EXIT_USAGE, fail

if TYPE_CHECKING:
    from ..config.arguments import Arguments

log = logging.getLogger("poolsrv.dev")

DEBOUNCE: Final = 100  # milliseconds without a further change until a reload begins
_LONGEST_DEBOUNCE: Final = 2000
_IGNORED_SUFFIXES: Final = (".pyc", ".pyo", "~", ".swp", ".swx", ".tmp")
_INSTALLED: Final = {"site-packages", "dist-packages"}

# Files with their times and sizes.
Snapshot: TypeAlias = dict[str, tuple[int, int]]


def start_for_arguments(arguments: Arguments) -> None:
    """Watch the files of plugins that a command's arguments name."""
    _start(Path(arguments.directory), None, lambda: [arguments.handler, *arguments.plugins])


def start_for_config(config: Path) -> None:
    """Watch a config file, and the files of the plugins that it names."""
    file = Path(os.path.abspath(config))
    _start(file.parent, file, lambda: _named_in(file))


def _start(base: Path, config: Path | None, names: Callable[[], list[str]]) -> None:
    if importlib.util.find_spec("watchfiles") is None:
        fail(EXIT_USAGE, ["poolsrv: --dev needs watchfiles, expected it installed: pip install watchfiles"])
    # A file with byte code counts as up to date if source has the same second and size: an edit might be missed.
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    files = PluginFiles(base, config, names)
    before = files.snapshot()
    server = os.getpid()
    if os.fork() == 0:
        try:
            _watch(server, files, before)
        except Exception:
            log.exception("files are no longer watched")
        finally:
            os._exit(0)


def _watch(server: int, files: PluginFiles, before: Snapshot) -> None:
    """In the process beside the server: run until the server has ended."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # a terminal, or the user, sends them to all
    processes.signal_when_parent_dies(signal.SIGKILL)
    logs.set_role("dev")
    logging.getLogger("watchfiles").setLevel(logging.WARNING)
    set_title("dev")
    import watchfiles

    while os.getppid() == server:
        directories = files.directories()
        now = files.snapshot()
        if changed := sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name)):
            log.info("changed: %s", ", ".join(map(os.path.relpath, changed[:5])) + (", ..." if changed[5:] else ""))
            os.kill(server, signal.SIGHUP)
            before = now
        for _ in watchfiles.watch(
            *directories,
            watch_filter=None,
            recursive=False,
            step=DEBOUNCE,
            debounce=_LONGEST_DEBOUNCE,
            rust_timeout=1000,
            yield_on_timeout=True,
        ):
            break


class PluginFiles:
    """The files that a server's plugins consist of, as far as that can be told without running them.

    They are every file of a package, and every module beside a module that is alone. Of a module among the installed
    ones, it is that file.

    :param base: the directory in which modules named as ``module:Class`` may be.
    :param config: the config file, if there is one.
    :param names: gives the plugins that are named now.
    """

    def __init__(self, base: Path, config: Path | None, names: Callable[[], list[str]]) -> None:
        self._base = base
        self._config = config
        self._names = names

    def snapshot(self) -> Snapshot:
        """Look at every file."""
        found: Snapshot = {}
        for file in self._files():
            try:
                status = os.stat(file)
            except OSError:
                continue
            found[str(file)] = (status.st_mtime_ns, status.st_size)
        return found

    def directories(self) -> list[Path]:
        """The directories in which files may change, come or go: each has to be watched itself."""
        found = {self._config.parent} if self._config is not None else set()
        for place in self._places():
            found.add(place.parent if place.is_file() else place)
            if place.is_dir():
                found.update(Path(folder) for folder, _ in _walk(place))
        return sorted(directory for directory in found if directory.is_dir()) or [self._base]

    def _files(self) -> Iterator[Path]:
        if self._config is not None:
            yield self._config
        for place in self._places():
            if place.is_dir():
                for folder, names in _walk(place):
                    yield from (Path(folder, name) for name in names)
            elif _INSTALLED & set(place.parts):
                yield place
            else:
                yield from place.parent.glob("*.py")

    def _places(self) -> list[Path]:
        """The package's directory, or the module's file, of each plugin."""
        importlib.invalidate_caches()
        found = (self._place(module) for module in _modules(self._names()))
        return [place for place in found if place is not None]

    def _place(self, module: str) -> Path | None:
        for place in (self._base / module, self._base / f"{module}.py"):
            if place.is_file() or (place / "__init__.py").is_file():
                return place
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError, AttributeError):
            return None
        if spec is None:
            return None
        if spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations)))
        return Path(spec.origin) if spec.has_location and spec.origin else None


def _walk(package: Path) -> Iterator[tuple[str, list[str]]]:
    """The directories of a package, each with its files: none that Python or an editor keeps for itself."""
    for folder, folders, names in os.walk(package):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        yield folder, [name for name in names if name[0] not in ".#" and not name.endswith(_IGNORED_SUFFIXES)]


def _modules(names: list[str]) -> set[str]:
    """The top-level module of each plugin: of those named as ``module:Class``, and of the installed ones."""
    from ..config.plugin_reference import is_class
    from ..plugins import discovery

    targets = {name for name in names if is_class(name)}
    if len(targets) < len(names):
        installed = discovery.installed()
        targets |= {installed[name].target for name in names if name in installed}
    return {target.partition(":")[0].strip().partition(".")[0] for target in targets}


def _named_in(config: Path) -> list[str]:
    """The plugins that a config names now; none if it can't be read."""
    from ..config import toml_file
    from ..config.errors import ConfigErrors

    try:
        document: dict[str, Any] = toml_file.read(config)[0]
    except ConfigErrors:
        return []
    listeners = document.get("listeners")
    names: list[object] = []
    for table in listeners.values() if isinstance(listeners, dict) else ():
        if isinstance(table, dict):
            plugins = table.get("plugins")
            names += [table.get("handler"), *(plugins if isinstance(plugins, list) else ())]
    return [name for name in names if isinstance(name, str)]
