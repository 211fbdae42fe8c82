"""Links between Markdown files, as GitHub follows them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

_FENCE = re.compile(r"^( *)(```+|~~~+).*?^ *\2`*$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]+`")


class Link(NamedTuple):
    """A link of a page.

    :ivar path: relative to the page; empty for the page itself.
    :ivar anchor: of a heading; empty for none.
    """

    path: str
    anchor: str


def relative_links(text: str) -> Iterator[Link]:
    """The links of a page to files of the project."""
    for target in re.findall(r"\]\(([^)\s]+)\)", _CODE.sub("", _FENCE.sub("", text))):
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            yield Link(path, anchor)


def anchors_of(text: str) -> set[str]:
    """The anchors that GitHub makes of the headings of a page."""
    anchors: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", _FENCE.sub("", text), re.MULTILINE):
        shown = re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", heading)  # a link in a heading shows its text
        slug = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        number = 0
        while (anchor := f"{slug}-{number}" if number else slug) in anchors:
            number += 1
        anchors.add(anchor)
    return anchors
