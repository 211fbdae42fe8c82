"""What a shell asks to complete a command line.

The scripts in ``completion_scripts/`` call ``poolsrv`` with two variables in the environment: the shell in
``_POOLSRV_COMPLETE``, as click has it, and the line up to the cursor in ``_POOLSRV_LINE``. The answer has a line for
each proposal: its type, the word and its meaning, with tabs in between. So the scripts know no command, and never go
stale. Types are ``plain``, and ``config``, ``file`` and ``dir``, for which the shell completes names of files itself.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final

from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, split_arg_string

_SCRIPTS: Final = Path(__file__).parent / "completion_scripts"


def script(shell: str) -> str:
    """The script that makes a shell complete the arguments of ``poolsrv``.

    :param shell: ``"bash"``, ``"zsh"`` or ``"fish"``.
    """
    return (_SCRIPTS / shell).read_text(encoding="utf-8")


def register() -> None:
    """Make click answer the scripts."""
    for shell in (_Bash, _Zsh, _Fish):
        add_completion_class(shell)


def split(line: str) -> tuple[list[str], str]:
    """Split a line up to the cursor into the words before the one at the cursor, without the program, and that one."""
    words = split_arg_string(line)
    at_cursor = words.pop() if words and not line[-1:].isspace() else ""
    return words[1:], at_cursor


class _Shell(ShellComplete):
    def source(self) -> str:
        return script(self.name)

    def get_completion_args(self) -> tuple[list[str], str]:
        return split(os.environ.get("_POOLSRV_LINE", ""))

    def format_completion(self, item: CompletionItem[Any]) -> str:
        return f"{item.type}\t{item.value}\t{' '.join((item.help or '').split())}"


class _Bash(_Shell):
    name = "bash"


class _Zsh(_Shell):
    name = "zsh"


class _Fish(_Shell):
    name = "fish"


SHELLS: Final = tuple(shell.name for shell in (_Bash, _Zsh, _Fish))
