"""A plugin in a distribution of its own: every line comes back in capitals."""

from __future__ import annotations

from typing import Annotated

import msgspec

from poolsrv import ConfigError, Connection, LineTooLong, hookimpl


class Shout:
    """Sends every line back in capitals."""

    class Options(msgspec.Struct, frozen=True):
        """What ``[listeners.NAME.shout]`` may have. poolsrv refuses unknown keys and wrong types."""

        ending: str = "!"
        longest_line: Annotated[int, msgspec.Meta(ge=1)] = 4096

    def __init__(self, options: Options) -> None:
        # A check that a type can't express. Open files and start threads in on_worker_start, not here.
        if "\n" in options.ending:
            raise ConfigError("ending", "has a line break, expected none: each answer is one line")
        self.ending = options.ending.encode()
        self.longest_line = options.longest_line

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        # Take all lines: those left in the buffer cause no further call by themselves.
        try:
            while (line := conn.recv_line(self.longest_line)) is not None:
                text = line.rstrip(b"\r\n")
                conn.send(text.upper() + self.ending + b"\n")
        except LineTooLong:
            conn.send(b"too long\n")
            conn.close("line too long")
