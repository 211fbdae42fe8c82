"""Ask ``poolsrv check`` about a config that has been written, and make comments of the listeners that it refuses."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .document import Document
from .service import BadSource

_LISTENER = re.compile(r"listeners\.([A-Za-z0-9_-]+)(?:\.[\w.\[\]]+)?: (.*)", re.DOTALL)
TIMEOUT = 120.0  # seconds


def accepted_text(document: Document, sources: Sequence[str]) -> str:
    """The text of a document that ``poolsrv check`` accepts on this machine.

    :raises BadSource: it is refused for a reason that no listener has.
    """
    while document.served:
        text = document.text(sources)
        problems = _problems(text)
        if not problems:
            return text
        if not [line for line in problems if _hold_back(document, line)]:
            raise BadSource(*(f"poolsrv check refuses the generated config: {line}" for line in problems))
    return document.text(sources)


def _hold_back(document: Document, line: str) -> bool:
    match = _LISTENER.fullmatch(line)
    return match is not None and document.hold_back(match[1], f"`poolsrv check` refuses it here: {match[2]}")


def _problems(text: str) -> list[str]:
    with tempfile.TemporaryDirectory(prefix="poolsrv-import-") as folder:
        config = Path(folder) / "poolsrv.toml"
        config.write_text(text)
        command = [sys.executable, "-m", "poolsrv", "check", "--config", str(config)]
        try:
            result = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=TIMEOUT
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BadSource(f"poolsrv check can't be run: {error}") from None
    if result.returncode == 0:
        return []
    return [line.removeprefix(f"{config}: ") for line in result.stderr.splitlines()] or ["poolsrv check has failed"]
