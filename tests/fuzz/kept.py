"""The kept corpus: a file for each target, with an input in each line, escaped as Python escapes bytes."""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "corpus"


def read(name: str) -> list[bytes]:
    """The inputs of a target. A line that begins with "# " says of the next one what it has found."""
    file = FOLDER / f"{name}.txt"
    if not file.exists():
        return []
    lines = file.read_text("ascii").splitlines()
    return [unescaped(line) for line in lines if not line.startswith("# ")]


def notes(name: str) -> list[str]:
    """The lines that are to stay: what has been found, and the inputs that have found it."""
    file = FOLDER / f"{name}.txt"
    kept: list[str] = []
    for line in file.read_text("ascii").splitlines() if file.exists() else ():
        if line.startswith("# ") or (kept and kept[-1].startswith("# ")):
            kept.append(line)
    return kept


def write(name: str, inputs: Iterable[bytes]) -> None:
    """Keep these inputs, the short ones first, beside those with notes."""
    noted = notes(name)
    lines = [escaped(data) for data in sorted(set(inputs), key=lambda data: (len(data), data))]
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.txt").write_text("".join(f"{line}\n" for line in [*noted, *dict.fromkeys(lines)] if line))


def escaped(data: bytes) -> str:
    """A line of ASCII, which does not begin as a note does."""
    line = codecs.escape_encode(data)[0].decode("ascii")
    return f"\\x23{line[1:]}" if line.startswith("#") else line


def unescaped(line: str) -> bytes:
    """The input that a line stands for."""
    data = codecs.escape_decode(line)[0]
    assert isinstance(data, bytes)
    return data
