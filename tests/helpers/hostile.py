"""The corpus of hostile requests (`data/hostile_requests.toml`), in the chapters by which its cases are judged.

Each chapter is one test. With a test for each of the hundreds of cases, most of the time would go into the tests' own
setup and reports.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Case = dict[str, Any]

_CORPUS = tomllib.loads((Path(__file__).parents[1] / "data" / "hostile_requests.toml").read_text())
CASES: list[Case] = _CORPUS["case"]
CHAPTERS: dict[str, list[Case]] = {}
for _case in CASES:
    _chapter = re.match(r"CVE|RFC \d+ \d+", _case["section"])
    assert _chapter is not None, _case["section"]
    CHAPTERS.setdefault(_chapter[0], []).append(_case)


def bytes_of(case: Case) -> bytes:
    """What a case sends."""
    pad = case.get("pad", {"text": "", "times": 0})
    text: str = case["send"].replace("<PAD>", pad["text"] * pad["times"])
    return text.encode("latin-1")


def build_tree(directory: Path) -> Path:
    """The files that the corpus speaks of, below `directory`; the root of the programs."""
    root, outside = directory / "root", directory / "outside"
    outside.mkdir()
    for name, kind in {"../outside/secret.sh": "program", **_CORPUS["tree"]}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if kind == "directory":
            file.mkdir()
        elif kind == "fifo":
            os.mkfifo(file, 0o755)
        elif kind.startswith("-> "):
            file.symlink_to(kind[3:].replace("OUTSIDE", str(outside)).replace("ROOT", str(root)))
        else:
            file.write_text("#!/bin/sh\n")
            file.chmod(0o755 if kind == "program" else 0o644)
    return root


def check_each(chapter: str, check: Callable[[Case], None]) -> None:
    """Check each case of a chapter.

    :raises BaseExceptionGroup: of all that have failed, each with the name of its case.
    """
    failures = []
    for case in CHAPTERS[chapter]:
        try:
            check(case)
        except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - all that fail are told, then
            error.add_note(f"case: {case['name']}")
            failures.append(error)
    if failures:
        raise BaseExceptionGroup(f"{chapter}: {len(failures)} of {len(CHAPTERS[chapter])} cases", failures)
