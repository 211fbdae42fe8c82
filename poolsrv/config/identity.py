"""Look up the users and groups that a config names."""

from __future__ import annotations

import grp
import pwd

from ..core.words import did_you_mean, quoted

_HIGHEST = 2**32 - 2  # of users and groups; the next one means "unchanged" to the kernel (setresuid(2))


def user_of(wanted: str | int) -> tuple[int, int | None, str]:
    """Look up a user.

    :param wanted: a user's name or number.
    :returns: the user's number, primary group and name. A number that the user database does not have is returned
        with None and an empty name.
    :raises ValueError: there is no such user; the message says what was expected.
    """
    if isinstance(wanted, int):
        _check(wanted)
    try:
        entry = pwd.getpwuid(wanted) if isinstance(wanted, int) else pwd.getpwnam(wanted)
    except (KeyError, ValueError):  # the latter for a NUL, which no name has
        if isinstance(wanted, int):
            return wanted, None, ""
        known = did_you_mean(wanted, [entry.pw_name for entry in pwd.getpwall()])
        raise ValueError(f"no user {quoted(wanted)} on this machine, expected a user's name or number{known}") from None
    return entry.pw_uid, entry.pw_gid, entry.pw_name


def group_of(wanted: str | int) -> int:
    """Look up the number of a group.

    :param wanted: a group's name or number.
    :raises ValueError: there is no such group; the message says what was expected.
    """
    if isinstance(wanted, int):
        return _check(wanted)
    try:
        return grp.getgrnam(wanted).gr_gid
    except (KeyError, ValueError):
        known = did_you_mean(wanted, [entry.gr_name for entry in grp.getgrall()])
        raise ValueError(
            f"no group {quoted(wanted)} on this machine, expected a group's name or number{known}"
        ) from None


def _check(number: int) -> int:
    if not 0 <= number <= _HIGHEST:
        raise ValueError(f"got {number}, expected a name or a number from 0 to {_HIGHEST}")
    return number
