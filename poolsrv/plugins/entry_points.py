"""A quick look for entry points, for those that a config names; the thorough one is discovery.installed().

Nearly every plugin is where installers put it: in a file ``NAME.dist-info/entry_points.txt`` in a folder of
``sys.path``. To look there takes half a millisecond; to import ``importlib.metadata``, which can do it also in archives
and by way of others' finders, takes 12, an eighth of a server's start. So who is found here, once, is taken; whoever
is not, or twice, is left to the thorough way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator


def find(group: str) -> dict[str, tuple[str, str]]:
    """Of each entry point that is found exactly once, by name: what it names, and the folder with its distribution's
    metadata."""
    found: dict[str, tuple[str, str]] = {}
    twice = set()
    for folder in _metadata_folders():
        try:
            with open(f"{folder}/entry_points.txt", encoding="utf-8") as file:
                lines = file.read().splitlines()
        except (OSError, ValueError):
            continue
        for name, target in _of_group(group, lines):
            if name in found:
                twice.add(name)
            found[name] = (target, folder)
    return {name: found[name] for name in found if name not in twice}


def version_of(distribution: str) -> str:
    """The version of an installed distribution, as the name of its metadata's folder has it; empty where there is no
    such folder.

    :param distribution: its name as such a folder has it: lower case, ``_`` for ``-``.
    """
    for folder in _metadata_folders():
        name, _, version = os.path.basename(folder).rpartition(".")[0].rpartition("-")
        if name == distribution:
            return version
    return ""


def _metadata_folders() -> Iterator[str]:
    for place in dict.fromkeys(sys.path):
        try:
            names = os.listdir(place or ".")
        except OSError:
            continue
        for name in names:
            if name.endswith((".dist-info", ".egg-info")):
                yield os.path.join(place, name)


def _of_group(group: str, lines: list[str]) -> Iterator[tuple[str, str]]:
    section = ""
    for line in map(str.strip, lines):
        if line.startswith("["):
            section = line.strip("[]")
        elif section == group and "=" in line and not line.startswith("#"):
            name, _, target = line.partition("=")
            yield name.strip(), target.strip()
