"""Captures: what ``poolsrv replay`` needs to run a program again, in a file of JSON for each failed run.

Texts that are bytes to the kernel (environment, arguments) keep undecodable bytes as lone surrogates (PEP 383), which
the standard library's JSON writes as escapes and reads back.
"""

from __future__ import annotations

import json
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

VERSION: Final = 1
LONGEST_FILE: Final = 8 << 20  # bytes; what is written has less
SUFFIX: Final = ".run"

_Number = Annotated[int, Meta(ge=0, le=2**63 - 1)]
_Port = Annotated[int, Meta(ge=0, le=65535)]
_Seconds = Annotated[float, Meta(ge=0, le=1e12)]  # a year of five digits, which no computation overflows at


class CapturedSandbox(msgspec.Struct, frozen=True, kw_only=True):
    """What a program might do: the arguments of ``Sandbox``."""

    read: list[str] = []
    write: list[str] = []
    execute: list[str] = []
    connect: list[_Port] | None = []
    bind: list[_Port] | None = []
    isolated: bool = True
    system_calls: bool = True
    private_tmp: _Number = 0


class Capture(msgspec.Struct, frozen=True, kw_only=True):
    """A program's input, and what became of it.

    :ivar id: of the run.
    :ivar version: of this format.
    :ivar at: when it began, in seconds since the epoch.
    :ivar listener, program, request, client: as in the record of the run.
    :ivar protocol: what its output means: "http" (a CGI response), "nph", "line" or "inetd".
    :ivar command: its arguments, itself included.
    :ivar directory: its working directory; None for the server's.
    :ivar environment: all of it, secrets masked.
    :ivar masked: the names of variables that are masked, or have a masked part.
    :ivar body: what it had, or was to have, on its standard input, as far as it was kept.
    :ivar body_length: bytes that this had.
    :ivar timeout: seconds that it may run; 0 is no limit.
    :ivar limits: resource limits: names of ``resource``, such as "RLIMIT_AS", to numbers.
    :ivar umask: octal digits; "" for the server's.
    :ivar nice: how much lower its priority is.
    :ivar user: its own user, as the config names it, and ``:GROUP``; "" for the server's.
    :ivar sandbox: None: it had none.
    :ivar returncode, status, reason, took, cpu: as in the record of the run.
    :ivar header: the lines of its CGI header; empty if there was none.
    :ivar stderr: the last lines of its standard error.
    """

    id: str
    version: int = VERSION
    at: _Seconds
    listener: str
    program: str
    protocol: Literal["http", "nph", "line", "inetd"]
    command: list[str]
    directory: str | None = None
    request: str = ""
    client: str = ""
    environment: dict[str, str]
    masked: list[str] = []
    body: bytes = b""
    body_length: _Number = 0
    timeout: Annotated[float, Meta(ge=0, le=1e9)] = 0.0
    limits: dict[str, _Number] = {}
    umask: Annotated[str, Meta(pattern="^(0?[0-7]{3})?$")] = ""
    nice: Annotated[int, Meta(ge=-40, le=40)] = 0
    user: str = ""
    sandbox: CapturedSandbox | None = None
    returncode: Annotated[int, Meta(ge=-255, le=255)] | None = None
    status: Annotated[int, Meta(ge=0, le=999)] = 0
    reason: str = ""
    took: _Seconds = 0.0
    cpu: _Seconds | None = None
    header: list[str] = []
    stderr: list[str] = []


class BadCapture(Exception):
    """A file is no capture; the message says why."""


def encoded(capture: Capture) -> bytes:
    """The content of a capture's file."""
    return json.dumps(msgspec.to_builtins(capture), indent=1).encode() + b"\n"


def decoded(content: bytes) -> Capture:
    """Read the content of a capture's file.

    :raises BadCapture: it is none.
    """
    try:
        capture = msgspec.convert(json.loads(content), Capture)
    except (ValueError, RecursionError) as error:
        raise BadCapture(f"is no capture: {str(error)[:200]}") from None
    if capture.version != VERSION:
        raise BadCapture(f"has version {capture.version}, and this poolsrv reads {VERSION}")
    if not capture.command:
        raise BadCapture("is no capture: it has no command")
    return capture
