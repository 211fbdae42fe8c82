"""Whom the pool runs as: a server that is started as root binds its addresses, and gives up all that root can do.

The order matters: supplementary groups first, then the group, then the user, each of them for good (the saved id too,
setresuid(2)). What was given up is then tried to be had again, which must fail. The kernel takes the capabilities by
itself where all user ids leave 0 (capabilities(7)).
"""

from __future__ import annotations

import ctypes
import grp
import os
import pwd
import resource
from pathlib import Path

import msgspec

from .errors import StartError
from .problems import did_you_mean, quoted

_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


class Identity(msgspec.Struct, frozen=True):
    """A user and a group.

    :ivar uid: None: the user stays who it is.
    :ivar name: the user's, for its supplementary groups; empty where a bare number was given.
    """

    uid: int | None
    gid: int | None
    name: str = ""


def user_of(wanted: str | int) -> tuple[int, int | None, str]:
    """The number of a user, its primary group, and its name.

    :raises ValueError: with what is wrong, and what was expected.
    """
    try:
        entry = pwd.getpwuid(wanted) if isinstance(wanted, int) else pwd.getpwnam(wanted)
    except KeyError:
        if isinstance(wanted, int):
            return wanted, None, ""
        known = did_you_mean(wanted, [entry.pw_name for entry in pwd.getpwall()])
        raise ValueError(f"no user {quoted(wanted)} on this machine, expected a user's name or number{known}") from None
    return entry.pw_uid, entry.pw_gid, entry.pw_name


def group_of(wanted: str | int) -> int:
    """The number of a group.

    :raises ValueError: with what is wrong, and what was expected.
    """
    if isinstance(wanted, int):
        return wanted
    try:
        return grp.getgrnam(wanted).gr_gid
    except KeyError:
        known = did_you_mean(wanted, [entry.gr_name for entry in grp.getgrall()])
        raise ValueError(
            f"no group {quoted(wanted)} on this machine, expected a group's name or number{known}"
        ) from None


def become(identity: Identity) -> None:
    """Be that user, and that group, from now on and for good.

    :raises StartError: this process may not, or it could go back.
    """
    uid = os.getuid() if identity.uid is None else identity.uid
    gid = os.getgid() if identity.gid is None else identity.gid
    if os.geteuid() != 0:
        if (uid, gid) == (os.getuid(), os.getgid()):
            return
        key = "pool.user" if uid != os.getuid() else "pool.group"
        raise StartError(f"{key}: only root can become somebody else, and this is user {os.getuid()}")
    try:
        if identity.name:
            os.initgroups(identity.name, gid)
        else:
            os.setgroups([gid])
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
    except OSError as error:
        raise StartError(f"can't become user {uid}, group {gid}: {error.strerror}") from None
    if os.getresuid() != (uid,) * 3 or os.getresgid() != (gid,) * 3 or (uid != 0 and _can_go_back()):
        raise StartError(f"user {uid} could become root again: giving up")


def _can_go_back() -> bool:
    try:
        os.setuid(0)
    except OSError:
        return False
    return True


def forbid_new() -> None:
    """No program that is started from here on gains anything by set-user-ID bits (PR_SET_NO_NEW_PRIVS, prctl(2)).

    :raises StartError: the kernel refuses.
    """
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise StartError(f"can't set no_new_privs: {os.strerror(ctypes.get_errno())}")


def enter(folder: Path) -> None:
    """Make it the working directory.

    :raises StartError: this user can't.
    """
    try:
        os.chdir(folder)
    except OSError as error:
        raise StartError(f"pool.chdir: can't change to {folder}: {error.strerror}") from None


def limit(number: int, value: int, key: str) -> None:
    """Set a resource limit: the soft one, and the hard one with it where that is lower and may be raised.

    :param number: ``resource.RLIMIT_*``.
    :param key: the key in the config.
    :raises StartError: it is above what this user may have.
    """
    hard = resource.getrlimit(number)[1]
    if hard != resource.RLIM_INFINITY and value > hard:
        try:
            resource.setrlimit(number, (value, value))
        except (OSError, ValueError):
            raise StartError(f"{key}: {value} is more than the {hard} that this user may have at most") from None
    else:
        resource.setrlimit(number, (value, hard))
