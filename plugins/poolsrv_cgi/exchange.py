"""One HTTP request and its response: from the head to the last byte, with a program in between.

The way through, each step called by the one before or by an event:

    begin ── find the program, judge the body
      │ (a chunked body: spool it, on_input)
    admit ── a place among max_programs, or the queue
      │
    start ── environment, program, its input
      │
    on_output ── header, then body, as the program prints them (a slow client: on_writable)
      │
    finish ── once the output has ended and the program's end is known

Nothing waits for anything that it need not wait for: input, output and standard error are moved at the same time, and
a response goes out while its request is still coming in. The response is over when the program's output is; the
program's own end only decides whether it was whole. It is waited for `EXIT_GRACE` after the output, and the output,
which a grandchild may hold open, as long after the exit.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from poolsrv import PIPE, Child, Stream, Timer

from .accesslog import Entry
from .admission import Waiter
from .body import ChunkedDecoder, body_decoder
from .environment import http_environment
from .errorpage import error_response
from .paths import NoProgram, Program, find_program
from .programheader import BadResponse, ProgramHeader, ProgramHeaderParser
from .request import Request, RequestError, redirected
from .response import CONTINUE, Framing, Response, http_date
from .running import RunningProgram, own_peak
from .site import SOFTWARE
from .spool import Spool

if TYPE_CHECKING:
    from .httpserver import HttpConnection

__all__ = ["Exchange"]

EXIT_GRACE = 1.0  # seconds; see above
MAX_LOCAL_REDIRECTS = 10
RELAY_FROM = 65536  # bytes still to come from which the kernel moves them
RETRY_AFTER = 5  # seconds that a client which finds all places taken is asked to wait
SERVER_FIELD = b"poolsrv"


class Exchange:
    """See above. Lives in `HttpConnection.exchange` until the response is sent."""

    def __init__(self, http: HttpConnection, request: Request) -> None:
        self._http = http
        self._conn = http.conn
        self._server = http.server
        self._request = request
        self._first_request = request  # before local redirects; the one that the client knows of
        self._redirects = 0
        self._spool: Spool | None = None
        self._chunks: ChunkedDecoder | None = None
        self._found: Program
        self._body_end = 0  # where in the connection's input the body ends, counted as bytes_in is
        self._waiter: Waiter | None = None
        self._program: RunningProgram | None = None
        self._header_parser = ProgramHeaderParser(http.server.options.max_header_size)
        self._response: Response | None = None
        self._output_ended = False
        self._continued = False  # "100 Continue" was sent, or never asked for
        self._over = False
        self._timers: list[Timer] = []
        # for the access log
        self._began = http.head_began
        self._status = 0
        self._queued_at = 0.0
        self._queued: float | None = None
        self._first_byte: float | None = None
        self._body_bytes = 0

    # --- the request

    def begin(self) -> None:
        """The head is here."""
        request, options = self._request, self._server.options
        found = find_program(self._server.paths, request.path)
        try:
            decoder = body_decoder(request, options.max_body_size)
        except RequestError as error:
            self._conn.log.info("%s", error)
            self._answer(error.status, keep_alive=False)
            return
        self._continued = not request.expect_continue
        if isinstance(decoder, ChunkedDecoder):
            if isinstance(found, NoProgram):
                self._refuse(found, keep_alive=False)
                return
            self._found = found
            self._chunks = decoder
            self._spool = Spool(options.spool_memory)
            self._continue()
            self._watch_body()
            self.on_input()
            return
        self._body_end = self._position() + (request.content_length or 0)
        if isinstance(found, NoProgram):
            # Who waits for 100 and gets an error may send the body or not (RFC 9110 section 10.1.1): nobody can tell.
            self._refuse(found, keep_alive=self._continued)
            return
        self._found = found
        self._admit()

    def on_input(self) -> None:
        """Bytes have come: of a chunked body, or they stay where they are."""
        if self._chunks is None or self._spool is None or self._chunks.done:
            return
        data = self._conn.recv()
        chunks = self._chunks
        try:
            self._spool.write(chunks.feed(data))
        except RequestError as error:
            self._conn.log.info("%s", error)
            self._answer(error.status, keep_alive=False)
            return
        except OSError as error:
            self._conn.log.error("can't keep a request's body: %s", error.strerror)
            self._answer(507, keep_alive=False)
            return
        if chunks.done:
            self._conn.unread(chunks.surplus)
            self._body_end = self._position()
            self._admit()

    def _position(self) -> int:
        """How much of the connection's input has been taken."""
        return self._conn.bytes_in - len(self._conn.peek())

    def _continue(self) -> None:
        """The body is wanted (RFC 9110 section 10.1.1)."""
        if not self._continued:
            self._continued = True
            self._conn.send(CONTINUE)

    def _watch_body(self) -> None:
        """Look now and then whether the body still comes."""
        seconds = self._server.options.body_timeout
        if seconds:
            seen = self._conn.bytes_in
            self._later(seconds, lambda: self._check_body(seen))

    def _check_body(self, seen: int) -> None:
        if self._over or (self._chunks.done if self._chunks is not None else self._position() >= self._body_end):
            return
        if self._conn.bytes_in != seen:
            self._watch_body()
            return
        self._conn.log.info("no more of the request's body within body_timeout")
        if self._program is not None:
            self._program.end()
        if self._response is None:
            self._answer(408, keep_alive=False)
        else:
            self._conn.abort("body_timeout")

    def _later(self, seconds: float, callback: Callable[[], object]) -> None:
        self._timers.append(self._conn.call_later(seconds, callback))

    # --- a place for the program

    def _admit(self) -> None:
        admission = self._server.site.admission
        if admission.take():
            self._start()
            return
        self._queued_at = time.monotonic()
        self._waiter = Waiter(self._granted, self._busy)
        self._conn.hold()
        if not admission.wait(self._waiter):
            self._conn.release()
            self._waiter = None
            self._busy()

    def _granted(self) -> None:
        self._conn.release()
        self._waiter = None
        self._queued = time.monotonic() - self._queued_at
        self._start()

    def _busy(self) -> None:
        if self._waiter is not None:
            self._conn.release()
            self._waiter = None
        self._conn.log.info("max_programs are running: 503")
        self._answer(503, keep_alive=self._continued, retry_after=RETRY_AFTER)

    # --- the program

    def _start(self) -> None:
        request, found, server = self._request, self._found, self._server
        body_length = self._spool.size if self._spool is not None else request.content_length
        environment = http_environment(
            request,
            found,
            self._http.endpoints,
            base=server.site.base,
            fixed=server.options.environment,
            document_root=server.document_root,
            software=SOFTWARE,
            body_length=body_length,
            pass_authorization=server.options.pass_authorization,
        )
        stdin: int | None = PIPE if body_length else None
        if self._spool is not None and body_length and not self._spool.in_memory:
            stdin = self._spool.rewound_descriptor()
        program = RunningProgram(server.site, self._conn, found.script_name, self._program_ended)
        program.on_overdue = self._overdue
        try:
            child = program.start(
                found.argv,
                env=environment,
                cwd=found.directory,
                stdin=stdin,
                stdout=self._conn if found.nph else PIPE,
            )
        except OSError as error:
            self._conn.log.error("can't start %s: %s", found.filename, error.strerror)
            self._answer(500, keep_alive=self._continued)
            return
        self._program = program
        if found.nph:
            self._first_byte = time.monotonic() - self._began
        elif child.stdout is not None:
            child.stdout.on_readable = self._on_output
            self._watch_output(child.stdout)
        if child.stdin is not None:
            self._feed(child.stdin, body_length or 0)

    def _feed(self, stdin: Stream, length: int) -> None:
        """The request's body to the program's standard input. A program that does not read it is no error."""
        conn = self._conn
        if self._spool is not None:
            stdin.send(self._spool.contents())
            stdin.close()
        elif not conn.bytes_in < self._body_end:
            stdin.send(conn.recv(length))
            stdin.close()
        else:
            self._continue()
            self._watch_body()
            conn.relay_to(stdin, length, lambda moved: stdin.close())

    def _watch_output(self, stdout: Stream) -> None:
        """Look now and then whether the program still prints."""
        seconds = self._server.options.output_timeout
        if seconds:
            seen = stdout.bytes_in
            self._later(seconds, lambda: self._check_output(stdout, seen))

    def _check_output(self, stdout: Stream, seen: int) -> None:
        program = self._program
        if self._over or self._output_ended or program is None:
            return
        if stdout.bytes_in != seen or self._conn.congested:
            self._watch_output(stdout)
        else:
            program.end("output_timeout")

    # --- its output

    def _on_output(self, stdout: Stream) -> None:
        data = stdout.recv()
        if self._over:
            return  # what nobody wants any more
        if self._response is not None:
            self._pass_on(stdout, data)
        elif data:
            try:
                header = self._header_parser.feed(data)
            except BadResponse as error:
                self._fail(502, str(error))
                return
            if header is not None:
                self._on_header(header, stdout)
        if stdout.eof:
            self._on_output_end()

    def _on_header(self, header: ProgramHeader, stdout: Stream) -> None:
        if header.local:
            self._redirect(header.location)
            return
        request = self._request
        response = Response(
            header,
            method=request.method,
            version=request.version,
            keep_alive=request.keep_alive and not self._conn.draining and not self._too_much_unread(),
            date=http_date(),
            server=SERVER_FIELD,
        )
        self._response = response
        self._status = header.status
        self._first_byte = time.monotonic() - self._began
        body = self._header_parser.surplus
        if response.framing is Framing.LENGTH:
            body = body[: response.remaining]
        encoded = response.encode(body)
        if response.wants_body or response.framing is not Framing.NONE:
            self._body_bytes += len(body)
        self._conn.send(response.head + encoded)
        if not response.wants_body:
            # The client has all it will get; the rest of the output is read and thrown away.
            self._finish(complete=True)
        elif response.framing is not Framing.CHUNKED and not stdout.eof:
            length = response.remaining if response.framing is Framing.LENGTH else None
            if length is None or length >= RELAY_FROM:
                stdout.relay_to(self._conn, length, self._relayed)

    def _pass_on(self, stdout: Stream, data: bytes) -> None:
        response = self._response
        assert response is not None
        if data:
            if response.framing is Framing.LENGTH:
                data = data[: response.remaining]
            self._body_bytes += len(data)
            self._conn.send(response.encode(data))
            if not response.wants_body:
                self._finish(complete=True)
            elif self._conn.congested:
                stdout.pause_reading()

    def _relayed(self, moved: int) -> None:
        """The kernel has moved the body, or one side has ended."""
        response = self._response
        if response is None or self._over:
            return
        response.advance(moved)
        self._body_bytes += moved
        if not response.wants_body:
            self._finish(complete=True)

    def on_writable(self) -> None:
        """The client has caught up: the program may go on."""
        child = self._child()
        if child is not None and child.stdout is not None:
            child.stdout.resume_reading()

    def _on_output_end(self) -> None:
        if self._over or self._output_ended:
            return
        self._output_ended = True
        child = self._child()
        if child is None or child.returncode is not None:
            self._conclude()
        else:
            self._later(EXIT_GRACE, self._exit_waited_for)

    def _exit_waited_for(self) -> None:
        """The output has ended, and the program has not within the grace: the response is whole."""
        if not self._over:
            self._conclude()

    def _child(self) -> Child | None:
        return self._program.child if self._program is not None else None

    # --- its end

    def _program_ended(self, program: RunningProgram) -> None:
        """It has been reaped."""
        if program is not self._program:
            return  # of before a local redirect
        if self._over:
            self._log()
        elif self._found.nph:
            self._over = True
            self._log()
            self._http.finished(self._unread(), keep_alive=False)
        elif self._output_ended:
            self._conclude()
        else:
            self._await_output_end(program, -1)

    def _await_output_end(self, program: RunningProgram, seen: int) -> None:
        """The program has ended, its output has not: it is still on its way, or somebody else holds the pipe."""
        if self._over or self._output_ended or program.child is None or program.child.stdout is None:
            return
        received = program.child.stdout.bytes_in
        if received == seen and not self._conn.congested:
            self._output_ended = True
            self._conclude()
        else:
            self._later(EXIT_GRACE, lambda: self._await_output_end(program, received))

    def _conclude(self) -> None:
        """The output has ended and as much is known of the program's end as will be."""
        child = self._child()
        returncode = child.returncode if child is not None else None
        if self._response is None:
            self._fail(502, str(self._header_parser.end()))
        else:
            self._finish(complete=returncode is None or returncode >= 0)

    def _overdue(self) -> None:
        """It has been running, or silent, for too long, and is being ended."""
        if not self._over and self._response is None and not self._found.nph:
            self._fail(504, f"over its {self._program.overdue}" if self._program is not None else "")

    def _redirect(self, location: str) -> None:
        """A local redirect: the client gets what another request would get (RFC 3875 section 6.2.2)."""
        self._redirects += 1
        if self._program is not None:
            self._program.end()
        if self._redirects > MAX_LOCAL_REDIRECTS:
            self._fail(502, f"more than {MAX_LOCAL_REDIRECTS} local redirects")
            return
        self._request = redirected(self._request, location)
        found = find_program(self._server.paths, self._request.path)
        if isinstance(found, NoProgram):
            self._refuse(found, keep_alive=True)
            return
        self._found = found
        self._program = None
        self._output_ended = False
        self._header_parser = ProgramHeaderParser(self._server.options.max_header_size)
        if self._spool is not None:
            self._spool.close()
            self._spool = None
        self._admit()

    # --- the end of the exchange

    def _fail(self, status: int, reason: str) -> None:
        """The program is at fault: the client gets a short answer, the log the reason."""
        program = self._program
        if program is not None:
            words = program.last_words()
            program.log(logging.ERROR, f"{status}: {reason}" + (f"; its last words: {words}" if words else ""))
            program.end()
        self._answer(status, keep_alive=self._continued)

    def _refuse(self, found: NoProgram, keep_alive: bool) -> None:
        if found.status >= 400:
            self._conn.log.info("%d: %s", found.status, found.reason)
        location = found.location
        if location and self._request.query:
            location = f"{location}?{self._request.query}"
        self._answer(found.status, keep_alive=keep_alive, location=location)

    def _answer(self, status: int, *, keep_alive: bool, location: str = "", retry_after: float | None = None) -> None:
        """A response of the server's own; the exchange is over."""
        request = self._first_request
        keep_alive = keep_alive and request.keep_alive and not self._too_much_unread() and not self._conn.draining
        answer = error_response(
            status,
            accept=request.headers.get(b"accept", b""),
            method=request.method,
            version=request.version,
            keep_alive=keep_alive,
            location=location,
            retry_after=retry_after,
        )
        self._status = status
        self._first_byte = time.monotonic() - self._began
        self._body_bytes = len(answer.partition(b"\r\n\r\n")[2])
        self._conn.send(answer)
        self._end(keep_alive)

    def _finish(self, complete: bool) -> None:
        """The end of the body; what follows depends on whether the client has got it whole."""
        response = self._response
        assert response is not None
        self._conn.send(response.finish(complete))
        if not response.intact and response.framing is Framing.CLOSE:
            self._release()
            self._conn.abort("the program died")  # the end of the connection would look like the end of the body
            return
        self._end(response.keep_alive)

    def _end(self, keep_alive: bool) -> None:
        self._release()
        child = self._child()
        if child is None or child.returncode is not None:
            self._log()  # otherwise when the program has ended, which is soon in nearly every case
        self._http.finished(self._unread(), keep_alive)

    def abandon(self) -> None:
        """The connection is gone in the middle of it. The engine ends the program."""
        if self._waiter is not None:
            self._server.site.admission.cancel(self._waiter)
            self._waiter = None
        self._release()
        child = self._child()
        if child is None or child.returncode is not None:
            self._log()

    def _release(self) -> None:
        """It is over: what only the exchange needed."""
        self._over = True
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        if self._spool is not None:
            self._spool.close()

    def _unread(self) -> int:
        """Bytes of the request's body that have not been taken from the connection."""
        return max(self._body_end - self._position(), 0)

    def _too_much_unread(self) -> bool:
        return self._chunks is not None and not self._chunks.done

    def _log(self) -> None:
        server = self._server
        if not server.logs:
            return
        child, request = self._child(), self._first_request
        total = time.monotonic() - self._began
        usage = child.rusage if child is not None else None
        server.write_log(
            Entry(
                address=server.log_address(self._conn),
                time=time.time() - total,
                line=request.line,
                status=self._status,
                body_bytes=self._body_bytes,
                referer=request.headers.get(b"referer", b"").decode("utf-8", "surrogateescape"),
                agent=request.headers.get(b"user-agent", b"").decode("utf-8", "surrogateescape"),
                program=self._found.script_name if child is not None else "",
                queued=(self._queued or 0.0) if child is not None else None,
                first_byte=self._first_byte,
                total=total,
                returncode=child.returncode if child is not None else None,
                cpu=usage.ru_utime + usage.ru_stime if usage is not None else None,
                peak_memory=own_peak(usage),
            )
        )
