"""Users and groups of the old configs, on this machine."""

from __future__ import annotations

from ...config import identity


def value(name: str) -> str | int:
    """A user or group as the config writes it: a name, or a number."""
    return int(name) if name.isascii() and name.isdigit() and len(name) < 10 else name


def has_user(name: str) -> bool:
    """Whether there is such a user. A number need not be in the user database."""
    try:
        return identity.user_of(value(name))[1] is not None
    except ValueError:
        return False


def has_group(name: str) -> bool:
    """Whether there is such a group."""
    try:
        identity.group_of(value(name))
    except ValueError:
        return False
    return True


def is_root(name: str) -> bool:
    """Whether a user is root, by whatever name."""
    try:
        return identity.user_of(value(name))[0] == 0
    except ValueError:
        return False
