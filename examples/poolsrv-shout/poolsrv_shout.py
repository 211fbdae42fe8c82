"""A plugin in a distribution of its own: every line comes back in capitals."""

from __future__ import annotations

from typing import Annotated

import msgspec

from poolsrv import ConfigError, Connection, LineTooLong, hookimpl


class Shout:
    """Sends every line back in capitals."""

    class Options(msgspec.Struct, frozen=True):
        """What ``[listeners.NAME.shout]`` may have. Unknown keys and wrong types are poolsrv's to refuse."""

        ending: str = "!"
        longest_line: Annotated[int, msgspec.Meta(ge=1)] = 4096

    def __init__(self, options: Options) -> None:
        # What a type can't say. Here nothing is opened and no thread is started: on_worker_start is for that.
        if "\n" in options.ending:
            raise ConfigError("ending", "has a line break, expected none: each answer is one line")
        self.ending = options.ending.encode()
        self.longest_line = options.longest_line

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        # All lines that are there: what is left in the buffer causes no further call by itself.
        try:
            while (line := conn.recv_line(self.longest_line)) is not None:
                text = line.rstrip(b"\r\n")
                conn.send(text.upper() + self.ending + b"\n")
        except LineTooLong:
            conn.send(b"too long\n")
            conn.close("line too long")
