"""The plugin: connections, their requests, and the answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import msgspec

from poolsrv import ConfigError, Connection, Worker, hookimpl

from . import commands
from .append_file import AppendFile, Fsync
from .commands import CommandError
from .protocol import OK, ProtocolError, Requests, error
from .store import Store

REQUESTS_PER_TURN: Final = 200  # of one client, before the others have theirs
ANSWERS_PER_SEND: Final = 65536  # bytes
LAST_CALL: Final = 0.05  # seconds in which a request that is under way at a reload still arrives


class Session:
    """What belongs to one connection.

    :ivar goes_on: ``call_soon`` will go on with its requests.
    :ivar is_last: it is closed once what has come is answered.
    """

    def __init__(self, requests: Requests) -> None:
        self.requests = requests
        self.goes_on = False
        self.is_last = False


class Resp:
    """A small Redis server: strings that expire, and an append-only file."""

    class Options(msgspec.Struct, frozen=True):
        """What ``[listeners.NAME.resp]`` may have.

        :ivar file: the append-only file. Without it, all is lost at each reload.
        :ivar fsync: when the disk has to have a change: before the client is told of it, within a second or so, or when
            the system sees fit. A crash of the server itself loses nothing in any case.
        :ivar compact_from: bytes from which on the file is compacted when it has doubled.
        :ivar max_value: the most bytes of a key or a value.
        :ivar max_arguments: the most arguments of a request, its name included.
        :ivar max_request: the most bytes of all arguments of a request.
        :ivar max_memory: the most bytes of all keys and values; 0: no limit.
        """

        file: Path | None = None
        fsync: Fsync = "everysec"
        compact_from: Annotated[int, msgspec.Meta(ge=1)] = 1 << 20
        max_value: Annotated[int, msgspec.Meta(ge=1, le=1 << 29)] = 8 << 20
        max_arguments: Annotated[int, msgspec.Meta(ge=3, le=1 << 20)] = 1024
        max_request: Annotated[int, msgspec.Meta(ge=1, le=1 << 30)] = 64 << 20
        max_memory: Annotated[int, msgspec.Meta(ge=0)] = 0

    # All clients meet in one process, also over a reload: a second one would not see what the first one writes.
    exclusive = True
    defaults = {"idle_timeout": 0.0, "max_unsent": 1 << 30}  # noqa: RUF012 - it is only read

    def __init__(self, options: Options) -> None:
        if options.file is not None and not options.file.parent.is_dir():
            raise ConfigError("file", f'"{options.file.parent}" is no directory, expected one for the file')
        self._options = options
        self._store = Store()
        self._file: AppendFile | None = None

    # --- start and stop

    @hookimpl
    def on_worker_start(self, worker: Worker) -> None:
        if self._options.file is not None:
            self._file = AppendFile(self._options.file, self._options.fsync, self._options.compact_from)
            self._file.open(self._store, worker)
        worker.every(1.0, self._sweep)

    @hookimpl
    def on_worker_stop(self) -> None:
        if self._file is not None:
            self._file.close()

    def _sweep(self) -> None:
        self._store.sweep()
        if self._file is not None:
            self._file.flush()

    # --- connections

    @hookimpl
    def on_connection_init(self, conn: Connection) -> None:
        options = self._options
        conn.state = Session(Requests(options.max_value, options.max_arguments, options.max_request))

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        if not conn.state.goes_on:
            self._serve(conn)

    @hookimpl
    def on_writable(self, conn: Connection) -> None:
        if not conn.state.goes_on:
            self._serve(conn)

    @hookimpl
    def on_drain(self, conn: Connection) -> None:
        """Answer what has come, or comes in this moment, and close: the next request is for the next instance."""
        conn.call_later(LAST_CALL, lambda: self._last_call(conn))

    def _last_call(self, conn: Connection) -> None:
        conn.state.is_last = True
        if not conn.state.goes_on:
            self._serve(conn)

    def _serve(self, conn: Connection) -> None:
        """Answer what has come, as much as fits into one turn."""
        session: Session = conn.state
        session.goes_on = False
        if conn.congested:
            return  # the client does not read; on_writable goes on
        if self._answer_some(conn, session.requests):
            session.goes_on = True
            conn.call_soon(lambda: self._serve(conn))
        elif session.is_last:
            conn.close("restart")

    def _answer_some(self, conn: Connection, requests: Requests) -> bool:
        """Answer requests with one write to the file, and one to the client.

        :returns: whether there may be more.
        """
        answers: list[bytes] = []
        size, more, last = 0, True, ""
        was_broken = self._file is not None and self._file.broken
        try:
            for _ in range(REQUESTS_PER_TURN):
                arguments = requests.next(conn)
                if arguments is None:
                    more = False
                    break
                if not arguments:
                    continue
                answers.append(self._answer(conn, arguments))
                size += len(answers[-1])
                if arguments[0].upper() == b"QUIT":
                    more, last = False, "quit"
                    break
                if size >= ANSWERS_PER_SEND:
                    break
        except ProtocolError as wrong:
            answers.append(error(f"ERR Protocol error: {wrong}"))
            more, last = False, "protocol error"
        if self._file is not None:
            self._file.flush()
            if self._file.broken and not was_broken:
                conn.abort("can't be written")  # no client is told of a change that is not in the file
                return False
        if answers:
            conn.send(b"".join(answers))
        if last:
            conn.close(last)
        return more

    def _answer(self, conn: Connection, arguments: list[bytes]) -> bytes:
        name = arguments[0].upper()
        if name == b"QUIT":
            return OK
        if name == b"BGREWRITEAOF":
            return self._compact(conn.worker)
        try:
            command = commands.find(arguments)
        except CommandError as wrong:
            return error(str(wrong))
        if command.writes and self._file is not None and self._file.broken:
            return error("MISCONF the append-only file can't be written, and so nothing can be changed")
        if command.grows and self._options.max_memory and self._store.used >= self._options.max_memory:
            return error("OOM command not allowed when used memory > 'max_memory'.")
        answer = commands.run(command, self._store, arguments)
        if command.writes and self._file is not None and self._file.is_due():
            self._file.compact(self._store, conn.worker)
        return answer

    def _compact(self, worker: Worker) -> bytes:
        if self._file is None:
            return error("ERR there is no append-only file")
        if not self._file.compact(self._store, worker):
            return error("ERR Background append only file rewriting already in progress")
        return b"+Background append only file rewriting started\r\n"
