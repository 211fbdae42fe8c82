"""Where a config has its sockets and files: what is wrong with that, on this machine and among themselves."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from ..net import addresses
from ..net.addresses import Address
from .errors import Key

if TYPE_CHECKING:
    from .draft import Draft, ListenerDraft


def check_overlaps(draft: Draft) -> None:
    """No address is listened on twice."""
    taken: list[tuple[ListenerDraft, Address]] = []
    for listener in draft.listeners:
        for address, place in listener.fields.get("bind", ()):
            for owner, earlier in taken:
                if addresses.overlap(earlier, address):
                    whose = "this listener" if owner is listener else owner.header
                    same = (
                        f"is an address of {whose} too"
                        if address == earlier
                        else f'overlaps with "{earlier}" of {whose}'
                    )
                    draft.problems.add(place, f'"{address}" {same}, expected each address once')
                    break
            taken.append((listener, address))


def check_folders(draft: Draft) -> None:
    """What is made in a directory needs that; only the control socket's is made where it is missing."""
    control = draft.pool.get("control")
    for key, file in ((("pool", "pidfile"), draft.pool.get("pidfile")), (("log", "file"), draft.log.get("file"))):
        if file is None:
            continue
        if file.is_dir():
            draft.problems.add(key, f"{file} is a directory, expected a file")
        elif control is None or file.parent != control.parent:
            _check_folder(draft, key, file.parent)
    if (folder := draft.pool.get("chdir")) is not None:
        _check_folder(draft, ("pool", "chdir"), folder)


def _check_folder(draft: Draft, key: Key, folder: Path) -> None:
    try:
        if not stat.S_ISDIR(folder.stat().st_mode):
            draft.problems.add(key, f"{folder} is no directory, expected one")
    except PermissionError:
        pass  # the server may be somebody who can see it
    except OSError as error:
        why = "there is no directory" if isinstance(error, FileNotFoundError) else f"{error.strerror}:"
        draft.problems.add(key, f"{why} {folder}, expected one")


def check_control(draft: Draft) -> None:
    """The control socket's path is short enough, and no listener's."""
    control = draft.pool.get("control")
    if control is None:
        return
    if (length := len(os.fsencode(control))) > addresses.LONGEST_UNIX_PATH:
        message = f"the path is {length} bytes long ({control}), expected at most {addresses.LONGEST_UNIX_PATH}"
        draft.problems.add(("pool", "control"), message)
    for listener in draft.listeners:
        for address, place in listener.fields.get("bind", ()):
            if address.path and os.path.normpath(address.path) == os.path.normpath(control):
                draft.problems.add(
                    place, f'"{address}" is the control socket of [pool] too, expected each address once'
                )
