"""Stack dumps: where a hung process is, written by ``faulthandler`` into a file that its parent reads.

The parent of a worker is the dispatcher, and that of a dispatcher the supervisor.

The process registers a signal with ``faulthandler.register``. Its C handler writes the Python stack whatever the
interpreter is doing. The file is a memfd (memfd_create(2)), made before the process is started, so that both share it
and nothing is left on disk. Its content is not trusted: the reader looks at its end, and shows it.

A stack names functions and lines, but not the instance they work for: two plugins may have one class, or inherit a
hook. So a worker adds the plugin's name (worker/culprits.py) if the interpreter gets to run a handler of the signal. It
does so in a loop and in a system call, but not in a C library that computes. Without the name, the lines decide.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from types import CodeType
from typing import Final, Protocol

from .hang_signal import dump_file

DUMP_TIME: Final = 0.5  # seconds that a hung process gets to dump its stack
DUMP_LATE: Final = 0.25  # seconds: where the timer for that comes so late, the process gets the same time again
_LONGEST_REPORT: Final = 65536  # bytes
_LONGEST_PLACE: Final = 500  # characters

# faulthandler's format; the innermost call comes first. Compiled when a process hangs, which spares each start 1 ms.
_FRAME = r'^  File "(?P<file>.*)", line (?P<line>\d{1,9}) in (?P<function>.*)$'
_THREAD = r"^(?:Current t|T)hread 0x[0-9a-f]+"
_MARK = "poolsrv_impl"  # of functions with @hookimpl (pluggy)
_CULPRIT = r"^plugin (.+)$"
_OWN_FOLDER = os.path.dirname(os.path.dirname(__file__)) + os.sep


class NamedInstance(Protocol):
    """An instance of a plugin, with the name that the config knows it by."""

    @property
    def name(self) -> str:
        """The plugin's name."""

    @property
    def instance(self) -> object:
        """The plugin."""


class StackDumpFile:
    """The file for one process; made before that process is started.

    :param fd: its descriptor, if it has been made already.
    :raises OSError: as ``dump_file``.
    """

    def __init__(self, fd: int | None = None) -> None:
        self._fd = dump_file() if fd is None else fd

    def fileno(self) -> int:
        """Return the descriptor for ``faulthandler.register``."""
        return self._fd

    def describe(self, plugins: Sequence[NamedInstance]) -> str:
        """Say where the process hangs, with the plugin's name if its code runs there."""
        begin = max(os.fstat(self._fd).st_size - _LONGEST_REPORT, 0)
        text = os.pread(self._fd, _LONGEST_REPORT, begin).decode(errors="replace")
        if not text:
            return "and does not say where it hangs"
        text = _main_thread(text)
        frames = [match.groupdict() for match in re.finditer(_FRAME, text, re.MULTILINE)]
        said = set(re.findall(_CULPRIT, text, re.MULTILINE)).intersection(plugin.name for plugin in plugins)
        names = said if len(said) == 1 else _blamed(frames, plugins)
        if names:
            those = [plugin for plugin in plugins if plugin.name in names]
            own = [frame for frame in frames if any(_belongs_to(frame["file"], plugin) for plugin in those)]
            who = " or ".join(repr(name) for name in sorted(names))
            return f"it hangs in plugin {who} ({_show((own or frames)[0])})" if frames else f"it hangs in plugin {who}"
        outside = [frame for frame in frames if not frame["file"].startswith(_OWN_FOLDER)]
        return f"it hangs in {_show((outside or frames)[0])}" if frames else "and does not say where it hangs"

    def close(self) -> None:
        """Close this process's copy."""
        os.close(self._fd)


def _blamed(frames: Sequence[dict[str, str]], plugins: Sequence[NamedInstance]) -> set[str]:
    """Find the plugins that the lines belong to: by their hooks, else by their classes, else by their modules."""
    for rule in (_is_in_hook, _is_in_class, lambda frame, plugin: _belongs_to(frame["file"], plugin)):
        for frame in frames:
            names = {plugin.name for plugin in plugins if rule(frame, plugin)}
            if names:
                return names
    return set()


def _is_in_hook(frame: dict[str, str], plugin: NamedInstance) -> bool:
    return any(_has_line(code, frame) for function, code in _functions(plugin) if hasattr(function, _MARK))


def _is_in_class(frame: dict[str, str], plugin: NamedInstance) -> bool:
    return any(_has_line(code, frame) for _, code in _functions(plugin))


def _functions(plugin: NamedInstance) -> Iterator[tuple[object, CodeType]]:
    for cls in type(plugin.instance).__mro__:
        for member in vars(cls).values():
            code = getattr(member, "__code__", None)
            if isinstance(code, CodeType):
                yield member, code


def _has_line(code: CodeType, frame: dict[str, str]) -> bool:
    """Whether the frame belongs to this function, or to one that is nested in it."""
    if code.co_filename != frame["file"]:
        return False
    if code.co_name == frame["function"] and int(frame["line"]) in {line for _, _, line in code.co_lines()}:
        return True
    return any(isinstance(one, CodeType) and _has_line(one, frame) for one in code.co_consts)


def _main_thread(text: str) -> str:
    """Cut out the loop's thread. It is the oldest one, and faulthandler writes it last."""
    starts = [match.start() for match in re.finditer(_THREAD, text, re.MULTILINE)]
    return text[starts[-1] :] if starts else text


def _belongs_to(file: str, plugin: NamedInstance) -> bool:
    module = sys.modules.get(type(plugin.instance).__module__)
    source = getattr(module, "__file__", None)
    if source is None:
        return False
    # Any file of a package counts.
    folder, name = os.path.split(source)
    return file == source or (name == "__init__.py" and file.startswith(folder + os.sep))


def _show(frame: dict[str, str]) -> str:
    return f"{frame['function']}, {frame['file']}:{frame['line']}"[:_LONGEST_PLACE]
