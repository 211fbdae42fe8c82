"""Lets griffe, which reads docstrings for the site, understand one field that describes several members."""

from __future__ import annotations

import re
from typing import Any

import griffe

# ``:ivar a, b: what they are``, with its further lines.
_SEVERAL = re.compile(r"^:ivar ((?:\w+, )+\w+):((?:.*)(?:\n[ \t]+.*)*)", re.MULTILINE)


class Fields(griffe.Extension):
    """Repeats such a field for each member."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object that has been read."""
        if obj.docstring is not None:
            obj.docstring.value = _SEVERAL.sub(_each, obj.docstring.value)


def _each(found: re.Match[str]) -> str:
    return "\n".join(f":ivar {name}:{found[2]}" for name in found[1].split(", "))
