"""docs/contributing.md names files, classes and functions that exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "contributing.md").read_text()
# A path, and the names that follow it: `net/stream.py`, `Stream._on_event`
FILES = re.findall(r"`([\w/]+\.py)`((?:,? `(?![\w/]+\.py`)[A-Za-z_]+(?:\.\w+)?`)*)", PAGE)
FOLDERS = re.findall(r"`(\w[\w/]+/)`", PAGE)


def candidates(path: str) -> list[Path]:
    """Where a path of the page may be: from the root, in poolsrv/, or in a package of it named on the page before."""
    found = [ROOT / path, ROOT / "poolsrv" / path]
    return [*found, *(ROOT / "poolsrv").rglob(path)] if "/" not in path else found


def missing(path: str, names: str) -> list[str]:
    """What the page says of a file and is not so."""
    files = [file for file in candidates(path) if file.is_file()]
    if not files:
        return [path]
    texts = [file.read_text() for file in files]
    wrong = []
    for name in re.findall(r"`([\w.]+)`", names):
        cls, _, member = name.rpartition(".")
        if not any(re.search(rf"\b(?:def|class) {member}\b", text) for text in texts):
            wrong.append(f"{name} is not in {path}")
        if cls and not any(f"class {cls}" in text for text in texts):
            wrong.append(f"{cls} is not in {path}")
    return wrong


def test_the_files_and_what_is_in_them_exist() -> None:
    assert [wrong for path, names in sorted(set(FILES)) for wrong in missing(path, names)] == []


def test_the_folders_exist() -> None:
    assert [each for each in FOLDERS if not ((ROOT / each).is_dir() or (ROOT / "poolsrv" / each).is_dir())] == []


def test_names_are_found() -> None:
    assert ("net/stream.py", ", `Stream._on_event`") in FILES
    assert len(FOLDERS) > 3
