"""Importing configs in process: what comes out is always given to the code of ``poolsrv check``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import tomli

from poolsrv.cli.importing.document import Document
from poolsrv.cli.importing.files import read_services
from poolsrv.config import reader
from poolsrv.plugins import loader


class Imported:
    """A config that has been made.

    :ivar text: the whole of it.
    :ivar listeners: by name.
    :ivar notes: its comments, joined.
    """

    def __init__(self, document: Document, text: str) -> None:
        self.document = document
        self.text = text
        self.tables: dict[str, Any] = tomli.loads(text)
        self.listeners: dict[str, Any] = self.tables.get("listeners", {})
        comments = (line.lstrip("# ") for line in text.splitlines() if line.startswith("#"))
        self.notes = " ".join(comments)

    @property
    def only(self) -> dict[str, Any]:
        """The only listener."""
        (listener,) = self.listeners.values()
        assert isinstance(listener, dict)
        return listener

    @property
    def options(self) -> dict[str, Any]:
        """Its options of cgi."""
        options = self.only["cgi"]
        assert isinstance(options, dict)
        return options


Import: TypeAlias = Callable[..., Imported]


@pytest.fixture
def imported(tmp_path: Path) -> Import:
    """Write a file, import it with further ones, and check the result, if there is a listener in it."""

    def run(text: str = "", *more: Path, name: str = "conf", user: str | None = None) -> Imported:
        paths = list(more)
        if text:
            (tmp_path / name).write_text(text)
            paths.insert(0, tmp_path / name)
        document = Document(read_services(paths), user)
        result = Imported(document, document.text([str(path) for path in paths]))
        if result.listeners:
            config = tmp_path / "result.toml"
            config.write_text(result.text)
            draft = reader.read(config)
            draft.is_served = False  # as for `poolsrv check`
            loader.load_plugins(draft)
        return result

    return run
