"""Why a program can't be started, although its file exists: what is wrong with its first line. See execve(2)."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Sequence

__all__ = ["find_problem", "read_head", "why_not_started"]

_MOST = 256  # bytes of the first line that Linux reads
_MARK = b"\xef\xbb\xbf#!"
_EXPLAINED = {errno.ENOENT, errno.ENOEXEC, errno.EACCES}


def why_not_started(error: OSError, argv: Sequence[str], directory: str | None = None) -> str:
    """Say why a program has not been started, for the log.

    :param error: of the start.
    :param argv: what was to be executed.
    :param directory: the working directory that the program was to have; None for the server's own.
    """
    reason = error.strerror or str(error)
    problem = find_problem(argv, directory) if error.errno in _EXPLAINED else ""
    if error.errno == errno.ENOENT:  # what is missing need not be the file that the line of the log names
        return problem or "a loader or an interpreter that it needs does not exist"
    return f"{reason}: {problem}" if problem else reason


def find_problem(argv: Sequence[str], directory: str | None = None) -> str:
    """Find what would keep the kernel, or the interpreter, from running a file; empty if nothing would.

    Nothing is run. A binary that is not ELF gets no verdict, because the kernel may know its format (binfmt_misc).
    The parameters are those of `why_not_started`.
    """
    file = argv[0] if "/" in argv[0] else shutil.which(argv[0]) or argv[0]
    file = os.path.join(directory or "", file)
    missing = _missing(file)
    if missing:
        # With an interpreter of the config, the file that the log line names is another one.
        return f"the interpreter {_shown(argv[0])} {missing}" if len(argv) > 1 else f"it {missing}"
    head = read_head(file)
    if head is None:
        return ""
    line, newline, _ = head.partition(b"\n")
    if not line.startswith(b"#!"):
        return _no_line(head)
    if line.endswith(b"\r"):
        text = _shown(line[:-1])
        return f'its line 1, "{text}", ends in CR LF, expected LF alone: the CR counts as part of the last word'
    words = line[2:].strip(b" \t").split(maxsplit=1)
    if not words:
        return 'its "#!" line names no interpreter'
    if not newline and len(head) == _MOST and len(words) == 1:
        return f'its "#!" line is too long, expected fewer than {_MOST} bytes'
    missing = _missing(os.path.join(directory or "", os.fsdecode(words[0])))
    return f'its interpreter {_shown(words[0])} (line 1, "#!") {missing}' if missing else ""


def _no_line(head: bytes) -> str:
    if not head:
        return "it is empty"
    if head.startswith(_MARK):
        return 'a byte order mark (U+FEFF) is in front of its "#!"'
    return "" if b"\0" in head else 'it has no "#!" line'


def _missing(file: str) -> str:
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        return "does not exist"
    except (OSError, ValueError) as error:
        return f"can't be found: {getattr(error, 'strerror', None) or error}"
    if not stat.S_ISREG(mode):
        return "is not a regular file"
    return "" if os.access(file, os.X_OK, effective_ids=True) else "is not executable"


def read_head(file: str) -> bytes | None:
    """Read what the kernel reads of a file to learn how to run it; None if this process can't."""
    try:
        # Whoever may replace the file may put a FIFO or a device there: the worker must not wait for it.
        fd = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.read(fd, _MOST) if stat.S_ISREG(os.fstat(fd).st_mode) else None
    except OSError:
        return None
    finally:
        os.close(fd)


def _shown(name: bytes | str) -> str:
    """A name for one line of text; what can't be shown is escaped."""
    text = os.fsdecode(name)
    return text if text.isprintable() else re.sub(r"[^ -~]", lambda match: ascii(match[0])[1:-1], text)
