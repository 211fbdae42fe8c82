"""The link between the supervisor and a pool: what they say to each other, and how.

Theory. They exchange JSON over a socketpair that keeps messages apart (``SOCK_SEQPACKET``, unix(7)). The supervisor
lives through an upgrade of the package, so the pool may be of a later version of poolsrv. Therefore a reader ignores
fields that it does not know, and any other change, such as a new kind of message, raises ``VERSION``. (pool_link_v1.py
speaks the first version. The second lacks ``claims`` and what belongs to it: only pools with exclusive listeners need
that.) Sockets travel beside a message (``SCM_RIGHTS``), and the kernel says which process has sent the message, as
which user (``SCM_CREDENTIALS``).

    supervisor -> pool   start       generation, config (a file, or arguments), and the existing sockets
    supervisor <- pool   plan        how long its start may take
    supervisor <- pool   bound       newly bound sockets, some in each message
    supervisor <- pool   configured  which sockets it will use, the path of the pid file, ...
    supervisor -> pool   go          all of this is granted; how often the pool has to send "alive"
    supervisor <- pool   serves      all its workers serve
    supervisor <- pool   failed      why it can't serve, some lines in each message
    supervisor <- pool   alive       its loop runs; it may add what it has counted (counted.py), and runs (kept_runs.py)
    supervisor <- pool   leaves      a signal from outside has told it to stop
    supervisor <- pool   claims      it serves but for its exclusive listeners, whose plugins these are
    supervisor -> pool   release     another pool claims: end the exclusive workers, and those that have these plugins
    supervisor <- pool   released    they have ended
    supervisor -> pool   granted     no other pool has exclusive workers: start yours
    supervisor -> pool   resume      the other pool has failed: start yours again
    supervisor -> pool   counted     what other pools have counted, and their runs
    supervisor -> pool   stop        why, and whether the server ends
    supervisor -> pool   about       for ``poolsrv status``; with notice, the pool is to stop in so many seconds
    supervisor -> pool   stop_now; workers, with by; reopen_logs

pool_protocol.py says what the supervisor accepts, and when.
"""

from __future__ import annotations

import array
import errno
import fcntl
import json
import os
import socket
import struct
import termios
from collections.abc import Sequence
from typing import Any, Final, NoReturn

from ..core.listening_sockets import ListeningSocket
from .descriptors import DESCRIPTOR_SIZE, descriptors_in

VERSION: Final = 3
WITHOUT_CLAIMS: Final = 2

DESCRIPTORS_PER_MESSAGE: Final = 200  # the kernel's limit (SCM_MAX_FD) is 253
LINES_PER_MESSAGE: Final = 20
LONGEST_LINE: Final = 1000  # characters; as JSON each takes at most 12 bytes
LONGEST_PATH: Final = 4096  # characters, PATH_MAX
_SIZE: Final = 262144  # bytes; no message comes near it

_SEND_FLAGS: Final = int(socket.MSG_NOSIGNAL)
_INT: Final = struct.Struct("i")
_CREDENTIALS: Final = struct.Struct("iII")  # struct ucred, unix(7)
# As many descriptors as the kernel passes on: fewer would be cut off, and that is an error.
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(253 * DESCRIPTOR_SIZE) + socket.CMSG_SPACE(_CREDENTIALS.size)


class BadMessage(ValueError):
    """A message breaks the protocol; the descriptors that came with it are closed."""


class Sender:
    """The process that has sent a message, and its real user, according to the kernel."""

    __slots__ = ("pid", "uid")

    def __init__(self, pid: int, uid: int) -> None:
        self.pid = pid
        self.uid = uid


class Message:
    """One message: its kind, its other fields, and its descriptors, which the receiver has to close.

    :ivar sender: known on the supervisor's side.
    """

    __slots__ = ("fds", "fields", "kind", "sender")

    def __init__(self, kind: str, fields: dict[str, Any], fds: list[int], sender: Sender | None = None) -> None:
        self.kind = kind
        self.fields = fields
        self.fds = fds
        self.sender = sender

    def close(self) -> None:
        """Close the descriptors."""
        close_all(self.fds)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors that are not used."""
    for fd in fds:
        os.close(fd)


class PoolLink:
    """One end of the link. It blocks until ``setblocking(False)``."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @classmethod
    def supervisors_end(cls, sock: socket.socket) -> PoolLink:
        """Make the supervisor's end: it learns the sender of each message, and does not block."""
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        sock.setblocking(False)
        return cls(sock)

    def detach(self) -> socket.socket:
        """Return the socket, for another object in place of this one."""
        return self._socket

    def fileno(self) -> int:
        """The descriptor that is readable when a message has come, or the other side is gone."""
        return self._socket.fileno()

    def setblocking(self, flag: bool) -> None:
        """Whether ``send`` and ``receive`` wait."""
        self._socket.setblocking(flag)

    def send(self, kind: str, fds: Sequence[int] = (), **fields: Any) -> None:
        """Send a message. If the other side is gone nothing happens: the end of file tells that.

        :param fds: at most ``DESCRIPTORS_PER_MESSAGE`` descriptors; the other side gets copies.
        :raises OSError: as sendmsg(2): there is no room (EAGAIN, ETOOMANYREFS) or no memory.
        """
        payload = json.dumps({"kind": kind, **fields}).encode()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([payload], ancillary, _SEND_FLAGS)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise

    def unread(self) -> int:
        """How much of what was sent the other side has not read, in bytes of kernel memory (SIOCOUTQ, unix(7))."""
        return _INT.unpack(fcntl.ioctl(self._socket, termios.TIOCOUTQ, bytes(_INT.size)))[0]  # type: ignore[no-any-return]

    def receive(self, wait: bool = True) -> Message | None:
        """Receive the next message; None if there is none and this end does not block.

        :param wait: False: this call does not block, even if this end does.
        :raises EOFError: the other side is gone.
        :raises BadMessage: the message can't be understood.
        """
        try:
            how = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
            payload, ancillary, flags, _ = self._socket.recvmsg(_SIZE, _ANCILLARY_SIZE, how)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            return self.receive(wait)  # its end did not read all. That is told once, and before what it has sent.
        fds, sender = _unpack(ancillary)
        try:
            if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                raise BadMessage("a message that is too long, or has descriptors for which there is no room")
            if not payload and not fds:
                raise EOFError
            kind, fields = _parse(payload)
        except (BadMessage, EOFError):
            close_all(fds)
            raise
        return Message(kind, fields, fds, sender)

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


def _unpack(ancillary: Sequence[tuple[int, int, bytes]]) -> tuple[list[int], Sender | None]:
    sender = None
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS and len(data) >= _CREDENTIALS.size:
            sender = Sender(*_CREDENTIALS.unpack_from(data)[:2])
    return list(descriptors_in(ancillary)), sender


def _parse(payload: bytes) -> tuple[str, dict[str, Any]]:
    try:
        fields = json.loads(payload, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadMessage(f"a message that is no JSON: {str(error)[:100]}") from None
    if not isinstance(fields, dict) or not isinstance(kind := fields.pop("kind", None), str):
        raise BadMessage("a message without a kind")
    return kind, fields


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number")


def send_sockets(link: PoolLink, kind: str, sockets: Sequence[ListeningSocket], **fields: Any) -> None:
    """Send sockets, in as many messages as it takes; the last has ``"last": true``, and the other fields.

    :raises OSError: as ``PoolLink.send``.
    """
    pieces = [sockets[at : at + DESCRIPTORS_PER_MESSAGE] for at in range(0, len(sockets), DESCRIPTORS_PER_MESSAGE)]
    for piece in pieces[:-1]:
        _send_some(link, kind, piece)
    _send_some(link, kind, pieces[-1] if pieces else (), last=True, **fields)


def _send_some(link: PoolLink, kind: str, sockets: Sequence[ListeningSocket], **fields: Any) -> None:
    described = [{"key": held.key, "path": held.path, "inode": held.inode, "listens": held.listens} for held in sockets]
    link.send(kind, [held.socket.fileno() for held in sockets], sockets=described, **fields)


def received_sockets(message: Message) -> list[ListeningSocket]:
    """Return the sockets that came with a message of ``send_sockets``.

    :raises BadMessage: they do not listen as they should, or do not match the description; then they are closed.
    """
    described = message.fields.get("sockets")
    found: list[ListeningSocket] = []
    try:
        if not isinstance(described, list) or len(described) != len(message.fds):
            raise BadMessage("as many sockets as it describes are not there")
        for fd, description in zip(message.fds, described, strict=True):
            found.append(_received(fd, description))
    except BadMessage:
        for held in found:
            held.socket.close()
        close_all(message.fds[len(found) :])
        raise
    return found


def _received(fd: int, described: object) -> ListeningSocket:
    if not isinstance(described, dict):
        raise BadMessage("a socket without a description")
    key, path, inode = described.get("key"), described.get("path"), described.get("inode")
    if not isinstance(key, str) or not isinstance(path, str) or (path and not is_path(path)):
        raise BadMessage("a socket with neither key nor path")
    if inode is not None and not (isinstance(inode, list) and len(inode) == 2 and all(type(n) is int for n in inode)):
        raise BadMessage("a socket whose file is none")
    try:
        sock = socket.socket(fileno=fd)
    except OSError:
        raise BadMessage("a descriptor that is no socket") from None
    listens = described.get("listens") is not False
    does = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    if sock.type != socket.SOCK_STREAM or (listens and not does):
        sock.detach()
        raise BadMessage("a socket that does not listen")
    return ListeningSocket(key, sock, path, (inode[0], inode[1]) if inode else None, listens)


def is_path(value: object) -> bool:
    """Whether a value is an absolute path."""
    return isinstance(value, str) and value.startswith("/") and "\0" not in value and len(value) <= LONGEST_PATH


def send_lines(link: PoolLink, kind: str, lines: Sequence[str], **fields: Any) -> None:
    """Send lines of text, in as many messages as it takes.

    :raises OSError: as ``PoolLink.send``.
    """
    for at in range(0, len(lines), LINES_PER_MESSAGE):
        link.send(kind, lines=[line[:LONGEST_LINE] for line in lines[at : at + LINES_PER_MESSAGE]], **fields)
