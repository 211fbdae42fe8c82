"""The command of a service.

What the old server did for a program before its start, and cgi has no option for, a shell does: it is replaced by the
program (``exec``), so there is no further process.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence

SHELL = "/bin/sh"


class Preparation:
    """What a shell is to do before a program starts. Without any, the program starts by itself."""

    def __init__(self) -> None:
        self._steps: list[str] = []
        self._redirections = ""
        self._name = ""

    def limit(self, letter: str, number: int | str) -> None:
        """Set a resource limit that has no option: ``ulimit -d``."""
        self._steps.append(f"ulimit -{letter} {number}")

    def show(self, file: str) -> None:
        """Send a file to the client first."""
        self._steps.append(f"cat {shlex.quote(file)}")

    def enter(self, directory: str) -> None:
        """Change the working directory."""
        self._steps.append(f"cd {shlex.quote(directory)} || exit 1")

    def export(self, assignment: str) -> None:
        """Set a variable; the value is a shell word."""
        self._steps.append(f"export {assignment}")

    def redirect(self, redirections: str) -> None:
        """Give the program other descriptors."""
        self._redirections += f" {redirections}"

    def call_it(self, name: str) -> None:
        """Give the program another name for itself than its path (argv[0])."""
        self._name = name

    def apply(self, argv: Sequence[str]) -> tuple[str, ...]:
        """The whole command."""
        name = self._name if self._name != argv[0] else ""
        if not (self._steps or self._redirections or name):
            return tuple(argv)
        shell = "/bin/bash" if name and os.path.exists("/bin/bash") else SHELL  # dash has no exec -a
        step = f'exec {f"-a {shlex.quote(name)} " if name else ""}"$0" "$@"{self._redirections}'
        return (shell, "-c", "; ".join([*self._steps, step]), *argv)
