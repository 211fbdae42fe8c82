"""docs/contributing.md names files, classes and functions that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contributing.md").read_text()
# A path, and the names that follow it: `net/stream.py`, `Stream._on_event`
FILES = re.findall(r"`([\w/]+\.py)`((?:,? `(?![\w/]+\.py`)[A-Za-z_]+(?:\.\w+)?`)*)", PAGE)
FOLDERS = re.findall(r"`(\w[\w/]+/)`", PAGE)


def candidates(path: str) -> list[Path]:
    """Where a path of the page may be: from the root, in poolsrv/, or in a package of it named on the page before."""
    found = [ROOT / path, ROOT / "poolsrv" / path]
    return [*found, *(ROOT / "poolsrv").rglob(path)] if "/" not in path else found


@pytest.mark.parametrize(("path", "names"), sorted(set(FILES)))
def test_the_files_and_what_is_in_them_exist(path: str, names: str) -> None:
    files = [file for file in candidates(path) if file.is_file()]
    assert files, path
    for name in re.findall(r"`([\w.]+)`", names):
        cls, _, member = name.rpartition(".")
        pattern = rf"\b(?:def|class) {member}\b"
        assert any(re.search(pattern, file.read_text()) for file in files), f"{name} is not in {path}"
        assert not cls or any(f"class {cls}" in file.read_text() for file in files), f"{cls} is not in {path}"


@pytest.mark.parametrize("folder", sorted(set(FOLDERS)))
def test_the_folders_exist(folder: str) -> None:
    assert (ROOT / folder).is_dir() or (ROOT / "poolsrv" / folder).is_dir()


def test_names_are_found() -> None:
    assert ("net/stream.py", ", `Stream._on_event`") in FILES
    assert len(FOLDERS) > 3
