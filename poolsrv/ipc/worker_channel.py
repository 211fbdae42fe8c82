"""The channel between the dispatcher and one worker: connections go down, reports come up.

Theory. The channel is one ``AF_UNIX``/``SOCK_SEQPACKET`` socketpair, made before the fork. Down it travel the
accepted connections themselves (``SCM_RIGHTS``, unix(7)), each with its listener's number, its id and the peer's
address. Up travel reports of what the worker has taken and closed.

- A message is whole or not there: SEQPACKET keeps boundaries. Neither side ever sends an empty one, so an empty receive
  is end of file: the other process is gone. A message without connections asks the worker for a report.
- The kernel would hold hundreds of messages for a worker that takes none. Connections in there would wait for a worker
  that may be stuck while others are idle. So the dispatcher counts what is in flight and stops at ``MAX_IN_FLIGHT``.
- The dispatcher keeps a copy of the worker's end. From there it can reclaim what the worker has not taken, even if that
  process is stopped or dead. Hence the worker's death shows as SIGCHLD, never as EPIPE. The dispatcher's death shows to
  the worker as end of file, provided that no sibling holds a copy of the dispatcher's end.
- A receiver at its descriptor limit silently loses what does not fit (``MSG_CTRUNC``). So a receiver must know that
  there is room for ``MAX_PER_MESSAGE`` descriptors.
- With kernel dispatch a worker accepts by itself, and reports what it has accepted. The dispatcher grants it the ids of
  these connections, in blocks, each in a message of its own. The first one also says that it may begin.
- If a worker asks the dispatcher something (worker/admission_client.py), the answers have a socketpair of their own:
  they must not wait behind connections that the worker has no room for, nor be reclaimed with these.

What goes down is in ``marshal``'s format. It is the fastest in the standard library, and both ends are always the same
interpreter, one being the other's fork. What comes up is not trusted, for a plugin may have written it. ``marshal``
trusts what it reads, so reports are in MessagePack, of which every type and range is checked. The dispatcher checks
whether a report fits what it knows of the worker.
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

from .descriptors import DESCRIPTOR_SIZE, descriptors_in
from .metrics import MetricsReport
from .runs import MOST_PER_REPORT, Run

# The states that a worker reports. The dispatcher adds its own (dispatcher/worker_slot.py).
SERVING: Final = "serving"
FULL: Final = "full"  # no descriptors left: the worker takes no connections for the moment
DRAINING: Final = "draining"

COUNTERS: Final = ("accepted", "open", "events", "bytes_in", "bytes_out")  # of a report, in this order

EXIT_OK: Final = 0
EXIT_START_FAILED: Final = 3  # a plugin's on_worker_start has raised
EXIT_DISPATCHER_GONE: Final = 4

STOP_NOW_SIGNAL: Final = signal.SIGRTMIN
DRAIN_POOL_SIGNAL: Final = signal.SIGRTMAX  # to drain, as TERM, and with all others: nobody else takes what is left

MAX_PER_MESSAGE: Final = 16  # connections in one message; the kernel's limit (SCM_MAX_FD) is 253
MAX_IN_FLIGHT: Final = 64  # connections sent to one worker that it has not yet reported as taken
MAX_CLOSED_PER_REPORT: Final = 1024  # keeps a report well below _UP_SIZE: an id takes at most 11 bytes
MAX_ASKED_PER_REPORT: Final = 128  # the same; an address takes at most 60 more
MAX_ACCEPTED_PER_REPORT: Final = 256  # of accepted connections
MAX_REFUSED_PER_REPORT: Final = 128

# Plain numbers: combining enumeration flags takes longer than the system call that uses them.
_DONTWAIT: Final = int(socket.MSG_DONTWAIT)
_SEND_FLAGS: Final = _DONTWAIT | int(socket.MSG_NOSIGNAL)
_RECEIVE_FLAGS: Final = _DONTWAIT | int(socket.MSG_CMSG_CLOEXEC)
_TRUNCATED: Final = int(socket.MSG_CTRUNC)
# A little more: what else a plugin may have the kernel add (SO_PASSCRED) must not push descriptors out.
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(MAX_PER_MESSAGE * DESCRIPTOR_SIZE) + 512
_DOWN_SIZE: Final = 16384  # 16 peers with the longest unix socket path (108 bytes) stay far below this
_UP_SIZE: Final = 65536

LOST: Final = -1  # in the place of a descriptor that did not fit below the receiver's limit

# As a socket gives it: (host, port), (host, port, flow, scope), or a unix socket's path.
PeerAddress = Any

_Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]

# A connection's id, and its client's host and port.
Question = tuple[_Count, tuple[str, _Port]]
# Connections that the worker has accepted one after the other: at which of its sockets (Grant), and how many. Their ids
# are the next ones that it was granted.
Accepted = tuple[_Count, _Count]
# A client that the worker has refused: at which of its sockets, by which config key, and its host and port.
Refused = tuple[_Count, str, tuple[str, _Port]]
# That id, and the config key that refuses the client; None if it is admitted.
Answer = tuple[int, str | None]


class AcceptedConnection(msgspec.Struct, gc=False):
    """An accepted connection on its way to a worker. (A struct is made in a quarter of a named tuple's time.)

    :ivar fd: the descriptor, or ``LOST``.
    :ivar listener: the listener's number in the config.
    :ivar id: unique in this run of the server.
    :ivar peer: the client's address.
    :ivar accepted_at: in seconds of ``time.monotonic``, which is the same in both processes.
    """

    fd: int
    listener: int
    id: int
    peer: PeerAddress
    accepted_at: float = 0.0


class Grant(NamedTuple):
    """Ids for connections that the worker accepts by itself: from ``first`` on, below ``end``."""

    first: int
    end: int


_NOTHING_ASKED: list[Question] = []
_NO_RUNS: list[Run] = []
_NONE_ACCEPTED: list[Accepted] = []
_NONE_REFUSED: list[Refused] = []


class Report(NamedTuple):
    """What a worker tells the dispatcher, at most once per iteration of its loop.

    Every value has bounds. Lists, because a decoder would allocate a tuple as long as a report claims.
    """

    taken: _Count  # connections received since the last report
    closed: Annotated[list[_Count], msgspec.Meta(max_length=MAX_CLOSED_PER_REPORT)]  # ids, since the last report
    state: str | None  # its new state, if that has changed
    counters: tuple[_Count, _Count, _Count, _Count, _Count] | None  # totals, see COUNTERS; with every heartbeat
    asked: Annotated[list[Question], msgspec.Meta(max_length=MAX_ASKED_PER_REPORT)] = _NOTHING_ASKED
    metrics: MetricsReport | None = None  # with every heartbeat, if something has changed
    runs: Annotated[list[Run], msgspec.Meta(max_length=MOST_PER_REPORT)] = _NO_RUNS  # after a heartbeat's metrics
    # Accepted by the worker itself since the last report, before any of these were closed or asked about.
    accepted: Annotated[list[Accepted], msgspec.Meta(max_length=MAX_ACCEPTED_PER_REPORT)] = _NONE_ACCEPTED
    refused: Annotated[list[Refused], msgspec.Meta(max_length=MAX_REFUSED_PER_REPORT)] = _NONE_REFUSED


class BadReport(Exception):
    """What a worker has sent is no report, or does not fit what the dispatcher knows of the worker."""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Report).decode


class DispatcherEnd:
    """The dispatcher's side of a channel, with the copy of the worker's end.

    :param answers: whether the worker may ask about admission.
    :ivar grant_is_lost: whether the worker has to be told its latest grant again.
    """

    def __init__(self, answers: bool = False) -> None:
        self.grant_is_lost = False
        self._socket, self._worker_socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._admission_sockets: tuple[socket.socket, socket.socket] | None = None
        if answers:
            try:
                self._admission_sockets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            except OSError:
                self.close()
                raise

    def fileno(self) -> int:
        """Return the descriptor that is readable when a report has come."""
        return self._socket.fileno()

    def become(self, end: WorkerEnd) -> None:
        """In the worker, after the fork: close the dispatcher's end, and have the other one be ``end``."""
        self._socket.close()
        if self._admission_sockets is None:
            end.open(self._worker_socket)
        else:
            self._admission_sockets[0].close()
            end.open(self._worker_socket, self._admission_sockets[1])

    def send(self, connections: Sequence[AcceptedConnection]) -> bool:
        """Send at most ``MAX_PER_MESSAGE`` connections, without blocking.

        :returns: False if the channel is full; then nothing was sent.
        :raises OSError: the worker's end has been shut down. Nothing was sent.
        """
        fds = array.array("i", [connection.fd for connection in connections])
        payload = marshal.dumps([(c.listener, c.id, c.peer, c.accepted_at) for c in connections])
        try:
            self._socket.sendmsg([payload], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)], _SEND_FLAGS)
        except OSError as error:
            # EAGAIN: the socket's buffer is full. ETOOMANYREFS: this user has as many descriptors in flight as it
            # may have open (unix(7)). ENOBUFS, ENOMEM: the kernel has no memory to spare now.
            if error.errno in (errno.EAGAIN, errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM):
                return False
            raise
        return True

    def ask(self) -> None:
        """Ask the worker for a report.

        If the channel is full, nothing is sent, for the worker will report anyway. If the worker's end has been shut
        down, that shows when it is read.
        """
        with suppress(OSError):
            self._socket.send(marshal.dumps([]), _SEND_FLAGS)

    def grant(self, grant: Grant) -> bool:
        """Let the worker accept, with these ids.

        :returns: False if it can't be told now.
        """
        try:
            self._socket.send(marshal.dumps(tuple(grant)), _SEND_FLAGS)
        except OSError:
            return False
        return True

    def answer(self, answers: Sequence[Answer]) -> bool:
        """Send at most ``MAX_ASKED_PER_REPORT`` answers, without blocking.

        :returns: False if the socket is full; then nothing was sent.
        :raises OSError: the worker's end has been shut down.
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
        """Receive the next report, without blocking. The kernel closes descriptors that come with it.

        :returns: None if there is none.
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
            if not message:
                raise BadReport("it sent an empty message, or has shut the channel down") from None
            raise BadReport(f"it sent {len(message)} bytes that are no report: {error}") from None

    def reclaim(self) -> list[AcceptedConnection] | None:
        """Take one message's connections that the worker has not taken, without blocking.

        Both processes read from the same queue: each message goes to exactly one of them.

        A grant that the worker has not taken is gone then; ``grant_is_lost`` says so.

        :returns: None if there are none.
        """
        try:
            received = _receive_connections(self._worker_socket)
        except EOFError:
            return None  # a plugin has shut down the worker's end
        if isinstance(received, Grant):
            self.grant_is_lost = True
            return []
        return received

    def close(self) -> None:
        """Close both ends; the kernel closes connections that are still in the channel."""
        for end in (self._socket, self._worker_socket, *(self._admission_sockets or ())):
            end.close()


class WorkerEnd:
    """The worker's side of its channel.

    :param sockets: as for ``open``; without them it is to be opened by ``DispatcherEnd.become``.
    :ivar grant: ids that have come, for the worker to take; None if there are none.
    """

    def __init__(self, *sockets: socket.socket) -> None:
        self.grant: Grant | None = None
        self._socket: socket.socket
        self._admission_socket: socket.socket | None = None
        if sockets:
            self.open(*sockets)

    def open(self, sock: socket.socket, admission_socket: socket.socket | None = None) -> None:
        """Begin to use these sockets."""
        self._socket = sock
        self._admission_socket = admission_socket

    def fileno(self) -> int:
        """Return the descriptor that is readable when connections have come, or the dispatcher is gone."""
        return self._socket.fileno()

    def receive(self) -> list[AcceptedConnection] | None:
        """Receive one message's connections, without blocking.

        :returns: an empty list if the dispatcher asks for a report, or if ``grant`` has come; None if there is no
            message.
        :raises EOFError: the dispatcher is gone.
        """
        received = _receive_connections(self._socket)
        if isinstance(received, Grant):
            self.grant = received
            return []
        return received

    def answers_fileno(self) -> int:
        """Return the descriptor that is readable when answers have come, or the dispatcher is gone."""
        assert self._admission_socket is not None
        return self._admission_socket.fileno()

    def receive_answers(self) -> list[Answer]:
        """Receive one message's answers, without blocking; an empty list if there is no message.

        :raises EOFError: the dispatcher is gone.
        """
        assert self._admission_socket is not None
        try:
            message = self._admission_socket.recv(_UP_SIZE, _DONTWAIT)
        except BlockingIOError:
            return []
        except ConnectionResetError:  # it died with unread questions; see _receive_connections
            return self.receive_answers()
        if not message:
            raise EOFError
        answers: list[Answer] = marshal.loads(message)
        return answers

    def report(self, report: Report) -> bool:
        """Send a report, without blocking.

        :returns: False if the channel is full; then nothing was sent.
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
        if self._admission_socket is not None:
            self._admission_socket.close()


def _receive_connections(sock: socket.socket) -> list[AcceptedConnection] | Grant | None:
    try:
        payload, ancillary, flags, _ = sock.recvmsg(_DOWN_SIZE, _ANCILLARY_SIZE, _RECEIVE_FLAGS)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        # The dispatcher died with unread reports. The kernel tells that once, and before the messages that are here.
        return _receive_connections(sock)
    if not payload:
        raise EOFError
    fds = descriptors_in(ancillary)
    connections = marshal.loads(payload)
    if type(connections) is tuple:
        return Grant(*connections)
    if flags & _TRUNCATED:
        fds.extend([LOST] * (len(connections) - len(fds)))
    return [
        AcceptedConnection(fd, listener, number, peer, accepted_at)
        for fd, (listener, number, peer, accepted_at) in zip(fds, connections, strict=True)
    ]
