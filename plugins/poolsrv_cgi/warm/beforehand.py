"""Which interpreters the scripts of a listener need: found when a worker starts, before anybody asks for a script.

An interpreter that the config names for a suffix counts as needed, where all scripts are to run warm. So does that of
each alias. Then the directories of scripts are looked through, the upper ones first, and files are judged as requests
for them would be. The look is bounded, and what it does not find is found by the first request.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator

from poolsrv_http import encode_path

from ..scripts import NoScript, Script, ScriptPaths, Tree, decode_path, find_decoded

__all__ = ["interpreters_needed"]

MOST_NAMES = 500  # files and directories that are looked at, over all directories of a listener
MOST_LEVELS = 4  # of directories: the one that the config names, and three below it

Command = tuple[str, ...]


def interpreters_needed(
    paths: ScriptPaths, command_for: Callable[[Script], Command | None]
) -> Iterator[Command | None]:
    """Find the commands of interpreters, some of them several times; None for each thing looked at in vain.

    It looks at the file system between two of them. So the caller decides how much of that is done at a time.

    :param command_for: the interpreter of a script that is to run warm; None where it is not to.
    """
    for url, _ in paths.aliases:
        yield _needed_by(paths, command_for, url)
    if paths.warm is True:
        for suffix, argv in paths.interpreters.items():
            if not paths.extensions or suffix in paths.extensions:
                name = f"/any{os.fsdecode(suffix)}"
                yield command_for(_any_script(argv, name))
    for path in _paths_below(paths.trees):
        yield _needed_by(paths, command_for, path) if path else None


def _any_script(argv: Command, name: str) -> Script:
    return Script(argv=(*argv, name), filename=name, directory="/", script_name=name, interpreted=True, warm=True)


def _needed_by(paths: ScriptPaths, command_for: Callable[[Script], Command | None], path: bytes) -> Command | None:
    decoded = decode_path(encode_path(path))
    found = decoded if isinstance(decoded, NoScript) else find_decoded(paths, decoded)
    return None if isinstance(found, NoScript) or found.nph or not found.warm else command_for(found)


def _paths_below(trees: list[Tree]) -> Iterator[bytes]:
    """The URL paths of files in the directories of scripts, decoded; empty for a directory, which comes later."""
    left = MOST_NAMES
    directories = deque((tree.root, b"/" + tree.prefix if tree.prefix else b"", 1) for tree in trees)
    while directories and left > 0:
        directory, url, level = directories.popleft()
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    left -= 1
                    if left < 0:
                        return
                    path = url + b"/" + entry.name
                    if not entry.is_dir(follow_symlinks=False):
                        yield path
                        continue
                    if level < MOST_LEVELS:
                        directories.append((entry.path, path, level + 1))
                    yield b""
        except OSError:
            continue  # it need not exist, nor be readable
