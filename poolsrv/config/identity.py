"""Users and groups of the config."""

from __future__ import annotations

import grp
import pwd

from ..core.words import did_you_mean, quoted


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
