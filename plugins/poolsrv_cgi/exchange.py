"""One HTTP request that a program answers: from the request's head to the program's end.

The way through, each step called by the one before or by an event:

    begin ── find the program
      │ (the request's body: all of a chunked one, the first part of others)
    admit ── a permit (`max_programs`), or the queue
      │ (the worker's other events: programs that many requests ask for at once are started one right after the other)
    start ── environment, program; its input (`RequestBody.relay_to`) and its output (`output`) move by themselves
      │
    end ──── once the client has, or will have, all that it gets

Input, output and standard error are moved at the same time. A program that runs on after its response has nothing more
to do with the connection, and has the rest of its `timeout`. The line in the access log is written when both have
ended.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from poolsrv_http import Request, RequestHead, Response

from poolsrv import PIPE, Connection, Worker

from .cgi_header import CgiHeader
from .environment import SOFTWARE, http_environment
from .local_redirect import redirected
from .output import Output
from .process import Launch
from .programs.limiter import Waiter
from .programs.program import Program
from .programs.runner import ProgramRunner
from .scripts import NoScript, Script, ScriptPaths, decode_path, find_script, prefix_of
from .warm.beforehand import interpreters_needed

__all__ = ["CgiService", "Exchange"]

if TYPE_CHECKING:
    from poolsrv_http import FileService

RETRY_AFTER = 5  # seconds that a client is asked to wait where too many programs run, or there are no descriptors left


class CgiService:
    """The programs of one listener, found by the paths of requests."""

    def __init__(self, runner: ProgramRunner) -> None:
        options = runner.options
        self.runner = runner
        self.paths = ScriptPaths(
            root=options.root,
            prefix=options.prefix,
            roots=options.roots,
            index=options.index,
            extensions=options.extensions,
            interpreters=options.interpreters,
            aliases=options.aliases,
            nph=options.nph,
            warm=options.warm,
        )
        self.files: FileService | None = None
        if options.files:
            from poolsrv_http import FileService

            # Whatever link leads to a program, its source is not for clients.
            closed = [os.fsdecode(tree.real_root) for tree in self.paths.trees]
            closed += map(os.fspath, options.aliases.values())
            self.files = FileService(options.files, options.file_index, options, closed, tuple(options.interpreters))
        # Of programs; with files at the top they are what programs expect there.
        self.document_root = os.path.abspath(options.files["/"]) if "/" in options.files else None

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection."""
        if self.files is not None:
            self.files.open(worker)
        if self.paths.warm:
            warm = self.runner.warm
            warm.start_beforehand(interpreters_needed(self.paths, warm.command_for))

    def on_request(self, request: Request, response: Response) -> None:
        """Serve a request. See `poolsrv_http.HttpServer`."""
        if not self.send_file(request.head, request.conn, response):
            Exchange(self, request, response).begin()

    def send_file(self, head: RequestHead, conn: Connection, response: Response) -> bool:
        """Answer with a static file, or its absence.

        :returns: False where the path is a program's.
        """
        files = self.files_for(head)
        if files is not None:
            files.answer(head, conn, response)
        return files is not None

    def files_for(self, head: RequestHead) -> FileService | None:
        """The static files, if the path is theirs; None where it is a program's."""
        if self.files is None:
            return None
        path = decode_path(head.path)
        if isinstance(path, NoScript):
            return None
        below = self.files.prefix_of(path)
        program = prefix_of(self.paths, path)
        if below is None or (program is not None and len(program) >= len(below)):
            return None
        return self.files


class Exchange:
    """See above. The response refers to it until it has ended, and so does its program."""

    __slots__ = (
        "_conn", "_found", "_head", "_origin", "_output", "_program",
        "_redirects", "_request_body", "_response", "_runner", "_service", "_to_start", "_waiter",
    )  # fmt: skip

    def __init__(self, service: CgiService, request: Request, response: Response) -> None:
        self._service = service
        self._runner = service.runner
        self._conn = request.conn
        self._head: RequestHead = request.head
        self._origin = request.origin
        self._request_body = request.body
        self._response = response
        self._redirects = 0
        self._found: Script
        self._waiter: Waiter | None = None
        self._to_start: tuple[Program, Launch] | None = None  # with a permit
        self._program: Program | None = None
        self._output: Output | None = None

    # --- the request

    def begin(self) -> None:
        """Find the program, and wait for the body."""
        self._response.on_cancel = self._cancelled
        self._response.on_writable = self._on_writable
        found = find_script(self._service.paths, self._head.path)
        if isinstance(found, NoScript):
            self._refuse(found)
            return
        self._found = found
        capturing = self._runner.capturing
        self._request_body.prepare(self._admit, capturing.body if capturing is not None else 0)

    # --- a permit for the program

    def _admit(self) -> None:
        limiter = self._runner.limiter
        if limiter.acquire():
            self._start_soon(0.0)
            return
        self._waiter = Waiter(self._granted, self._busy)
        if not limiter.wait(self._waiter):
            self._busy()

    def _granted(self) -> None:
        waiter, self._waiter = self._waiter, None
        assert waiter is not None
        self._start_soon(waiter.waited)

    def _busy(self) -> None:
        self._waiter = None
        self._conn.log.info("max_programs are running: 503")
        self._answer(503, retry_after=RETRY_AFTER)

    # --- the program

    def _start_soon(self, queued: float) -> None:
        """Start the program at the end of this turn, with a permit that it has waited so many seconds for."""
        found, runner, body = self._found, self._runner, self._request_body
        program = Program(runner, self._conn, found.script_name, self._program_ended)
        program.on_overdue, program.queued = self._overdue, queued
        program.request, program.outcome = self._head.line, self._response.outcome
        if runner.capturing is not None and not self._redirects and body.length:
            program.body, program.body_length = body.first(runner.capturing.body), body.length
        try:
            launch = Launch(
                argv=found.argv,
                environment=self._environment(),
                cwd=found.directory,
                stdin=body.source() if not self._redirects else None,
                stdout=self._conn if found.nph else PIPE,
                warm=runner.warm.command_for(found) if found.warm and not found.nph else None,
                real_directory=found.real_directory,
            )
        except OSError as error:  # no descriptor for the body's file
            runner.limiter.release()
            self._cannot_start(error)
            return
        except BaseException:
            runner.limiter.release()
            raise
        self._to_start = program, launch
        runner.starts.add(self._conn, self._start)

    def _cannot_start(self, error: OSError) -> None:
        self._conn.log.error("can't start %s: %s", self._found.filename, error.strerror)
        self._answer(500)

    def _start(self) -> None:
        if self._to_start is None:  # cancelled
            return
        (program, launch), self._to_start = self._to_start, None
        found, body = self._found, self._request_body
        if found.nph and not body.is_here:
            body.ask()  # once the program has the connection, nothing else writes to it
        try:
            child = program.start(launch)
        except OSError as error:
            if error.errno != errno.ENOTCONN:  # then the client was faster, and `_cancelled` follows
                self._cannot_start(error)
            return
        self._program = program
        self._response.hold()
        outcome = self._response.outcome
        outcome.program, outcome.queued = program.name, program.queued
        if found.nph:
            self._response.take_over()
        elif child.stdout is not None:
            self._output = Output(self, self._response, self._conn, program, child.stdout)
        if child.stdin is not None:
            body.relay_to(child.stdin, self._fed)
        else:
            body.forget()

    def _environment(self) -> dict[str, str]:
        options = self._runner.options
        return http_environment(
            self._head,
            self._found,
            self._origin.endpoints,
            base=self._runner.base,
            fixed=options.environment,
            document_root=self._service.document_root or self._found.root,
            software=SOFTWARE,
            body_length=self._request_body.length if not self._redirects else None,
            pass_authorization=options.pass_authorization,
            user=self._origin.user,
            auth_type=self._origin.auth_type,
        )

    def _overdue(self, program: Program) -> str:
        """Answer 504 where the program is being ended for a timeout; returns a further part of the log message."""
        if program is not self._program or self._response.ended or self._response.started:
            return ""
        self._answer(504)
        return "; the client gets 504"

    def _program_ended(self, program: Program) -> None:
        """It has been reaped."""
        if program is not self._program:  # of before a local redirect
            if program.child is not None and program.child.stdout is not None:
                program.child.stdout.abort()
            return
        response, output = self._response, self._output
        outcome = response.outcome
        outcome.returncode, outcome.cpu, outcome.peak_memory = program.returncode, program.cpu, program.peak_memory
        if response.ended or output is None:
            self._request_body.drop()
        if output is not None:
            output.program_ended()
        elif not response.ended:  # nph
            response.end(program.ended_well)
        response.release()
        if response.ended:
            self._let_go()

    def _let_go(self) -> None:
        """Drop what refers back here: a circle would have to wait for the garbage collector."""
        self._program = self._output = None

    # --- its output (see `output.OutputOwner`)

    def await_body(self, begin: Callable[[], object]) -> bool:
        """The program has begun to answer: whether to wait, until `begin()` is called, for the request's body."""
        return self._response.await_body(begin)

    def on_header(self, header: CgiHeader, first: bytes, whole: bool) -> bool:
        """The program's header is here."""
        if self._program is not None:
            self._program.header = header
        if header.local:
            self._redirect(header.location)
            return False
        self._response.start_with(header, first, whole=whole)
        return True

    def on_bad_output(self, reason: str) -> None:
        """What the program prints is no CGI response."""
        self._fail(502, reason)

    def on_output_over(self, complete: bool) -> None:
        """The client has, or will have, all that the program gives it."""
        program, response, body = self._program, self._response, self._request_body
        assert program is not None
        if program.has_ended:
            body.drop()
        response.end(complete)
        if not response.intact:
            program.end()
        elif not body.is_being_taken:
            program.let_go()
        if program.has_ended:
            self._let_go()

    def body_is_awaited(self) -> bool:
        """Whether it is the client's turn: to send more of the request's body."""
        return self._request_body.is_awaited

    def _fed(self) -> None:
        """The program has the request's body, or wants no more of it."""
        if self._response.ended and self._program is not None:
            self._program.let_go()

    def _on_writable(self) -> None:
        if self._output is not None:
            self._output.on_writable()

    def _redirect(self, location: str) -> None:
        """A local redirect: the client gets what another request would get (RFC 3875 section 6.2.2)."""
        self._redirects += 1
        most = self._runner.options.max_local_redirects
        if self._redirects > most:
            self._fail(502, f"more local redirects than max_local_redirects ({most})")
            return
        self._drop_program()
        self._request_body.drop()
        self._head = redirected(self._head, location)
        if self._service.send_file(self._head, self._conn, self._response):
            return
        found = find_script(self._service.paths, self._head.path)
        if isinstance(found, NoScript):
            self._refuse(found)
            return
        self._found = found
        self._admit()

    def _drop_program(self) -> None:
        """Throw its further output away. It may go on, unless it still takes in the request's body."""
        if self._output is not None:
            self._output.discard()
            self._output = None
        program, self._program = self._program, None
        if program is not None:
            if self._request_body.is_being_taken:
                program.end()
            else:
                program.let_go()
            outcome = self._response.outcome
            outcome.program, outcome.queued = "", None
            if program.returncode is None:  # else `_program_ended` releases, or has
                self._response.release()

    # --- the end

    def _fail(self, status: int, reason: str) -> None:
        """Give the client a short answer and the log the reason: the program is at fault."""
        if self._program is not None:
            self._program.fail(f"{status}: {reason}")
        self._answer(status)

    def _refuse(self, found: NoScript) -> None:
        if found.status >= 400:
            self._conn.log.info("%d: %s", found.status, found.reason)
        location = found.location
        if location and self._head.query:
            location = f"{location}?{self._head.query}"
        self._answer(found.status, location=location, retry_after=RETRY_AFTER if found.status == 503 else None)

    def _answer(self, status: int, *, location: str = "", retry_after: float | None = None) -> None:
        """Answer without a program."""
        if self._response.ended:
            return
        if self._output is not None:
            self._output.discard()
        # A body that a program was to have is not waited for.
        self._response.error(status, location=location, retry_after=retry_after, wait=self._program is None)
        if self._program is not None and self._program.has_ended:
            self._let_go()

    def _cancelled(self) -> None:
        """End the program: the client is gone, or has got another answer."""
        if self._waiter is not None:
            self._runner.limiter.cancel(self._waiter)
            self._waiter = None
        if self._to_start is not None:
            self._to_start = None
            self._runner.limiter.release()
        if self._output is not None:
            self._output.discard()
        program = self._program
        if program is not None and (program.child is None or not program.child.outlives):
            program.end()
