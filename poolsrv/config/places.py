"""Check the places that a config names on this machine: addresses, directories, and the control socket's path."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..net import addresses
from ..net.addresses import Address
from .draft import Draft, ListenerDraft
from .errors import Key


def check(draft: Draft) -> None:
    """Check all of them."""
    check_directories(draft)
    check_overlaps(draft)
    check_control(draft)


def check_directories(draft: Draft) -> None:
    """Files need a directory. Only that of the control socket is made if it is missing."""
    control = draft.pool.get("control")
    for key, file in ((("pool", "pidfile"), draft.pool.get("pidfile")), (("log", "file"), draft.log.get("file"))):
        if file is None:
            continue
        if file.is_dir():
            draft.problems.add(key, f"{file} is a directory, expected a file")
        elif control is None or file.parent != control.parent:
            _check_directory(draft, key, file.parent)
    if (directory := draft.pool.get("chdir")) is not None:
        _check_directory(draft, ("pool", "chdir"), directory)


def _check_directory(draft: Draft, key: Key, directory: Path) -> None:
    try:
        if not stat.S_ISDIR(directory.stat().st_mode):
            draft.problems.add(key, f"{directory} is not a directory, expected one")
    except PermissionError:
        pass  # the server may run as a user who can see it
    except OSError as error:
        why = "there is no directory" if isinstance(error, FileNotFoundError) else f"{error.strerror}:"
        draft.problems.add(key, f"{why} {directory}, expected one")


def check_overlaps(draft: Draft) -> None:
    """No address is listened on twice."""
    taken: list[tuple[ListenerDraft, Address]] = []
    for listener in draft.listeners:
        for address, place in listener.placed("bind"):
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


def check_control(draft: Draft) -> None:
    """The control socket's path is short enough for a unix socket, and is not a listener's address."""
    control = draft.pool.get("control")
    if control is None:
        return
    if (length := len(os.fsencode(control))) > addresses.LONGEST_UNIX_PATH:
        message = f"the path is {length} bytes long ({control}), expected at most {addresses.LONGEST_UNIX_PATH}"
        draft.problems.add(("pool", "control"), message)
    for listener in draft.listeners:
        for address, place in listener.placed("bind"):
            if address.path and os.path.normpath(address.path) == os.path.normpath(control):
                message = f'"{address}" is the control socket of [pool] too, expected each address once'
                draft.problems.add(place, message)
