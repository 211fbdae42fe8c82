"""The channel between the dispatcher and one worker: connections go down, reports come up.

Theory. The channel is one ``AF_UNIX``/``SOCK_SEQPACKET`` socketpair, made before the fork. Down it travel the
accepted connections themselves (``SCM_RIGHTS``, unix(7)), each with its listener's number, its id and the peer's
address; up travel reports of what the worker has taken and closed.

- A message is whole or not there: SEQPACKET keeps boundaries, and neither side ever sends one of no bytes, so an empty
  receive is end of file: the other process is gone. A message of no connections asks the worker for a sign of life.
- The kernel would hold hundreds of messages for a worker that takes none. Connections in there wait for a worker that
  may be stuck while others are idle, so the dispatcher counts what is under way and stops at ``MAX_IN_FLIGHT``.
- The dispatcher keeps a copy of the worker's end. From there it can take back what the worker has not taken, even
  when that process is stopped or dead. Hence the worker's death shows as SIGCHLD, never as EPIPE; the dispatcher's
  death does show to the worker as end of file, provided that no sibling holds a copy of the dispatcher's end.
- A receiver at its descriptor limit loses what did not fit (``MSG_CTRUNC``), silently: who receives must know that
  there is room for ``MAX_PER_MESSAGE`` descriptors.
- Where a worker asks the dispatcher something (inquiries.py), the answers have a socketpair of their own: they must not
  wait behind connections that the worker has no room for, nor be taken back with these.

What goes down is in ``marshal``'s format: it is the fastest that the standard library has, and both ends are always the
same interpreter, one being the other's fork. What comes up is a worker's word, and a plugin there may have written it:
``marshal`` trusts what it reads, so reports are in MessagePack, of which every type and range is checked. Whether a
report fits what the dispatcher knows of the worker is the dispatcher's to see.
"""

from __future__ import annotations

import array
import errno
import marshal
import signal
import socket
from collections.abc import Sequence
from contextlib import suppress
from typing import Annotated, Any, Final, NamedTuple

import msgspec

MAX_PER_MESSAGE = 16  # connections in one message; the kernel's limit (SCM_MAX_FD) is 253
MAX_IN_FLIGHT = 64  # connections sent to one worker that it has not yet reported as taken
MAX_CLOSED_PER_REPORT = 1024  # keeps a report well below _UP_SIZE: an id takes at most 11 bytes
MAX_ASKED_PER_REPORT = 128  # the same; an address takes at most 60 more

# Plain numbers: to combine flags of an enumeration takes longer than the system call that gets them.
_DONTWAIT = int(socket.MSG_DONTWAIT)
_SEND_FLAGS = _DONTWAIT | int(socket.MSG_NOSIGNAL)
_RECEIVE_FLAGS = _DONTWAIT | int(socket.MSG_CMSG_CLOEXEC)
_TRUNCATED = int(socket.MSG_CTRUNC)
_DESCRIPTOR_SIZE = array.array("i").itemsize
# With some more: what else a plugin may have the kernel add (SO_PASSCRED) is not to push descriptors out.
_ANCILLARY_SIZE = socket.CMSG_SPACE(MAX_PER_MESSAGE * _DESCRIPTOR_SIZE) + 512
_DOWN_SIZE = 16384  # 16 peers with the longest unix socket path (108 bytes) stay far below this
_UP_SIZE = 32768

LOST = -1  # in the place of a descriptor that did not fit below the receiver's limit

# As a socket gives it: (host, port), (host, port, flow, scope), or a unix socket's path.
PeerAddress = Any

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]

# A connection's id, and who its client is: host and port.
Question = tuple[_Count, tuple[str, _Port]]
# That id, and the key of the config that refuses the client; None: it is admitted.
Answer = tuple[int, str | None]


class AcceptedConnection(NamedTuple):
    """One accepted connection on its way to a worker."""

    fd: int
    listener: int  # the listener's number in the config
    id: int  # unique in this run of the server
    peer: PeerAddress


_NOTHING_ASKED: list[Question] = []


class Report(NamedTuple):
    """What a worker tells the dispatcher, at most once per turn of its loop.

    With the bounds of every value. Lists, for of a tuple as long as a report may claim room would be made first.
    """

    taken: _Count  # connections received since the last report
    closed: Annotated[list[_Count], msgspec.Meta(max_length=MAX_CLOSED_PER_REPORT)]  # since the last report, ids
    state: str | None  # its new state, where that has changed
    counters: tuple[_Count, _Count, _Count, _Count, _Count] | None  # totals, see worker.COUNTERS; with every heartbeat
    asked: Annotated[list[Question], msgspec.Meta(max_length=MAX_ASKED_PER_REPORT)] = _NOTHING_ASKED


class BadReport(Exception):
    """What a worker has sent is no report, or does not fit what is known of that worker."""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Report).decode


class DispatcherEnd:
    """The dispatcher's side of one worker's channel; it holds the copy of the worker's end too.

    :param answers: whether the worker will ask.
    """

    def __init__(self, answers: bool = False) -> None:
        self._socket, self._worker_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._admission_sockets: tuple[socket.socket, socket.socket] | None = None
        if answers:
            try:
                self._admission_sockets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            except OSError:
                self.close()
                raise

    def fileno(self) -> int:
        """The descriptor that is readable when a report has come."""
        return self._socket.fileno()

    def worker_end(self) -> WorkerEnd:
        """In the worker, after the fork: its own end. The dispatcher's end is closed."""
        self._socket.close()
        if self._admission_sockets is None:
            return WorkerEnd(self._worker_socket)
        self._admission_sockets[0].close()
        return WorkerEnd(self._worker_socket, self._admission_sockets[1])

    def send(self, connections: Sequence[AcceptedConnection]) -> bool:
        """Send at most ``MAX_PER_MESSAGE`` connections, without blocking.

        :returns: False where the channel is full; then nothing was sent.
        :raises OSError: the worker's end has been shut down. Nothing was sent.
        """
        fds = array.array("i", [connection.fd for connection in connections])
        payload = marshal.dumps([(c.listener, c.id, c.peer) for c in connections])
        try:
            self._socket.sendmsg([payload], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)], _SEND_FLAGS)
        except OSError as error:
            # EAGAIN: the socket's buffer. ETOOMANYREFS: as many descriptors of this user are in flight as it may
            # have descriptors open (unix(7)). ENOBUFS, ENOMEM: the kernel has none to spare now.
            if error.errno in (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                return False
            raise
        return True

    def ask(self) -> None:
        """Ask the worker for a report, once it gets to it. Nothing where the channel is full: it will report anyway;
        and where its end has been shut down: that shows when it is read."""
        with suppress(OSError):
            self._socket.send(marshal.dumps([]), _SEND_FLAGS)

    def answer(self, answers: Sequence[Answer]) -> bool:
        """Answer what the worker has asked, at most ``MAX_ASKED_PER_REPORT`` at a time, without blocking.

        :returns: False where its socket is full; then nothing was sent.
        """
        assert self._admission_sockets is not None
        try:
            self._admission_sockets[0].send(marshal.dumps(list(answers)), _SEND_FLAGS)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):
                return False
            raise
        return True

    def receive(self) -> Report | None:
        """The next report; None where there is none. Never blocks. Descriptors that come with it the kernel closes.

        :raises BadReport: the worker has sent something else, or shut the channel down.
        """
        try:
            message = self._socket.recv(_UP_SIZE, _DONTWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            raise BadReport(f"the channel fails: {error.strerror}") from None
        try:
            return _decode(message)
        except (msgspec.MsgspecError, ValueError, MemoryError, RecursionError) as error:
            what = (
                f"a message that is no report (bytes: {len(message)})"
                if message
                else "nothing, or has shut the channel down"
            )
            raise BadReport(f"it has sent {what}" + (f": {error}" if message else "")) from None

    def reclaim(self) -> list[AcceptedConnection] | None:
        """One message's connections that the worker has not taken; None where there are none. Never blocks.

        Both processes read from the same queue: each message goes to exactly one of them.
        """
        try:
            return _receive_connections(self._worker_socket)
        except EOFError:
            return None  # a plugin has shut the worker's end down

    def close(self) -> None:
        """Close both ends; connections still in the channel are closed by the kernel."""
        for end in (self._socket, self._worker_socket, *(self._admission_sockets or ())):
            end.close()


class WorkerEnd:
    """The worker's side of its channel."""

    def __init__(self, inner: socket.socket, answers: socket.socket | None = None) -> None:
        self._socket = inner
        self._admission_sockets = answers

    def fileno(self) -> int:
        """The descriptor that is readable when connections have come, or the dispatcher is gone."""
        return self._socket.fileno()

    def receive(self) -> list[AcceptedConnection] | None:
        """One message's connections, none of them where the dispatcher asks for a report; None where no message is
        there. Never blocks.

        :raises EOFError: the dispatcher is gone.
        """
        return _receive_connections(self._socket)

    @property
    def is_answered(self) -> bool:
        """Whether anything can be asked."""
        return self._admission_sockets is not None

    def answers_fileno(self) -> int:
        """The descriptor that is readable when answers have come, or the dispatcher is gone."""
        assert self._admission_sockets is not None
        return self._admission_sockets.fileno()

    def receive_answers(self) -> list[Answer]:
        """One message's answers; none where no message is there. Never blocks.

        :raises EOFError: the dispatcher is gone.
        """
        assert self._admission_sockets is not None
        try:
            message = self._admission_sockets.recv(_UP_SIZE, _DONTWAIT)
        except BlockingIOError:
            return []
        if not message:
            raise EOFError
        answers: list[Answer] = marshal.loads(message)
        return answers

    def report(self, report: Report) -> bool:
        """Send a report, without blocking.

        :returns: False where the channel is full; then nothing was sent.
        :raises OSError: the dispatcher is gone (EPIPE, ECONNRESET).
        """
        try:
            self._socket.send(_encode(report), _SEND_FLAGS)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM):
                return False
            raise
        return True

    def close(self) -> None:
        """Close the worker's end."""
        self._socket.close()
        if self._admission_sockets is not None:
            self._admission_sockets.close()


def _receive_connections(inner: socket.socket) -> list[AcceptedConnection] | None:
    try:
        payload, ancillary, flags, _ = inner.recvmsg(_DOWN_SIZE, _ANCILLARY_SIZE, _RECEIVE_FLAGS)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        # The dispatcher died with reports of ours unread: to the kernel that is a reset, not an end of file.
        raise EOFError from None
    if not payload:
        raise EOFError
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _DESCRIPTOR_SIZE])
    connections = marshal.loads(payload)
    if flags & _TRUNCATED:
        fds.extend([LOST] * (len(connections) - len(fds)))
    return [AcceptedConnection(fd, *rest) for fd, rest in zip(fds, connections, strict=True)]


# States, as the dispatcher is told them.
SERVING: Final = "serving"
FULL: Final = "full"  # no descriptors left: takes no connections for the moment
DRAINING: Final = "draining"

COUNTERS: Final = ("accepted", "open", "events", "bytes_in", "bytes_out")  # of a report, in this order

EXIT_OK: Final = 0
EXIT_START_FAILED: Final = 3  # a plugin's on_worker_start has raised
EXIT_DISPATCHER_GONE: Final = 4

STOP_NOW_SIGNAL: Final = signal.SIGRTMIN
