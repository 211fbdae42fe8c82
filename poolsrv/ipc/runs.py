"""Records of program runs: what a worker tells of them, and what ``poolsrv runs`` shows.

Theory. A plugin that runs programs describes each run that has ended (``Worker.report_runs``). A worker sends the
records once a second, at most ``MOST_PER_REPORT`` and ``LONGEST_REPORT`` bytes: of a flood, the failed and the slow
runs, and the latest of the others. So the cost does not grow with the number of runs. Texts are cut and escaped before
they leave the worker; secrets are the plugin's to mask. The dispatcher checks types and lengths: a worker may send
anything.
"""

from __future__ import annotations

import os
from typing import Annotated, ClassVar, Final

import msgspec
from msgspec import Meta

from ..core.text import one_line

MOST_KEPT: Final = 500  # of each kind; pool.runs can't be more
MOST_PER_REPORT: Final = 16
LONGEST_REPORT: Final = 32_000  # bytes of the records in a report; with all else it is below what a report may have
LONGEST_RECORD: Final = 12_000  # bytes of one record

_ID_LETTERS: Final = "abcdefghijkmnpqrstuvwxyz23456789"  # 32, none of which is taken for another
_ID_LENGTH: Final = 8

_LONGEST_NAME: Final = 200  # characters
_LONGEST_TEXT: Final = 1000
_MOST_WORDS: Final = 50
_MOST_VARIABLES: Final = 150
_MOST_LINES: Final = 20
# Characters of a text, and how many variables; tried in this order.
_CUTS: Final = ((_LONGEST_TEXT, _MOST_VARIABLES), (200, _MOST_VARIABLES), (60, _MOST_VARIABLES), (60, 50), (60, 10))

_Name = Annotated[str, Meta(max_length=_LONGEST_NAME)]
_Text = Annotated[str, Meta(max_length=_LONGEST_TEXT)]
_Seconds = Annotated[float, Meta(ge=0, le=1e12)]
_Number = Annotated[int, Meta(ge=-(2**31), le=2**53)]


def new_id() -> str:
    """Make an ID of a run: random, 40 bits, so that it is unique over reloads and restarts."""
    bits = int.from_bytes(os.urandom(5), "big")
    return "".join(_ID_LETTERS[bits >> 5 * place & 31] for place in range(_ID_LENGTH))


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A run of a program that has ended, or could not be started.

    :ivar id: unique, also over restarts.
    :ivar at: when it began, in seconds since the epoch.
    :ivar took: seconds from its start to its end.
    :ivar failed: whether it is the program's fault, or the server's, that it did not do its work.
    :ivar listener: the name of the listener.
    :ivar program: the program's name, for people.
    :ivar command: its arguments, itself included.
    :ivar directory: its working directory; "" for the server's.
    :ivar request: what the client asked for; "" if there is no such thing.
    :ivar client: the client's address.
    :ivar pid: of its process; 0 if it was not started.
    :ivar warm: whether it ran in a child of a warm interpreter.
    :ivar queued: seconds that it waited for its turn.
    :ivar start: seconds that its start took.
    :ivar returncode: exit status, or minus the signal's number; None if it was not started.
    :ivar status: the HTTP status that the client got; 0 if it got none.
    :ivar reason: why the server has ended it, or could not use its output.
    :ivar cpu: seconds of CPU time; None if not known.
    :ivar peak_memory: bytes; None if not known.
    :ivar usage: what else the kernel says (getrusage(2)), by name.
    :ivar environment: all of it, secrets masked.
    :ivar stderr: the last lines of its standard error.
    :ivar capture: the file of its capture; "" if there is none.
    :ivar MOST: records that a worker reports in a second.
    :ivar SLOW: seconds from which a run counts as slow.
    """

    MOST: ClassVar[int] = MOST_PER_REPORT
    SLOW: ClassVar[float] = 1.0

    id: Annotated[str, Meta(pattern=f"^[{_ID_LETTERS}]{{{_ID_LENGTH}}}$")] = msgspec.field(default_factory=new_id)
    at: Annotated[float, Meta(ge=0, le=1e12)]
    took: _Seconds
    failed: bool
    listener: _Name
    program: _Name
    command: Annotated[list[_Text], Meta(max_length=_MOST_WORDS)] = []
    directory: _Text = ""
    request: _Text = ""
    client: _Name = ""
    pid: Annotated[int, Meta(ge=0, le=2**31)] = 0
    warm: bool = False
    queued: _Seconds = 0.0
    start: _Seconds = 0.0
    returncode: Annotated[int, Meta(ge=-255, le=255)] | None = None
    status: Annotated[int, Meta(ge=0, le=999)] = 0
    reason: _Text = ""
    cpu: _Seconds | None = None
    peak_memory: _Number | None = None
    usage: Annotated[dict[_Name, _Number], Meta(max_length=16)] = {}
    environment: Annotated[dict[_Name, _Text], Meta(max_length=_MOST_VARIABLES)] = {}
    stderr: Annotated[list[_Text], Meta(max_length=_MOST_LINES)] = []
    capture: _Text = ""

    @property
    def matters(self) -> bool:
        """Whether it has failed or was slow: such records are kept longer."""
        return self.failed or self.took >= self.SLOW

    def summary(self) -> Run:
        """Leave out what only ``poolsrv runs ID`` shows."""
        return msgspec.structs.replace(self, environment={}, stderr=[], usage={}, directory="")


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Run).decode


def is_id(text: str) -> bool:
    """Whether a text has the form of an ID."""
    return len(text) == _ID_LENGTH and all(letter in _ID_LETTERS for letter in text)


def packed(run: Run) -> msgspec.Raw:
    """Cut and escape a record until it is sure to be accepted, and encode it for a report.

    :raises msgspec.ValidationError: a value has a wrong type, or is out of its range.
    """
    for longest, variables in _CUTS:
        encoded = _encode(_cut(run, longest, variables))
        if len(encoded) <= LONGEST_RECORD:
            break
    else:
        least = msgspec.structs.replace(run, command=run.command[:5], environment={}, stderr=run.stderr[-5:])
        encoded = _encode(_cut(least, 60, 0))
    _decode(encoded)
    return msgspec.Raw(encoded)


def _without_surrogates(value: str) -> str:
    """Escape as ``encodable`` does; many bytes that are no text take no longer than others."""
    try:
        encoded = value.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # one that stands for no byte
        encoded = value.encode("utf-8", "backslashreplace")
    return encoded.decode("utf-8", "backslashreplace")


def _cut(run: Run, longest: int, variables: int) -> Run:
    def text(value: str, most: int = longest) -> str:
        if len(value) <= most and value.isascii() and value.isprintable():  # nearly always
            return value
        value = one_line(_without_surrogates(value[:most]))
        return value if len(value) <= most else value[: most - 3] + "..."

    def name(value: str) -> str:
        return text(value, _LONGEST_NAME)

    return msgspec.structs.replace(
        run,
        listener=name(run.listener),
        program=name(run.program),
        command=[text(word) for word in run.command[:_MOST_WORDS]],
        directory=text(run.directory),
        request=text(run.request),
        client=name(run.client),
        reason=text(run.reason),
        environment={name(key): text(run.environment[key]) for key in list(run.environment)[:variables]},
        stderr=[text(line) for line in run.stderr[-_MOST_LINES:]],
        capture=text(run.capture, _LONGEST_TEXT),
    )
