"""The page of a directory: what is in it, sorted, with sizes and dates.

File names are untrusted: text is escaped, links are percent-encoded and begin with `./`, and the page may load nothing.
The page is made in a thread, because looking at thousands of files takes a while.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from html import escape
from urllib.parse import quote_from_bytes

import msgspec

from .tree import Tree

__all__ = ["LISTING_FIELDS", "MAX_ENTRIES", "listing"]

MAX_ENTRIES = 10_000  # on one page

LISTING_FIELDS = {
    "Content-Type": "text/html; charset=utf-8",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'",
}
_STYLE = """\
:root { color-scheme: light dark }
body { font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }
h1 { font-size: 1.3rem; overflow-wrap: anywhere }
table { border-collapse: collapse; width: 100% }
th, td { padding: .2rem .5rem; text-align: left; vertical-align: top; border-bottom: 1px solid #8884 }
td:first-child { overflow-wrap: anywhere }
.n { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums }
"""


class Entry(msgspec.Struct, frozen=True):
    """One line of the page."""

    name: bytes
    is_directory: bool
    size: int
    modified: float


def listing(tree: Tree, directory: bytes, path: bytes) -> bytes:
    """Make the page of a directory, in UTF-8.

    :param directory: its name.
    :param path: its URL path, decoded.
    :raises OSError: it can't be read.
    """
    entries: list[Entry] = []
    there_are_more = False
    for entry in _entries(tree, directory):
        if len(entries) == MAX_ENTRIES:
            there_are_more = True
            break
        entries.append(entry)
    entries.sort(key=lambda entry: (not entry.is_directory, entry.name.lower(), entry.name))
    title = f"Index of {_text(path)}"
    lines = [
        "<!DOCTYPE html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>",
        f"<style>\n{_STYLE}</style>",
        f"<h1>{title}</h1>",
        '<table>\n<thead><tr><th>Name<th class="n">Size<th class="n">Modified (UTC)</thead>\n<tbody>',
    ]
    if path != b"/":
        lines.append('<tr><td><a href="../">../</a><td class="n"><td class="n">')
    lines += map(_row, entries)
    lines.append("</tbody>\n</table>")
    if there_are_more:
        lines.append(f"<p>There is more; the first {MAX_ENTRIES:,} are shown.")
    return ("\n".join(lines) + "\n").encode()


def _entries(tree: Tree, directory: bytes) -> Iterator[Entry]:
    """What a client could get: files and directories, no names with a dot in front, no links out of the tree."""
    with os.scandir(directory) as found:
        for one in found:
            if one.name.startswith(b"."):
                continue
            try:
                status = one.stat()
                if (tree.closed or one.is_symlink()) and not tree.holds(one.path):
                    continue
            except OSError:
                continue  # a link to nowhere, or gone by now
            is_directory = stat.S_ISDIR(status.st_mode)
            if is_directory or stat.S_ISREG(status.st_mode):
                yield Entry(one.name, is_directory, status.st_size, status.st_mtime)


def _row(entry: Entry) -> str:
    slash = "/" if entry.is_directory else ""
    size = "" if entry.is_directory else human_size(entry.size)
    return (
        f'<tr><td><a href="./{quote_from_bytes(entry.name, safe="")}{slash}">{_text(entry.name)}{slash}</a>'
        f'<td class="n"{_exactly(entry)}>{size}<td class="n">{_date(entry.modified)}'
    )


def _exactly(entry: Entry) -> str:
    return "" if entry.is_directory else f' title="{entry.size:,} bytes"'


def _text(name: bytes) -> str:
    return escape(name.decode("utf-8", "replace"))


def _date(seconds: float) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M", time.gmtime(seconds))
    except (OverflowError, OSError, ValueError):  # some file systems keep any number
        return ""


def human_size(size: int) -> str:
    """A number of bytes in at most four digits: 1.5 KiB."""
    amount, units = float(size), iter(("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"))
    unit = next(units)
    while amount >= 1023.5:
        amount, unit = amount / 1024, next(units)
    return f"{amount:.1f} {unit}" if unit != "B" and amount < 99.95 else f"{amount:.0f} {unit}"
