"""The command line in this process: it starts no interpreter, and imports nothing a second time.

For what a command prints and exits with. What depends on a process of its own, such as a server, its signals or its
imports, is tested with one.
"""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
from pathlib import Path

from click.testing import CliRunner

from poolsrv.cli.main import cli
from tests.helpers.server import open_descriptors


def invoke(*arguments: str | Path, cwd: Path, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """``poolsrv ARGUMENTS``, without a terminal.

    :param cwd: the working directory.
    :param environment: changes of the environment; None: without that variable.
    :raises Exception: what the command has not caught, in place of a traceback.
    """
    before = open_descriptors(os.getpid())
    with contextlib.chdir(cwd):
        result = CliRunner().invoke(cli, list(map(str, arguments)), env=environment, prog_name="poolsrv")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    completed = subprocess.CompletedProcess(list(arguments), result.exit_code, result.stdout, result.stderr)
    del result
    if open_descriptors(os.getpid()) != before:
        gc.collect()  # plugins that have been loaded have descriptors
    return completed
