"""The lines of a file, each with its place."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import msgspec

from .service import Place

_EXPECTED = "expected a config of inetd or xinetd, or a .socket unit"
LARGEST = 1 << 20  # bytes; no config is that long


class Line(msgspec.Struct, frozen=True):
    """A line without its end."""

    text: str
    place: Place

    @property
    def is_significant(self) -> bool:
        """Whether it is neither empty nor a comment."""
        return bool(self.text.strip()) and not self.text.lstrip().startswith(("#", ";"))


def _split(path: Path, text: str) -> list[Line]:
    """Split at line feeds only: that is what the old programs do."""
    return [Line(line.rstrip("\r"), Place(path, number)) for number, line in enumerate(text.split("\n"), 1)]


def read_lines(path: Path) -> list[Line]:
    """Read a file. Bytes that are not UTF-8 become surrogate escapes.

    :raises BadSource: it is no text, or too long to be a config.
    :raises OSError: it can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise Place(path).mistake(f"not a regular file, {_EXPECTED}")
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise Place(path).mistake(f"more than {LARGEST} bytes, {_EXPECTED}")
    if control := re.search(rb"[\0-\x08\x0e-\x1f\x7f]", data):
        place = Place(path, data.count(b"\n", 0, control.start()) + 1)
        raise place.mistake(f"not text: byte {control[0][0]:#04x}, {_EXPECTED}")
    return _split(path, data.decode("utf-8-sig", "surrogateescape"))
