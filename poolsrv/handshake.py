"""What the supervisor and a pool say to each other, and how.

Theory. They talk over a socketpair that keeps messages apart (``SOCK_SEQPACKET``, unix(7)), in JSON: the pool may be of
a later version of poolsrv than the supervisor, which goes on over an upgrade. So whoever reads ignores what it does
not know, and ``VERSION`` is raised by a change that this does not cover. Sockets travel beside a message
(``SCM_RIGHTS``).

    supervisor -> pool   start       generation, config, and the sockets that stand
    supervisor <- pool   bound       sockets that are new, some in each message
    supervisor <- pool   configured  which sockets it will use, where the pid is to be written, ...
    supervisor -> pool   go          all of this is in order
    supervisor <- pool   serves      every worker does
    supervisor <- pool   failed      why it can't, some lines in each message
    supervisor <- pool   alive       for a watchdog, as often as ``start`` asks for
    supervisor -> pool   stop, with why; stop_now; workers, with by; reopen_logs; about, for who asks the pool
"""

from __future__ import annotations

import array
import errno
import json
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

VERSION: Final = 1

DESCRIPTORS_PER_MESSAGE: Final = 200  # the kernel's limit (SCM_MAX_FD) is 253
LINES_PER_MESSAGE: Final = 20
LONGEST_LINE: Final = 1000  # characters; as JSON each takes at most 12 bytes
_SIZE: Final = 262144  # bytes; no message comes near it

_SEND_FLAGS: Final = int(socket.MSG_NOSIGNAL)
_DESCRIPTOR_SIZE: Final = array.array("i").itemsize
_ANCILLARY_SIZE: Final = socket.CMSG_SPACE(DESCRIPTORS_PER_MESSAGE * _DESCRIPTOR_SIZE)


class Message(NamedTuple):
    """One message: its kind, its other fields, and the descriptors that came with it, which are the receiver's."""

    kind: str
    fields: dict[str, Any]
    fds: list[int]


class Link:
    """One end of it. Blocking until ``setblocking(False)``."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock

    @classmethod
    def pair(cls) -> tuple[Link, Link]:
        """Two ends.

        :raises OSError: as socketpair(2).
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        return cls(ours), cls(theirs)

    def fileno(self) -> int:
        """The descriptor that is readable when a message has come, or the other side is gone."""
        return self._socket.fileno()

    def setblocking(self, flag: bool) -> None:
        """Whether ``send`` and ``receive`` wait."""
        self._socket.setblocking(flag)

    def send(self, kind: str, fds: Sequence[int] = (), **fields: Any) -> None:
        """Send a message. Nothing happens where the other side is gone: the end of file, or its end, says so too.

        :param fds: at most ``DESCRIPTORS_PER_MESSAGE`` descriptors, of which the other side gets copies.
        :raises OSError: sendmsg(2), where there is no room (EAGAIN, ETOOMANYREFS) or memory.
        """
        payload = json.dumps({"kind": kind, **fields}).encode()
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._socket.sendmsg([payload], ancillary, _SEND_FLAGS)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                raise

    def receive(self) -> Message | None:
        """The next message; None where there is none, and this end does not block.

        :raises EOFError: the other side is gone.
        """
        try:
            payload, ancillary, _, _ = self._socket.recvmsg(_SIZE, _ANCILLARY_SIZE, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            raise EOFError from None
        if not payload:
            raise EOFError
        fds = array.array("i")
        for level, kind, data in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(data[: len(data) - len(data) % _DESCRIPTOR_SIZE])
        fields = json.loads(payload)
        return Message(fields.pop("kind"), fields, list(fds))

    def close(self) -> None:
        """Close this end."""
        self._socket.close()


class Held(NamedTuple):
    """A listening socket, as the supervisor keeps it over the pools.

    :ivar key: what is asked for with it, the same in every pool: see listeners.py.
    :ivar path: of a unix socket, else empty.
    :ivar inode: of its file: device and number, so that only its own file is ever removed.
    """

    key: str
    socket: socket.socket
    path: str = ""
    inode: tuple[int, int] | None = None


def send_sockets(link: Link, kind: str, sockets: Sequence[Held], **fields: Any) -> None:
    """Send sockets, in as many messages as it takes; the last has ``"last": true``, and the other fields.

    :raises OSError: as ``Link.send``.
    """
    pieces = [sockets[at : at + DESCRIPTORS_PER_MESSAGE] for at in range(0, len(sockets), DESCRIPTORS_PER_MESSAGE)]
    for piece in pieces[:-1]:
        _send_some(link, kind, piece)
    _send_some(link, kind, pieces[-1] if pieces else (), last=True, **fields)


def _send_some(link: Link, kind: str, sockets: Sequence[Held], **fields: Any) -> None:
    described = [{"key": held.key, "path": held.path, "inode": held.inode} for held in sockets]
    link.send(kind, [held.socket.fileno() for held in sockets], sockets=described, **fields)


def received_sockets(message: Message) -> Iterator[Held]:
    """The sockets that came with a message of ``send_sockets``."""
    for fd, described in zip(message.fds, message.fields["sockets"], strict=True):
        inode = described["inode"]
        yield Held(described["key"], socket.socket(fileno=fd), described["path"], tuple(inode) if inode else None)


def send_lines(link: Link, kind: str, lines: Sequence[str], **fields: Any) -> None:
    """Send lines of text, in as many messages as it takes.

    :raises OSError: as ``Link.send``.
    """
    for at in range(0, len(lines), LINES_PER_MESSAGE):
        link.send(kind, lines=[line[:LONGEST_LINE] for line in lines[at : at + LINES_PER_MESSAGE]], **fields)
