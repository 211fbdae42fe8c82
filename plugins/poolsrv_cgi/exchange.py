"""One HTTP request and its response: from the head to the last byte, with a program in between.

The way through, each step called by the one before or by an event:

    begin ── find the program, judge the body
      │ (collect its body: all of a chunked one, the first part of others; on_input)
    admit ── a place among max_programs, or the queue
      │
    start ── environment, program; its input (`requestbody`) and its output (`output`) move by themselves
      │
    end ──── once the client has, or will have, all that it gets
      │ (a program that still takes in the request's body: let it)
    leave ── the connection goes on to the next request, or closes

Nothing waits for anything that it need not wait for: input, output and standard error are moved at the same time, and
a response goes out while its request is still coming in. A program that runs on after its response has nothing more
to do with the connection: it has the rest of its `timeout`. The line in the access log is written when both are over.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from poolsrv_http import FramedResponse as Response
from poolsrv_http import Framing, RequestError, error_response, http_date, redirected
from poolsrv_http import RequestHead as Request

from poolsrv import PIPE

from .cgi_header import CgiHeader
from .environment import http_environment
from .outcome import Outcome
from .output import Output
from .process import Launch
from .programs.limiter import Waiter
from .programs.program import Program
from .requestbody import RequestBody
from .scripts import NoScript, Script, find_script
from .site import SOFTWARE

if TYPE_CHECKING:
    from .httpserver import HttpConnection

__all__ = ["Exchange"]

RETRY_AFTER = 5  # seconds that a client which finds all places taken is asked to wait
SERVER_FIELD = b"poolsrv"


class Exchange:
    """See above. Lives in `HttpConnection.exchange` until it is left, and in its program until that has ended."""

    __slots__ = (
        "_body", "_conn", "_first_request", "_found", "_http", "_keep_alive", "_left", "_origin", "_outcome", "_output",
        "_over", "_program", "_queued_at", "_redirects", "_request", "_response", "_server", "_waiter",
    )  # fmt: skip

    def __init__(self, http: HttpConnection, request: Request) -> None:
        self._http = http
        self._conn = http.conn
        self._server = http.server
        self._request = request
        self._first_request = request  # before local redirects; the one that the client knows of
        self._redirects = 0
        self._body: RequestBody | None = None
        self._found: Script
        self._waiter: Waiter | None = None
        self._program: Program | None = None
        self._output: Output | None = None
        self._response: Response | None = None
        self._over = False  # the client gets no more than it has got
        self._left = False
        self._keep_alive = False
        self._origin = http.origin
        self._outcome = Outcome(http.head_began)
        self._queued_at = 0.0

    # --- the request

    def begin(self) -> None:
        """The head is here."""
        request = self._request
        self._conn.hold()  # until it is left
        try:
            self._body = body = RequestBody(self._conn, request, self._server.site, self._body_stalled)
        except RequestError as error:
            self._refuse_body(error)
            return
        found = find_script(self._server.paths, request.path)
        if isinstance(found, NoScript):
            self._refuse(found)
            return
        self._found = found
        try:
            body.collect(self._admit, self.on_input)
        except (RequestError, OSError) as error:
            self._refuse_body(error)

    def on_input(self) -> None:
        """Bytes have come, or the end of the stream."""
        body = self._body
        if body is None:
            return
        if not body.awaits_rest and (self._over or self._program is not None or self._waiter is not None):
            return
        try:
            body.on_input()
        except (RequestError, OSError) as error:
            self._refuse_body(error)

    def _refuse_body(self, error: RequestError | OSError) -> None:
        if isinstance(error, RequestError):
            self._conn.log.info("%s", error)
            self._answer(error.status, keep_alive=False, retry_after=RETRY_AFTER if error.status == 503 else None)
        else:
            self._conn.log.error("can't keep a request's body: %s", error.strerror)
            self._answer(507, keep_alive=False)

    def _body_stalled(self) -> None:
        self._conn.log.info("no more of the request's body within body_timeout")
        if self._program is not None:
            self._program.end()
        silent = self._output is not None and self._response is None
        if self._over:
            self._keep_alive = False  # the client has its response, and the program will not get the rest
            self._leave()
        elif silent or self._program is None:
            self._answer(408, keep_alive=False)
        else:
            self._conn.abort("body_timeout")

    # --- a place for the program

    def _admit(self) -> None:
        limiter = self._server.site.runner.limiter
        if limiter.acquire():
            self._start()
            return
        self._queued_at = time.monotonic()
        self._waiter = Waiter(self._granted, self._busy)
        if not limiter.wait(self._waiter):
            self._busy()

    def _granted(self) -> None:
        self._waiter = None
        self._outcome.queued += time.monotonic() - self._queued_at
        self._start()

    def _busy(self) -> None:
        self._waiter = None
        self._conn.log.info("max_programs are running: 503")
        self._answer(503, retry_after=RETRY_AFTER)

    # --- the program

    def _start(self) -> None:
        """With a place taken."""
        found, server, body = self._found, self._server, self._body
        program = Program(server.site.runner, self._conn, found.script_name, self._program_ended)
        program.on_overdue = self._overdue
        try:
            environment = self._environment()
            stdin = body.source() if body is not None else None
            warm = server.site.runner.warm.command_for(found) if found.warm and not found.nph else None
        except BaseException:
            server.site.runner.limiter.release()
            raise
        if found.nph and body is not None and not body.is_here:
            body.ask()  # once the program has the connection, nobody else writes to it
        try:
            child = program.start(
                Launch(
                    argv=found.argv,
                    environment=environment,
                    cwd=found.directory,
                    stdin=stdin,
                    stdout=self._conn if found.nph else PIPE,
                    warm=warm,
                )
            )
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # then the client was faster, and `abandon` follows
                self._conn.log.error("can't start %s: %s", found.filename, error.strerror)
                self._answer(500)
            return
        self._program = program
        if found.nph:
            self._outcome.answered(0)
        elif child.stdout is not None:
            self._output = Output(self, self._conn, program, child.stdout)
        if body is not None:
            if child.stdin is not None:
                body.feed(child.stdin)
            else:
                body.forget()

    def _environment(self) -> dict[str, str]:
        server = self._server
        return http_environment(
            self._request,
            self._found,
            self._origin.endpoints,
            base=server.site.base,
            fixed=server.options.environment,
            document_root=server.document_root,
            software=SOFTWARE,
            body_length=self._body.length if self._body is not None else None,
            pass_authorization=server.options.pass_authorization,
            user=self._origin.user,
            auth_type=self._origin.auth_type,
        )

    def _overdue(self, program: Program) -> str:
        """The program has been running, or silent, for too long, and is being ended; what that means, for the log."""
        if program is not self._program or self._over or self._response is not None or self._found.nph:
            return ""
        self._answer(504)
        return "; the client gets 504"

    def _program_ended(self, program: Program) -> None:
        """It has been reaped."""
        if program is not self._program:  # of before a local redirect
            if program.child is not None and program.child.stdout is not None:
                program.child.stdout.abort()
            return
        if self._over or self._left:
            if self._body is not None and not self._left:
                self._leave()
            if self._output is not None:
                self._output.program_ended()
            self._finish()
        elif self._output is not None:
            self._output.program_ended()
        else:  # nph
            self._over = True
            if program.ended_well:
                self._leave()
            else:
                self._conn.abort("the program died")

    # --- its output (see `output.OutputOwner`)

    def await_body(self, begin: Callable[[], object]) -> bool:
        """The program has begun to answer: whether to wait, until `begin()` is called, for the request's body."""
        return self._body is not None and self._may_go_on() and self._body.await_rest(begin)

    def on_header(self, header: CgiHeader, whole: bool) -> Response | None:
        """The program's header is here."""
        if header.local:
            self._redirect(header.location)
            return None
        request, body = self._request, self._body
        whole = whole or request.method == "HEAD"
        goes_on = body is None or body.is_here or (body.is_being_fed and not whole)
        self._response = response = Response(
            header,
            method=request.method,
            version=request.version,
            keep_alive=goes_on and self._may_go_on(),
            date=http_date(),
            server=SERVER_FIELD,
        )
        self._outcome.answered(header.status)
        return response

    def on_bad_output(self, reason: str) -> None:
        """What the program prints is no CGI response."""
        self._fail(502, reason)

    def on_output_over(self, complete: bool) -> None:
        """The client has, or will have, all that the program gives it."""
        response = self._response
        assert response is not None
        self._conn.send(response.finish(complete))
        if not response.intact:
            if self._program is not None:
                self._program.end()
            if self._body is not None:
                self._body.stop()
            if response.framing is Framing.CLOSE:
                # Any other end of the connection would look like the end of the body.
                self._over = True
                self._conn.abort("the program died")
                return
        elif self._program is not None and (self._body is None or not self._body.is_being_fed):
            self._program.let_go()
        self._end(response.keep_alive)

    def body_is_awaited(self) -> bool:
        """Whether it is the client's turn: to send more of the request's body."""
        body = self._body
        return body is not None and body.is_being_fed and not body.is_here and not self._conn.relay_waits

    def on_writable(self) -> None:
        """The client has caught up."""
        if self._output is not None and not self._over:
            self._output.on_writable()

    def _redirect(self, location: str) -> None:
        """A local redirect: the client gets what another request would get (RFC 3875 section 6.2.2)."""
        self._redirects += 1
        most = self._server.options.max_local_redirects
        if self._redirects > most:
            self._fail(502, f"more local redirects than max_local_redirects ({most})")
            return
        self._drop_program()
        if self._body is not None:
            self._body.stop()
            self._body.length = None
        self._request = redirected(self._request, location)
        found = find_script(self._server.paths, self._request.path)
        if isinstance(found, NoScript):
            self._refuse(found)
            return
        self._found = found
        self._admit()

    def _drop_program(self) -> None:
        """Its output is of no use any more. It may go on, unless it still takes in the request's body."""
        if self._output is not None:
            self._output.discard()
            self._output = None
        if self._program is not None:
            if self._body is not None and self._body.is_being_fed:
                self._program.end()
            else:
                self._program.let_go()
            self._program = None

    # --- the end

    def _fail(self, status: int, reason: str) -> None:
        """The program is at fault: the client gets a short answer, the log the reason."""
        program = self._program
        if program is not None:
            program.fail(f"{status}: {reason}")
        self._answer(status)

    def _refuse(self, found: NoScript) -> None:
        if found.status >= 400:
            self._conn.log.info("%d: %s", found.status, found.reason)
        location = found.location
        if location and self._request.query:
            location = f"{location}?{self._request.query}"
        self._answer(found.status, location=location)

    def _answer(
        self, status: int, *, keep_alive: bool = True, location: str = "", retry_after: float | None = None
    ) -> None:
        """A response of the server's own; the exchange is over."""
        if self._over:
            return
        self._over = True
        if self._output is not None:
            self._output.discard()
        send = partial(self._send_answer, status, keep_alive, location, retry_after)
        if self._body is not None:
            self._body.stop()
            if keep_alive and self._program is None and self._may_go_on() and self._body.await_rest(send):
                return
        send()

    def _may_go_on(self) -> bool:
        return self._first_request.keep_alive and self._http.can_go_on()

    def _send_answer(self, status: int, keep_alive: bool, location: str, retry_after: float | None) -> None:
        request, body = self._first_request, self._body
        # Who waits for 100 and gets another answer may send the body or not (RFC 9110 section 10.1.1): where the next
        # request begins, nobody can tell.
        keep_alive = keep_alive and self._may_go_on() and (body is None or (body.is_here and body.continued))
        answer = error_response(
            status,
            accept=request.headers.get(b"accept", b""),
            method=request.method,
            version=request.version,
            keep_alive=keep_alive,
            location=location,
            retry_after=retry_after,
        )
        self._outcome.answered(status, len(answer.partition(b"\r\n\r\n")[2]))
        self._conn.send(answer)
        self._end(keep_alive)

    def _end(self, keep_alive: bool) -> None:
        self._over = True
        self._keep_alive = keep_alive
        program = self._program
        if program is None or program.has_ended or self._body is None or not self._body.when_fed(self._fed):
            self._leave()

    def _fed(self) -> None:
        """The program has the request's body, or wants no more of it, and the client had its response before."""
        if self._program is not None:
            self._program.let_go()
        self._leave()

    def _leave(self) -> None:
        if self._left:
            return
        self._left = True
        unread: int | None = 0
        if self._body is not None:
            self._body.stop()
            unread = self._body.unread
        self._outcome.ended_at = time.monotonic()
        if self._program is None or self._program.has_ended:
            self._finish()
        self._http.finished(unread, self._keep_alive)
        self._conn.release()

    def abandon(self) -> None:
        """The connection is gone in the midst of it."""
        if self._waiter is not None:
            self._server.site.runner.limiter.cancel(self._waiter)
            self._waiter = None
        self._over = self._left = True
        self._outcome.ended_at = time.monotonic()
        if self._body is not None:
            self._body.stop()
        if self._output is not None:
            self._output.discard()
        program = self._program
        if program is not None and (program.child is None or not program.child.outlives):
            program.end()
        if program is None or program.has_ended:
            self._finish()

    def _finish(self) -> None:
        """Both the exchange and its program are over: log, and let go of what refers back here, for what is in a
        circle would have to wait for the garbage collector."""
        if self._output is not None and self._response is not None:
            self._outcome.body_bytes = self._output.body_bytes
        self._outcome.tell(self._server, self._origin, self._first_request, self._program)
        if self._body is not None:
            self._body.is_over()
        self._program = self._output = self._body = self._response = None
