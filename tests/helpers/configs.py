"""Configs as text, and their errors."""

from __future__ import annotations

from pathlib import Path

from poolsrv.config.errors import ConfigErrors
from poolsrv.config.reader import read

FORMS = '"127.0.0.1:7007", "[::1]:7007", ":7007" or "unix:run/hello.sock"'
LISTENER = '[listeners.a]\nbind = ":7007"\nhandler = "echo"\n'


def errors(tmp_path: Path, text: str) -> list[str]:
    """The error messages of a config, without the file's name; empty if it is right."""
    path = tmp_path / "test.toml"
    path.write_text(text)
    try:
        read(path).finish()
    except ConfigErrors as error:
        return [line.removeprefix(f"{path}: ") for line in str(error).splitlines()]
    return []


def error_of_listener(tmp_path: Path, lines: str) -> list[str]:
    """The error messages of a config with one listener that has these lines."""
    defaults = {"bind": '":7007"', "handler": '"echo"'}
    for key, value in defaults.items():
        if not any(line.startswith(f"{key} ") for line in lines.splitlines()):
            lines = f"{key} = {value}\n{lines}"
    return errors(tmp_path, f"[listeners.www]\n{lines}")
