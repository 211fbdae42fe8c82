"""Where a process hangs: ``faulthandler`` writes it into a file that somebody else reads, of a worker the
dispatcher, of a dispatcher the supervisor.

The process registers a signal with ``faulthandler.register``; its C handler writes the Python stack whatever the
interpreter is doing. The file is a memfd (memfd_create(2)), made before the process is started, so the two share it,
and nothing is left on disk. What is in it is believed of nobody: who reads it looks at its end, and shows it.

The stack tells functions and lines, and not whose instance they work for: two plugins may have one class, or inherit a
hook. So a worker adds the plugin's name (culprits.py), where the interpreter gets to run a handler of the signal: it
does in a loop and in a system call, but not in a C library that computes. Else it is told by the lines.

The supervisor imports this: nothing but the standard library, and at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import CodeType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..worker.hooks import NamedPlugin

HANG_REPORT_TIME: Final = 0.5  # seconds that a process which hangs gets to say where
_LONGEST_REPORT: Final = 65536  # bytes
_LONGEST_PLACE: Final = 500  # characters

# faulthandler's format; the innermost call comes first.
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE)
_THREAD = re.compile(r"^(?:Current t|T)hread 0x[0-9a-f]+", re.MULTILINE)
_MARK = "poolsrv_impl"  # of functions with @hookimpl (pluggy)
_CULPRIT = re.compile(r"^plugin (.+)$", re.MULTILINE)
_OWN_FOLDER = str(Path(__file__).parent.parent) + os.sep


class StackDumpFile:
    """Made for one process, before that is started.

    :raises OSError: no descriptor, or no memory.
    """

    def __init__(self) -> None:
        self._fd = os.memfd_create("poolsrv-hang")

    def fileno(self) -> int:
        """For ``faulthandler.register``."""
        return self._fd

    def describe(self, plugins: Sequence[NamedPlugin]) -> str:
        """Where the process says that it hangs, with the plugin's name where it is one's."""
        begin = max(os.fstat(self._fd).st_size - _LONGEST_REPORT, 0)
        text = os.pread(self._fd, _LONGEST_REPORT, begin).decode(errors="replace")
        if not text:
            return "and does not say where it hangs"
        text = _main_thread(text)
        frames = [match.groupdict() for match in _FRAME.finditer(text)]
        said = set(_CULPRIT.findall(text)).intersection(plugin.name for plugin in plugins)
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


def _blamed(frames: Sequence[dict[str, str]], plugins: Sequence[NamedPlugin]) -> set[str]:
    """The names of the plugins whose lines these are: of their hooks, else of their classes, else of their modules."""
    for rule in (_is_in_hook, _is_in_class, lambda frame, plugin: _belongs_to(frame["file"], plugin)):
        for frame in frames:
            names = {plugin.name for plugin in plugins if rule(frame, plugin)}
            if names:
                return names
    return set()


def _is_in_hook(frame: dict[str, str], plugin: NamedPlugin) -> bool:
    return any(_has_line(code, frame) for function, code in _functions(plugin) if hasattr(function, _MARK))


def _is_in_class(frame: dict[str, str], plugin: NamedPlugin) -> bool:
    return any(_has_line(code, frame) for _, code in _functions(plugin))


def _functions(plugin: NamedPlugin) -> Iterator[tuple[object, CodeType]]:
    for cls in type(plugin.instance).__mro__:
        for member in vars(cls).values():
            code = getattr(member, "__code__", None)
            if isinstance(code, CodeType):
                yield member, code


def _has_line(code: CodeType, frame: dict[str, str]) -> bool:
    """Whether the frame is of this function, or of one that is written in it."""
    if code.co_filename != frame["file"]:
        return False
    if code.co_name == frame["function"] and int(frame["line"]) in {line for _, _, line in code.co_lines()}:
        return True
    return any(isinstance(one, CodeType) and _has_line(one, frame) for one in code.co_consts)


def _main_thread(text: str) -> str:
    """The loop's thread: the last that faulthandler writes, being the oldest."""
    starts = [match.start() for match in _THREAD.finditer(text)]
    return text[starts[-1] :] if starts else text


def _belongs_to(file: str, plugin: NamedPlugin) -> bool:
    module = sys.modules.get(type(plugin.instance).__module__)
    source = getattr(module, "__file__", None)
    if source is None:
        return False
    # of a package, any of its files
    return file == source or (Path(source).name == "__init__.py" and file.startswith(str(Path(source).parent) + os.sep))


def _show(frame: dict[str, str]) -> str:
    return f"{frame['function']}, {frame['file']}:{frame['line']}"[:_LONGEST_PLACE]
