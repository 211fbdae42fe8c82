"""Shared by all the old formats: a service, the comments about it, and an error with its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec


class BadSource(Exception):
    """The input can't be understood.

    :ivar lines: one message for each mistake, with ``FILE:LINE: `` in front.
    """

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


class Place(msgspec.Struct, frozen=True):
    """A line of a file.

    :ivar line: counted from 1; 0 for the file as a whole.
    """

    file: Path
    line: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else str(self.file)

    def mistake(self, message: str) -> BadSource:
        """Make an error about this place."""
        return BadSource(f"{self}: {message}")


class Service(msgspec.Struct, kw_only=True):
    """A service of the old server, as a listener.

    :ivar name: its old name; the listener's name is made of it.
    :ivar place: where it is in the old config.
    :ivar source: its old lines.
    :ivar bind: addresses, as the config writes them.
    :ivar listener: further keys of the listener, each with the comment beside it ("" for none).
    :ivar options: likewise the options of ``cgi``; empty for ``echo``.
    :ivar handler: ``cgi`` or ``echo``.
    :ivar command: what runs for each connection, and ``server`` the program in it.
    :ivar user: the user of its programs, ``group`` their group; empty: not said.
    :ivar lost: what has no counterpart, a sentence each.
    :ivar held_back: why it is not to be served as it stands: it would do more, or less safely, than the old one.
    :ivar disabled: it was switched off in the old config.
    """

    name: str
    place: Place
    source: list[str] = []
    bind: list[str] = []
    listener: dict[str, tuple[Any, str]] = {}
    options: dict[str, tuple[Any, str]] = {}
    handler: str = "cgi"
    command: tuple[str, ...] = ()
    server: str = ""
    user: str = ""
    group: str = ""
    lost: list[str] = []
    held_back: list[str] = []
    disabled: bool = False

    def lose(self, what: str, why: str) -> None:
        """Note something that has no counterpart.

        :param what: as the old config has it.
        :param why: what it means for the user.
        """
        self.lost.append(f"{what}: {why}")

    def set(self, key: str, value: object, comment: str = "") -> None:
        """Set a key of the listener."""
        self.listener[key] = (value, comment)

    def option(self, key: str, value: object, comment: str = "") -> None:
        """Set an option of ``cgi``."""
        self.options[key] = (value, comment)
