"""What the server and a fork server say to each other, as `helper` defines it: messages as bytes, and a socket that is
never waited for."""

from __future__ import annotations

import array
import errno
import marshal
import os
import re
import socket
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

__all__ = [
    "Exited",
    "Failed",
    "Forked",
    "NewCode",
    "Pong",
    "Ready",
    "Reply",
    "Short",
    "Started",
    "decode_replies",
    "encode_run",
    "helper_argv",
    "helper_environment",
    "python_command",
    "read_replies",
    "send_code",
    "send_fork",
    "send_ping",
    "send_run",
]

HELPER = Path(__file__).with_name("helper.py")
VERSION = 4
_MAX_MESSAGE = 1 << 18  # bytes; the most that a child takes
_MAX_UNANNOUNCED = 8192  # bytes that a child is ready for
_ENCODING, _ERRORS = sys.getfilesystemencoding(), sys.getfilesystemencodeerrors()
_MARSHAL_FORMAT = 2  # that all Pythons read alike
_MOST_FORKED = 64  # children in one message, each with a socket
_RIGHTS_SIZE = socket.CMSG_SPACE(4 * _MOST_FORKED)
_SEND_FLAGS = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)  # combined once: that makes an enumeration's member
_CLOEXEC = getattr(socket, "MSG_CMSG_CLOEXEC", 0x40000000)
_RECEIVE_FLAGS = int(socket.MSG_DONTWAIT) | _CLOEXEC
_TRUNCATED = int(socket.MSG_CTRUNC)

_match_python = re.compile(r"python(?:3(?:\.[0-9]+)?)?t?").fullmatch


class Ready(msgspec.Struct, frozen=True):
    """The helper has imported its modules; it speaks `version` of the protocol."""

    version: int


class Pong(msgspec.Struct, frozen=True):
    """The helper is alive."""


class Started(msgspec.Struct, frozen=True):
    """The script of the request `id` runs as process `pid`, which leads a process group of its own."""

    id: int
    pid: int


class Exited(msgspec.Struct, frozen=True):
    """The child `pid` has ended.

    :ivar returncode: exit status, or minus the number of the signal that ended it.
    :ivar user_time, system_time: seconds of CPU time.
    :ivar max_rss: KiB; with all that the child shared with the helper.
    """

    pid: int
    returncode: int
    user_time: float
    system_time: float
    max_rss: int


class Forked(msgspec.Struct, frozen=True):
    """Children that wait for a request: process id and socket of each. The sockets are the receiver's to close."""

    children: tuple[tuple[int, int], ...]


class Short(msgspec.Struct, frozen=True):
    """So many children could not be forked."""

    count: int
    message: str


class NewCode(msgspec.Struct, frozen=True):
    """A child has had to compile the script `path`, so the helper should."""

    path: str


class Failed(msgspec.Struct, frozen=True):
    """The script of the request `id` could not be started; with id 0, the helper could not and ends."""

    id: int
    message: str


Reply = Ready | Pong | Started | Exited | Forked | Short | NewCode | Failed


def python_command(first_line: bytes) -> tuple[str, ...] | None:
    """The interpreter that a script's first line names, with its flags; None if that is not Python.

    As the kernel reads it (execve(2)): the interpreter and at most one argument. `env python3` counts, `env -S` does
    not.
    """
    if not first_line.startswith(b"#!"):
        return None
    words = os.fsdecode(first_line[2:256]).partition("\n")[0].strip(" \t\r").split(None, 1)
    if not words or not words[0].startswith("/"):
        return None
    command = (words[0], words[1].strip()) if len(words) > 1 else (words[0],)
    name = command[1] if os.path.basename(command[0]) == "env" and len(command) == 2 else os.path.basename(command[0])
    return command if _match_python(name) else None


def helper_argv(command: Sequence[str], modules: Iterable[str] = ()) -> list[str]:
    """The command that starts a helper.

    It is to be started in a process group of its own, with its end of a SOCK_SEQPACKET pair as its standard input, the
    null device as its output and error, and the environment that the programs of a listener have in common: the locale
    and the PYTHON* variables count when an interpreter starts.

    :param command: from `python_command`.
    :param modules: to import beforehand.
    """
    return [*command, str(HELPER), *modules]


def helper_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment to start a helper with.

    The dynamic linker then binds functions at the start, not in each child (ld.so(8)). Scripts don't get it.
    """
    return {"LD_BIND_NOW": "1", **environment}


def encode_run(
    request_id: int,
    argv: Sequence[str],
    environment: Mapping[str, str],
    cwd: str,
    limits: Sequence[tuple[int, int, int]] = (),
    kinds: bytes = b"???",
    directory: str | None = None,
) -> bytes:
    """A request to run a script.

    :param request_id: from 1; replies carry it.
    :param argv: the script's path, absolute, then its arguments.
    :param limits: resource number (`resource.RLIMIT_*`), soft limit, hard limit.
    :param kinds: what its standard input, output and error are: `p` a pipe, `n` the null device, `?` anything.
    :param directory: that of the script, without symbolic links; None where that is not known.
    :raises ValueError: there is a NUL in a value, or it is too long. A cold start may still be possible.
    """
    # As os.fsencode does, which would be called for each of some forty strings.
    encoding, errors = _ENCODING, _ERRORS
    names, values = "\0".join(environment), "\0".join(environment.values())
    most = max(len(environment) - 1, 0)
    if names.count("\0") > most or values.count("\0") > most or "\0" in "".join((cwd, *argv)):
        raise ValueError("a NUL in an argument or variable")
    arguments = [argument.encode(encoding, errors) for argument in argv]
    variables = (names.encode(encoding, errors), values.encode(encoding, errors)) if environment else None
    real = directory.encode(encoding, errors) if directory is not None else None
    limited = [tuple(limit) for limit in limits]
    request = request_id, cwd.encode(encoding, errors), arguments, kinds, real, limited, variables
    message = marshal.dumps(request, _MARSHAL_FORMAT)
    if len(message) > _MAX_MESSAGE:
        raise ValueError("arguments and environment are too long")
    return message


def send_run(child: int, message: bytes, descriptors: tuple[int, int, int]) -> bool:
    """Send a child its request without waiting, and close its socket. False where it is gone.

    The caller may close its descriptors afterwards. They have to be blocking ones: O_NONBLOCK is passed on with them.

    :param child: the socket that `Forked` has brought.
    :param descriptors: standard input, output and error of the script.
    :raises OSError: the message is too long for the socket (EMSGSIZE).
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    requests = socket.SocketType(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, child)
    try:
        if len(message) > _MAX_UNANNOUNCED:
            requests.send(b"%d" % len(message), _SEND_FLAGS)
        requests.sendmsg([message], rights, _SEND_FLAGS)
    except ConnectionError:
        return False
    finally:
        requests.close()
    return True


def send_ping(control: socket.socket) -> None:
    """Ask whether the helper is alive, without waiting. Nothing is sent if the socket is full; no answer comes then."""
    _send(control, b"ping")


def send_fork(control: socket.socket, count: int) -> bool:
    """Have it fork so many children ahead; False where it can't be asked now."""
    return _send(control, b"fork\0%d" % count)


def send_code(control: socket.socket, path: str) -> bool:
    """Have it compile a script for the children to come; False where it can't be asked now."""
    return _send(control, b"code\0" + os.fsencode(path))


def _send(control: socket.socket, message: bytes) -> bool:
    try:
        control.send(message, _SEND_FLAGS)
    except OSError:
        return False
    return True


def read_replies(control: socket.socket, limit: int = 64) -> tuple[list[Reply], bool, str]:
    """Read the messages of a helper and its children so far, at most `limit`, without waiting.

    :returns: the replies, whether the helper is gone, and what is wrong with a message that is malformed ("" if none
        is): then the helper can't be trusted any more, but the replies of the other messages hold.
    """
    replies: list[Reply] = []
    fault = ""
    for _ in range(limit):
        try:
            message, ancillary, flags, _ = control.recvmsg(65536, _RIGHTS_SIZE, _RECEIVE_FLAGS)
        except (BlockingIOError, InterruptedError):
            return replies, False, fault
        except ConnectionResetError:
            continue  # it died with unread requests. That is told once, and before what it has sent.
        except OSError:
            return replies, True, fault
        if not message:
            return replies, True, fault
        sockets = [fd for _, _, data in ancillary for fd in array.array("i", data)] if ancillary else []
        try:
            replies += decode_replies(message, sockets, missing=bool(flags & _TRUNCATED))
        except ValueError as error:
            fault = fault or str(error)
            for fd in sockets:
                os.close(fd)
    return replies, False, fault


def decode_replies(message: bytes, sockets: Sequence[int] = (), *, missing: bool = False) -> list[Reply]:
    """Decode a message of the helper or of one of its children.

    :param sockets: that have come with it.
    :param missing: whether the receiver had no descriptors for more. Children without a socket are as good as not
        forked: they end.
    :raises ValueError: it is malformed; the helper can't be trusted any more.
    """
    kind, *fields = message.decode("utf-8", "surrogateescape").split("\0")
    try:
        if kind == "exit" and fields:
            return [_exited(*fields[at : at + 5]) for at in range(0, len(fields), 5)]
        if kind == "pid" and int(fields[1]) > 1:
            return [Started(int(fields[0]), int(fields[1]))]
        if kind == "forked" and all(int(pid) > 1 for pid in fields):
            come = Forked(tuple(zip(map(int, fields), sockets, strict=False)))
            short = len(fields) - len(sockets)
            if short == 0:
                return [come]
            if short > 0 and missing:
                return [come, Short(short, os.strerror(errno.EMFILE))]
        if kind == "ready":
            return [Ready(int(fields[0]))]
        if kind == "pong":
            return [Pong()]
        if kind == "short":
            return [Short(int(fields[0]), fields[1])]
        if kind == "code":
            return [NewCode(fields[0])]
        if kind == "failed":
            return [Failed(int(fields[0]), fields[1])]
    except (IndexError, TypeError):
        pass
    raise ValueError(f"not a message of a warm helper: {message[:60]!r}")


def _exited(pid: str, status: str, user_time: str, system_time: str, max_rss: str) -> Exited:
    returncode = os.waitstatus_to_exitcode(int(status))
    return Exited(int(pid), returncode, float(user_time), float(system_time), int(max_rss))
