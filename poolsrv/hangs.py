"""Where a process hangs: ``faulthandler`` writes it into a file that somebody else reads, of a worker the
dispatcher, of a dispatcher the supervisor.

The process registers a signal with ``faulthandler.register``; its C handler writes the Python stack whatever the
interpreter is doing. The file is a memfd (memfd_create(2)), made before the process is started, so the two share it,
and nothing is left on disk. What is in it is believed of nobody: who reads it looks at its end, and shows it.

The supervisor imports this: nothing but the standard library, and at once.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .hooks import NamedPlugin

HANG_SIGNAL: Final = signal.SIGUSR2  # faulthandler answers it with a traceback, whatever Python is doing
HANG_REPORT_TIME: Final = 0.5  # seconds that a process which hangs gets to say where
_LONGEST_REPORT: Final = 65536  # bytes
_LONGEST_PLACE: Final = 500  # characters

# faulthandler's format; the innermost call comes first.
_FRAME = re.compile(r'^  File "(?P<file>.*)", line (?P<line>\d+) in (?P<function>.*)$', re.MULTILINE)
_THREAD = re.compile(r"^(?:Current t|T)hread 0x[0-9a-f]+", re.MULTILINE)
_OWN_FOLDER = str(Path(__file__).parent) + os.sep


class HangFile:
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
        frames = [match.groupdict() for match in _FRAME.finditer(_main_thread(text))]
        for frame in frames:
            for plugin in plugins:
                if _belongs_to(frame["file"], plugin):
                    return f"it hangs in plugin {plugin.name!r} ({_show(frame)})"
        outside = [frame for frame in frames if not frame["file"].startswith(_OWN_FOLDER)]
        return f"it hangs in {_show((outside or frames)[0])}" if frames else "and does not say where it hangs"

    def close(self) -> None:
        """Close this process's copy."""
        os.close(self._fd)


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
