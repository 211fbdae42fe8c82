"""Configs with plugins, loaded in this process."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolsrv.config.errors import ConfigErrors
from poolsrv.plugins.loader import load
from poolsrv.worker.spec import ServerSpec

PLAIN = """
    from poolsrv import hookimpl

    class Plain:
        @hookimpl
        def on_readable(self, conn):
            return None
"""


def write(tmp_path: Path, lines: str) -> Path:
    path = tmp_path / "test.toml"
    path.write_text(lines if "[listeners" in lines else f'[listeners.www]\nbind = ":0"\n{lines}\n')
    return path


def serve(tmp_path: Path, lines: str) -> ServerSpec:
    return load(write(tmp_path, lines))


def errors(tmp_path: Path, lines: str) -> list[str]:
    """The error messages of a config, without the file's name."""
    path = write(tmp_path, lines)
    with pytest.raises(ConfigErrors) as error:
        load(path)
    return [line.removeprefix(f"{path}: ") for line in str(error.value).splitlines()]


def where(site: Path, line: int) -> str:
    return f"({site}/bad.py, line {line})"
