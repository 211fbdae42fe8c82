"""A program's output on its way to the client: header, then body, as the program prints them.

A slow client slows the program down: nothing is read from the pipe while the connection is congested. Where the framing
allows it, the kernel moves the body from the pipe to the socket.

The output ends when its pipe does. Then the program's exit, which decides whether the output was whole, is waited for,
but not longer than `EXIT_GRACE`. A grandchild may hold the pipe open after the program's exit; then the output goes on
as long as something comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from poolsrv_http import Response, Watch

from poolsrv import Connection, Stream, Timer

from .cgi_header import BadResponse, CgiHeader, CgiHeaderParser
from .options import Options
from .programs.program import Program

__all__ = ["Output", "OutputOwner"]

EXIT_GRACE = 1.0  # seconds; see above
HELD_LIMIT = 65536  # bytes kept for a response that is not to be sent yet


class OutputOwner(Protocol):
    """What an output calls. After `on_bad_output` or `on_output_over` it calls nothing more."""

    def await_body(self, begin: Callable[[], object]) -> bool:
        """The header is here.

        :returns: True where nothing is to be sent before `begin()` is called.
        """

    def on_header(self, header: CgiHeader, first: bytes, whole: bool) -> bool:
        """The header is here, and the first bytes of the body, or all of it if it is whole.

        :returns: True where the response has been started. False: the rest of the output is of no use.
        """

    def body_is_awaited(self) -> bool:
        """Whether the program may be silent because its client has not sent all of the request's body."""

    def on_bad_output(self, reason: str) -> None:
        """The output is not a CGI response."""

    def on_output_over(self, complete: bool) -> None:
        """The client has, or will have, all that it gets.

        :param complete: False where the program has not ended well.
        """


class Output:
    """The output of one program."""

    __slots__ = (
        "_conn", "_ended", "_held", "_options", "_owner", "_parser", "_program", "_response", "_silent", "_started",
        "_stdout", "_timer", "_watch",
    )  # fmt: skip

    def __init__(
        self, owner: OutputOwner, response: Response, conn: Connection, program: Program, stdout: Stream
    ) -> None:
        options = program.runner.options
        self._owner = owner
        self._conn = conn
        self._options: Options = options
        self._program = program
        self._stdout = stdout
        self._parser = CgiHeaderParser(options.max_header_size, options.max_header_fields)
        self._response = response
        self._started = False
        self._held: tuple[CgiHeader, bytearray] | None = None  # what is not to be sent yet
        self._ended = False
        self._silent = False  # nothing is called any more, and what comes is thrown away
        self._timer: Timer | None = None
        self._watch: Watch | None = Watch(self._progress, self._too_long_silent)
        program.runner.output_timeout.add(self._watch)
        stdout.on_readable = self._on_readable

    def discard(self) -> None:
        """Throw away what still comes. The program may print on, and does not notice until the connection ends."""
        if self._silent:
            return
        self._silent = True
        self._watch_no_more()
        if self._timer is not None:
            self._timer.cancel()
        # What has a reference to this is let go: a cycle would have to wait for the garbage collector.
        self._stdout.on_readable = _throw_away
        if self._program.has_ended:
            self._stdout.abort()
        else:
            self._stdout.resume_reading()

    def on_writable(self) -> None:
        """Let the program go on: the client has taken what was kept for it."""
        if self._watch is not None:
            self._watch.excuse()
        self._stdout.resume_reading()

    # --- bytes

    def _on_readable(self, stdout: Stream) -> None:
        data = stdout.recv()
        if not self._silent and data:
            if self._started:
                self._pass_on(data)
            elif self._held is not None:
                self._held[1].extend(data)
            else:
                self._parse(data)
        if self._held is not None:
            if len(self._held[1]) > HELD_LIMIT:
                self._begin()
        elif stdout.eof and not self._silent:
            self._on_end()

    def _parse(self, data: bytes) -> None:
        try:
            header = self._parser.feed(data)
        except BadResponse as error:
            self._owner.on_bad_output(str(error))
            return
        if header is None:
            return
        self._held = header, bytearray(self._parser.surplus)
        if header.local or not self._owner.await_body(self._begin):
            self._begin()

    def _begin(self) -> None:
        """Send what is here."""
        if self._held is None or self._silent:
            return
        (header, held), self._held = self._held, None
        length = header.content_length
        whole = self._stdout.eof or (length is not None and len(held) >= length)
        self._started = self._owner.on_header(header, bytes(held), whole)
        if not self._started or self._silent:
            return
        if not self._response.wants_body:
            # The client has all it will get.
            self._over(True)
        elif not self._stdout.eof:
            self._response.relay_from(self._stdout, self._relayed)
        if self._stdout.eof and not self._silent:
            self._on_end()

    def _pass_on(self, data: bytes) -> None:
        self._response.send(data)
        if not self._response.wants_body:
            self._over(True)
        elif self._response.congested:
            self._stdout.pause_reading()

    def _relayed(self) -> None:
        """The kernel has moved the body, or one side has ended."""
        if not self._silent and not self._response.wants_body:
            self._over(True)

    # --- its end

    def _on_end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._watch_no_more()
        if self._program.has_ended:
            self._conclude()
        else:
            self._timer = self._conn.call_later(EXIT_GRACE, self._conclude)

    def program_ended(self) -> None:
        """The program has been reaped."""
        if self._silent:
            self._stdout.abort()
        elif self._ended:
            self._conclude()
        elif not self._stdout.eof or self._held is not None:
            # The output is still on its way, or another process holds the pipe.
            self._await_end(-1)

    def _await_end(self, seen: int) -> None:
        if self._silent or self._ended:
            return
        received = self._stdout.bytes_in
        timeout = self._options.timeout
        if timeout and time.monotonic() - self._program.started_at > timeout:
            self._program.end("timeout")
            self._over(False)
        elif received == seen and not self._client_is_slow():
            self._conclude()
        else:
            self._timer = self._conn.call_later(EXIT_GRACE, lambda: self._await_end(received))

    def _conclude(self) -> None:
        """End the output: no more will be known of the program's exit."""
        self._begin()
        if self._silent:
            return
        if not self._started:
            self._owner.on_bad_output(str(self._parser.end()))
        else:
            self._over(self._program.ended_well)

    def _over(self, complete: bool) -> None:
        if not self._silent:
            self.discard()
            self._owner.on_output_over(complete)

    # --- timeouts

    def _client_is_slow(self) -> bool:
        return self._conn.congested or self._stdout.relay_waits

    def _progress(self) -> int | None:
        return None if self._client_is_slow() or self._owner.body_is_awaited() else self._stdout.bytes_in

    def _too_long_silent(self) -> None:
        self._program.end("output_timeout")

    def _watch_no_more(self) -> None:
        if self._watch is not None:
            self._program.runner.output_timeout.remove(self._watch)
            self._watch = None


def _throw_away(stdout: Stream) -> None:
    """Stand in for an output that is not read any more."""
    stdout.recv()
