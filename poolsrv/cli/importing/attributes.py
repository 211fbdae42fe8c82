"""The attributes of xinetd.conf(5)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from .service import Place

# Those that are lists: they take += and -=, and may come several times.
SETS: Final = frozenset(("only_from", "no_access", "log_on_success", "log_on_failure", "passenv", "env"))
_SERVICE: Final = frozenset(("id", "type", "disable", "server", "server_args", "port", "redirect"))
_ANYWHERE: Final = frozenset(
    (
        "access_times", "banner", "banner_fail", "banner_success", "bind", "cps", "deny_time",
        "flags", "group", "groups", "instances", "interface", "libwrap", "log_type", "max_load",
        "mdns", "nice", "per_source", "protocol", "rlimit_as", "rlimit_cpu", "rlimit_data",
        "rlimit_files", "rlimit_rss", "rlimit_stack", "rpc_number", "rpc_version", "socket_type",
        "umask", "user", "v6only", "wait",
    )
)  # fmt: skip
ATTRIBUTES: Final = SETS | _SERVICE | _ANYWHERE
DEFAULTS: Final = SETS | _ANYWHERE | {"disabled", "enabled"}

_UNITS: Final = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Attribute:
    """One attribute of an entry.

    :ivar place: where it stands first.
    :ivar values: what is set, or added.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.values: list[str] = []
        self._removed: list[str] = []
        self._inherits = True

    def change(self, operator: str, values: list[str], place: Place) -> None:
        """Apply one line of it: ``=``, ``+=`` or ``-=``."""
        self.place = place
        if operator == "-=":
            self._removed += values
        elif operator == "=":
            self.values, self._removed, self._inherits = list(values), [], False
        else:
            self.values += values

    def over(self, default: Attribute | None) -> list[str]:
        """The values, together with those of ``defaults`` where they are added to them."""
        inherited = default.values if self._inherits and default is not None else []
        return [value for value in (*inherited, *self.values) if value not in self._removed]


class Attributes:
    """The attributes of one service, over those of ``defaults``. What is never asked for is found by ``left``."""

    def __init__(self, own: Mapping[str, Attribute], defaults: Mapping[str, Attribute]) -> None:
        self._own = own
        self._defaults = defaults
        self._asked: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._own or name in self._defaults

    def place(self, name: str) -> Place:
        """Where an attribute that is there stands."""
        return (self._own.get(name) or self._defaults[name]).place

    def all(self, name: str) -> list[str]:
        """The values of an attribute; empty if it is not there."""
        self._asked.add(name)
        own, default = self._own.get(name), self._defaults.get(name)
        if own is not None:
            return own.over(default if name in SETS else None)
        return list(default.values) if default is not None else []

    def text(self, name: str, default: str = "") -> str:
        """An attribute of one value.

        :raises BadSource: it has several, or none.
        """
        if name not in self:
            return default
        values = self.all(name)
        if len(values) != 1:
            raise self.place(name).mistake(f'"{name}" has {len(values)} values, expected one')
        return values[0]

    def yes(self, name: str) -> bool | None:
        """A boolean; None if it is not there.

        :raises BadSource: it is neither yes nor no.
        """
        value = self.text(name).lower()
        if value not in ("", "yes", "no", "true", "false", "on", "off"):
            raise self.place(name).mistake(f'"{name}" is "{value}", expected yes or no')
        return value in ("yes", "true", "on") if value else None

    def number(self, name: str) -> int | None:
        """A number, with K, M or G behind it; None if it is not there, or UNLIMITED.

        :raises BadSource: it is no number.
        """
        value = self.text(name)
        if value.upper() in ("", "UNLIMITED"):
            return None
        match = re.fullmatch(r"(-?\d{1,18})([KMG]?)", value, re.IGNORECASE | re.ASCII)
        if match is None:
            raise self.place(name).mistake(f'"{name}" is "{value}", expected a number')
        return int(match[1]) * _UNITS[match[2].upper()]

    def left(self) -> list[tuple[str, str]]:
        """What has not been asked for: pairs of name and value."""
        names = [*self._own, *(name for name in self._defaults if name not in self._own)]
        return [(name, " ".join(self.all(name))) for name in names if name not in self._asked]
