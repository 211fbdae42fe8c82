"""Find entry points quickly: those that installers put in the usual place.

Nearly every plugin is in a file ``NAME.dist-info/entry_points.txt`` in a directory of ``sys.path``. Reading those files
takes half a millisecond. Importing ``importlib.metadata``, which also looks into archives and asks other finders, takes
12, an eighth of a server's start. So a plugin that is found here exactly once is used; ``discovery.installed`` finds
the others.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator


def find(group: str) -> dict[str, tuple[str, str]]:
    """Find the entry points of a group that exist exactly once.

    :returns: by name, what the entry point refers to, and the directory with its distribution's metadata.
    """
    found: dict[str, tuple[str, str]] = {}
    twice = set()
    for directory in _metadata_directories():
        try:
            with open(f"{directory}/entry_points.txt", "rb", buffering=0) as file:
                text = file.read()
            lines = text.decode().splitlines() if group.encode() in text else []
        except (OSError, ValueError):
            continue
        for name, target in _of_group(group, lines):
            if name in found:
                twice.add(name)
            found[name] = (target, directory)
    return {name: found[name] for name in found if name not in twice}


def version_of(distribution: str) -> str:
    """The version of an installed distribution, from the name of its metadata directory.

    :param distribution: the distribution's name as in such a directory: lower case, ``_`` for ``-``.
    :returns: empty if there is no such directory.
    """
    for directory in _metadata_directories():
        name, _, version = os.path.basename(directory).rpartition(".")[0].rpartition("-")
        if name == distribution:
            return version
    return ""


def _metadata_directories() -> Iterator[str]:
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
