"""Drops privileges: a server that is started as root binds its addresses, and then becomes another user.

The order matters: first what belongs to root's session (sessions.py), then supplementary groups, the group, and the
user, each of them for good (the saved id too, setresuid(2)). Then an attempt to become root again must fail. The kernel
drops the capabilities itself when all user ids change from 0 (capabilities(7)).

Plugins are imported after that. If Python itself, or an installed package, is in a folder that only root can enter, one
capability is kept until the plugins are imported: to read.
"""

from __future__ import annotations

import logging
import os
import resource
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from ..errors import StartError
from . import sessions
from .capabilities import gain_no_more, set_capabilities
from .copy_of_process import answer_of_copy
from .libc import prctl

_PR_SET_KEEPCAPS = 8  # linux/prctl.h
_CAP_DAC_OVERRIDE = 1  # linux/capability.h
_CAP_DAC_READ_SEARCH = 2

log = logging.getLogger("poolsrv.privileges")

_keeps_reading = False


class Identity(NamedTuple):
    """A user and a group.

    :ivar uid: None: the user does not change.
    :ivar name: the user's name, for its supplementary groups; empty if only a number was given.
    """

    uid: int | None
    gid: int | None
    name: str = ""


def has_to_become(identity: Identity | None) -> bool:
    """Whether this process is root, and has to become another user."""
    return os.geteuid() == 0 and identity is not None and identity.uid not in (None, 0)


def become(identity: Identity, keep_reading: bool = False) -> None:
    """Become that user and that group, for good.

    :param keep_reading: keep the capability to read every file, until ``stop_reading``.
    :raises StartError: this process may not, or it could become root again.
    """
    uid = os.getuid() if identity.uid is None else identity.uid
    gid = os.getgid() if identity.gid is None else identity.gid
    if os.geteuid() != 0:
        if (uid, gid) == (os.getuid(), os.getgid()):
            return
        key = "pool.user" if uid != os.getuid() else "pool.group"
        raise StartError(f"{key}: only root can become another user, and this is user {os.getuid()}")
    if uid != 0:
        sessions.leave()
    try:
        if identity.name:
            os.initgroups(identity.name, gid)
        else:
            os.setgroups([gid])
        os.setresgid(gid, gid, gid)
        if keep_reading:
            prctl(_PR_SET_KEEPCAPS, 1)
        os.setresuid(uid, uid, uid)
        if keep_reading:
            _keep_reading()
    except OSError as error:
        raise StartError(f"can't become user {uid}, group {gid}: {error.strerror}") from None
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or (uid != 0 and _can_go_back()):
        raise StartError(f"user {uid} could become root again: giving up")


def become_for_imports(identity: Identity) -> str:
    """Become that user, before plugins are imported.

    :returns: a folder that Python imports from and that the user can't read, or empty. If there is one, this process
        can read it until ``stop_reading``.
    :raises StartError: as ``become``.
    """
    global _keeps_reading
    if not has_to_become(identity):
        become(identity)
        return ""
    folders = [folder for folder in sys.path if folder not in ("", os.getcwd()) and os.path.isdir(folder)]
    folder = _first_unreadable(identity, folders)
    become(identity, keep_reading=bool(folder))
    _keeps_reading = bool(folder)
    return folder


def _first_unreadable(identity: Identity, folders: Iterable[str]) -> str:
    """Ask the kernel, in a child process that becomes that user."""

    def look() -> str:
        become(identity)
        return next((folder for folder in folders if not os.access(folder, os.R_OK | os.X_OK)), "")

    return answer_of_copy(look)


def _keep_reading() -> None:
    """Keep only the capability to read; where root lacks even that, as in containers, the one to read and write."""
    for kept in (1 << _CAP_DAC_READ_SEARCH, 1 << _CAP_DAC_OVERRIDE, 0):
        with suppress(OSError):
            set_capabilities(kept)
            break
    prctl(_PR_SET_KEEPCAPS, 0)


def keeps_reading() -> bool:
    """Whether this process can read files that its user can't, until ``stop_reading``."""
    return _keeps_reading


def stop_reading() -> None:
    """Drop the capability that ``become_for_imports`` has kept, if it has: plugins are imported.

    :raises StartError: the kernel refuses.
    """
    global _keeps_reading
    if not _keeps_reading:
        return
    _keeps_reading = False
    try:
        set_capabilities(0)
    except OSError as error:
        raise StartError(f"can't give up capabilities: {error.strerror}") from None


def _can_go_back() -> bool:
    try:
        os.setuid(0)
    except OSError:
        return False
    return True


def forbid_new() -> None:
    """Keep programs that are started from now on from gaining privileges by set-user-ID bits (PR_SET_NO_NEW_PRIVS).

    :raises StartError: the kernel refuses.
    """
    try:
        gain_no_more()
    except OSError as error:
        raise StartError(f"can't set no_new_privs: {error.strerror}") from None


def enter(folder: Path | None) -> None:
    """Change the working directory.

    :param folder: None: stay; but change to ``/`` if this user can't enter the current one, where no program could be
        started.
    :raises StartError: this user can't enter it.
    """
    if folder is None:
        try:
            os.close(os.open(".", os.O_PATH | os.O_DIRECTORY))
        except OSError as error:
            log.warning(
                "the working directory is / from now on: user %d can't enter the one where the server was started (%s)",
                os.geteuid(),
                error.strerror,
            )
            os.chdir("/")
        return
    try:
        os.chdir(folder)
    except OSError as error:
        raise StartError(f"pool.chdir: can't change to {folder}: {error.strerror}") from None


def limit(number: int, value: int, key: str) -> None:
    """Set the soft resource limit, and raise the hard one if it is lower.

    :param number: ``resource.RLIMIT_*``.
    :param key: the key in the config, for the error.
    :raises StartError: this user may not raise the hard limit.
    """
    hard = resource.getrlimit(number)[1]
    if hard != resource.RLIM_INFINITY and value > hard:
        try:
            resource.setrlimit(number, (value, value))
        except (OSError, ValueError):
            raise StartError(f"{key}: {value} is more than the {hard} that this user may have at most") from None
    else:
        resource.setrlimit(number, (value, hard))
