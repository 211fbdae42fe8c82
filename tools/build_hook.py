"""Adds to the wheel what is made of the code: the man pages, and the compiled modules where they are asked for.

Hatchling runs this when it builds a wheel, with poolsrv's own dependencies installed (pyproject.toml). A wheel is
compiled only if the environment has POOLSRV_COMPILE=1; then mypy is installed for the build too.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.builders.utils import get_reproducible_timestamp


class MadeOfTheCode(BuildHookInterface):
    """Makes these files in a folder for the time of the build."""

    _folder: Path | None = None

    def dependencies(self) -> list[str]:
        """What a build needs besides what pyproject.toml names."""
        self._find_tools()
        from tools import compiled

        return list(compiled.REQUIRES) if compiled.is_wanted() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Make them. An editable installation, whose code and help change all the time, gets none."""
        if version == "editable":
            return
        self._find_tools()
        from tools import compiled
        from tools.man_pages import pages

        self._folder = Path(tempfile.mkdtemp(prefix="poolsrv-build-"))
        # The date: SOURCE_DATE_EPOCH, or the one that hatchling gives the files in the wheel.
        for name, text in pages(self.metadata.version, get_reproducible_timestamp()).items():
            path = self._folder / name
            path.write_text(text, encoding="ascii")
            build_data["shared_data"][str(path)] = f"share/man/man1/{name}"
        if compiled.is_wanted():
            for path, place in compiled.compile_modules(Path(self.root), self._folder).items():
                build_data["force_include"][str(path)] = place
            build_data["pure_python"] = False
            build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the folder."""
        if self._folder is not None:
            shutil.rmtree(self._folder)

    def _find_tools(self) -> None:
        if self.root not in sys.path:
            sys.path.insert(0, self.root)
