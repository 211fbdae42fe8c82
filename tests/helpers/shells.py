"""An interactive shell in a pseudoterminal, at whose prompt a test types."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

import pytest

from tests.helpers.server import TIMEOUT

PROMPT = "ready> "
# How to start each without the user's settings, how to load the completion of poolsrv, and to show the line on Ctrl-T.
SHELLS = {
    "bash": (
        ["--norc", "--noprofile", "-i"],
        'bind "set bell-style none"; bind "set show-all-if-ambiguous on"; eval "$(poolsrv completion bash)"; '
        """bind -x '"\\C-t": echo "<$READLINE_LINE>"'""",
    ),
    "zsh": (
        ["-f", "-i"],
        'unsetopt beep list_ambiguous; autoload -U compinit; compinit -u -D; eval "$(poolsrv completion zsh)"; '
        'show() { print -r -- "<$BUFFER>" }; zle -N show; bindkey "^T" show',
    ),
    "fish": (["--no-config", "-i"], "poolsrv completion fish | source"),
}
_ESCAPE = re.compile(r"\x1b(\[[?>=0-9;]*[a-zA-Z]|\].*?(\x07|\x1b\\)|[()][A-Z0-9]|[=>])")


class Shell:
    """A shell that knows the completion of poolsrv, in a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        arguments, setup = SHELLS[name]
        program = require(name)
        self._master, slave = os.openpty()
        os.set_blocking(self._master, False)
        self._process = subprocess.Popen(
            ["setsid", "--ctty", program, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env={**environment(folder), "TERM": "xterm", "COLUMNS": "200", "PS1": PROMPT, "PROMPT": PROMPT},
        )
        os.close(slave)
        self._output = ""
        self._type(f"{setup}; echo load''ed\n")
        self._wait_for(rf"loaded\s.*{PROMPT}")

    def __enter__(self) -> Shell:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._master)

    def complete(self, line: str) -> str:
        """Type a line, press Tab, and clear the line.

        :returns: the line as the shell has completed it.
        """
        self._output = ""
        self._type(f"{line}\t\x14")
        found = self._wait_for(r"<(poolsrv [^<>]*|true; [^<>]*)>")
        self._type("\x15")
        return found[1]

    def wait_for_list(self, line: str, expected: str) -> None:
        """Type a line that can be completed in several ways, press Tab, wait for the list of them, and clear the line.

        :param expected: a regular expression for what is shown then.
        """
        self._output = ""
        self._type(f"{line}\t")
        self._wait_for(expected)
        self._type("\x15")

    def _type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def _wait_for(self, pattern: str) -> re.Match[str]:
        deadline = time.monotonic() + TIMEOUT
        while not (found := re.search(pattern, _ESCAPE.sub("", self._output), re.DOTALL)):
            assert time.monotonic() < deadline, self._output
            if select.select([self._master], [], [], 0.2)[0]:
                self._output += os.read(self._master, 65536).decode(errors="replace")
        return found


def environment(folder: Path) -> dict[str, str]:
    """The environment of a shell: ``poolsrv`` is on its PATH, and the home directory is ``folder``."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {"PATH": path, "HOME": str(folder), "LANG": "C.UTF-8"}


def require(program: str) -> str:
    """The path of a program; the test is skipped where it is not installed, but not in CI, which installs it."""
    path = shutil.which(program)
    if path is None:
        if os.environ.get("CI"):
            pytest.fail(f"{program} is not installed: .ci/run has to install it")
        pytest.skip(f"{program} is not installed")
    return path
