"""What the server and a fork server say to each other, as `helper` defines it: messages as bytes, and a socket that is
never waited for."""

from __future__ import annotations

import array
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

__all__ = [
    "Exited",
    "Failed",
    "Pong",
    "Ready",
    "Reply",
    "Started",
    "decode_reply",
    "encode_run",
    "helper_argv",
    "python_command",
    "read_replies",
    "send_ping",
    "send_run",
]

HELPER = Path(__file__).with_name("helper.py")
VERSION = 1
_MAX_MESSAGE = 1 << 18  # bytes; the most that the helper takes

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
    """The script of the request `id` has ended.

    :ivar returncode: exit status, or minus the number of the signal that ended it.
    :ivar user_time, system_time: seconds of CPU time.
    :ivar max_rss: KiB; with all that the child shared with the helper.
    """

    id: int
    returncode: int
    user_time: float
    system_time: float
    max_rss: int


class Failed(msgspec.Struct, frozen=True):
    """The script of the request `id` could not be started; with id 0, the helper could not and ends."""

    id: int
    message: str


Reply = Ready | Pong | Started | Exited | Failed


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


def encode_run(
    request_id: int,
    argv: Sequence[str],
    environment: Mapping[str, str],
    cwd: str,
    limits: Sequence[tuple[int, int, int]] = (),
) -> bytes:
    """A request to run a script.

    :param request_id: from 1; replies carry it.
    :param argv: the script's path, absolute, then its arguments.
    :param limits: resource number (`resource.RLIMIT_*`), soft limit, hard limit.
    :raises ValueError: there is a NUL in a value, or it is too long. A cold start may still be possible.
    """
    fields = [
        "run",
        str(request_id),
        cwd,
        str(len(argv)),
        *argv,
        str(len(limits)),
        *(f"{number} {soft} {hard}" for number, soft, hard in limits),
        *(f"{name}={value}" for name, value in environment.items()),
    ]
    message = os.fsencode("\0".join(fields))
    if message.count(b"\0") != len(fields) - 1:
        raise ValueError("a NUL in an argument or variable")
    if len(message) > _MAX_MESSAGE:
        raise ValueError("arguments and environment are too long")
    return message


def send_run(control: socket.socket, message: bytes, descriptors: tuple[int, int, int]) -> bool:
    """Send a request without waiting; False if too many requests wait for the helper already.

    The caller may close its descriptors afterwards. They have to be blocking ones: O_NONBLOCK is passed on with them.

    :param descriptors: standard input, output and error of the script.
    :raises OSError: the helper is gone, or the message is too long for the socket (EMSGSIZE).
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
    try:
        control.sendmsg([message], rights, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except (BlockingIOError, InterruptedError):
        return False
    return True


def send_ping(control: socket.socket) -> None:
    """Ask whether the helper is alive, without waiting. Nothing is sent if the socket is full; no answer comes then."""
    try:
        control.send(b"ping", socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    except OSError:
        pass


def read_replies(control: socket.socket, limit: int = 64) -> tuple[list[Reply], bool]:
    """Read the helper's messages so far, at most `limit`, without waiting; and whether it is gone."""
    replies: list[Reply] = []
    while len(replies) < limit:
        try:
            message = control.recv(4096, socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return replies, False
        except OSError:
            return replies, True
        if not message:
            return replies, True
        replies.append(decode_reply(message))
    return replies, False


def decode_reply(message: bytes) -> Reply:
    """Decode a message of the helper.

    :raises ValueError: it is malformed; the helper can't be trusted any more.
    """
    kind, *fields = message.decode("utf-8", "replace").split("\0")
    try:
        if kind == "ready":
            return Ready(int(fields[0]))
        if kind == "pong":
            return Pong()
        if kind == "pid" and int(fields[1]) > 1:
            return Started(int(fields[0]), int(fields[1]))
        if kind == "exit":
            returncode = os.waitstatus_to_exitcode(int(fields[1]))
            return Exited(int(fields[0]), returncode, float(fields[2]), float(fields[3]), int(fields[4]))
        if kind == "failed":
            return Failed(int(fields[0]), fields[1])
    except IndexError:
        pass
    raise ValueError(f"not a message of a warm helper: {message[:60]!r}")
