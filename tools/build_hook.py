"""Adds to the wheel what is made of the code: the man pages.

Hatchling runs this when it builds a wheel, with poolsrv's own dependencies installed (pyproject.toml).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.builders.utils import get_reproducible_timestamp


class ManPages(BuildHookInterface):
    """Writes the man pages into a folder for the time of the build."""

    _folder: Path | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make the pages. An editable installation, whose help changes all the time, gets none."""
        if version == "editable":
            return
        sys.path.insert(0, self.root)
        from tools.man_pages import pages

        self._folder = Path(tempfile.mkdtemp(prefix="poolsrv-man-"))
        # The date: SOURCE_DATE_EPOCH, or the one that hatchling gives the files in the wheel.
        for name, text in pages(self.metadata.version, get_reproducible_timestamp()).items():
            path = self._folder / name
            path.write_text(text, encoding="ascii")
            build_data["shared_data"][str(path)] = f"share/man/man1/{name}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder)
