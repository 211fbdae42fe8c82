"""``poolsrv replay``: finds a capture, and compares it with what its program does now."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterator, Mapping, Sequence
from difflib import ndiff
from typing import Final, NamedTuple

import msgspec

from ..core.processes import describe_exit
from ..core.text import one_line
from ..core.words import counted
from ..ipc.captures import LONGEST_FILE, SUFFIX, BadCapture, Capture, CapturedSandbox, decoded
from ..ipc.runs import is_id
from .replaying import Replayed
from .tables import moment, span

MASK: Final = "(masked)"
_FIELD: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+:")


class NoCapture(Exception):
    """There is no such capture; the message says why."""


def find(name: str, folders: Sequence[str]) -> str:
    """Find a capture's file by its ID, or the beginning of that.

    :param folders: where captures are.
    :raises NoCapture: there is none, or more than one.
    """
    if not name:  # every ID begins so, and a program would run
        raise NoCapture("no ID, expected one that poolsrv runs shows, the beginning of one, or the path of a capture")
    if not folders:
        raise NoCapture("no listener has the option capture; expected one that has, or the path of a capture")
    found: list[str] = []
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:
            raise NoCapture(f"{folder}: {error.strerror}") from None
        fitting = [one for one in names if one.startswith(name) and one.endswith(SUFFIX)]
        found += [os.path.join(folder, one) for one in fitting if is_id(one.removesuffix(SUFFIX))]
    if not found:
        raise NoCapture(
            f"no capture {one_line(name[:40])} in {', '.join(folders)}; poolsrv runs --failed shows the latest"
        )
    if len(found) > 1:
        ids = ", ".join(os.path.basename(path).removesuffix(SUFFIX) for path in found[:6])
        raise NoCapture(f"{counted(len(found), 'capture begins', 'captures begin')} with {one_line(name[:40])}: {ids}")
    return found[0]


def read(path: str) -> Capture:
    """Read a capture's file.

    :raises NoCapture: it can't be read, or is none.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        with open(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise NoCapture(f"{path} is not a regular file")
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                raise NoCapture(f"{path}: another user may have changed it, expected a file of yours or of root's")
            content = file.read(LONGEST_FILE + 1)
    except OSError as error:
        raise NoCapture(f"{path}: {error.strerror}") from None
    if len(content) > LONGEST_FILE:
        raise NoCapture(f"{path} is no capture: it is too large")
    try:
        return decoded(content)
    except BadCapture as error:
        raise NoCapture(f"{path} {error}") from None


def environment_of(capture: Capture, given: Mapping[str, str]) -> dict[str, str]:
    """The environment to run it with: what is masked is left out, and what is given wins."""
    clear = {name: value for name, value in capture.environment.items() if value != MASK}
    return {**clear, **given}


def warnings(capture: Capture, given: Mapping[str, str]) -> Iterator[str]:
    """What will not be as it was."""
    missing = [name for name in capture.masked if name not in given]
    left_out = [name for name in missing if capture.environment.get(name) == MASK]
    partly = [name for name in missing if name not in left_out]
    if left_out:
        yield f"masked, and so left out: {', '.join(left_out)}; give values with --set NAME=VALUE"
    if partly:
        yield f"with masked parts: {', '.join(partly)}; give values with --set NAME=VALUE"
    if len(capture.body) < capture.body_length:
        yield f"the body has the first {len(capture.body)} of {capture.body_length} bytes (capture_body)"
    if capture.user:
        yield f"in the server it has user {capture.user}; here it has yours"
    if capture.protocol == "inetd":
        yield "what the client sent is not captured: the program reads nothing"


def plan(capture: Capture, environment: Mapping[str, str]) -> list[tuple[str, str]]:
    """What would be run."""
    rows = [
        ("capture", f"{capture.id}, {moment(capture.at)}"),
        ("request", capture.request or "-"),
        ("command", shlex.join(capture.command)),
        ("directory", capture.directory or os.getcwd()),
        ("timeout", f"{capture.timeout:g} s" if capture.timeout else "no limit"),
        ("stdin", f"{len(capture.body)} bytes" if capture.body else "nothing"),
    ]
    rows += [(name, str(value)) for name, value in capture.limits.items()]
    if capture.umask:
        rows.append(("umask", capture.umask))
    if capture.nice:
        rows.append(("nice", str(capture.nice)))
    if capture.sandbox is not None:
        rows += _sandbox_rows(capture.sandbox)
    return rows + [("environment", f"{name}={value}") for name, value in sorted(environment.items())]


def _sandbox_rows(sandbox: CapturedSandbox) -> Iterator[tuple[str, str]]:
    """In the words of `poolsrv explain`."""
    for name, value in msgspec.structs.asdict(sandbox).items():
        if value is None:
            text = "all"
        elif isinstance(value, list):
            text = ", ".join(map(str, value)) or "none"
        elif name == "system_calls":
            text = "strict" if value else "all"
        elif name == "isolated":
            text = "yes" if value else "no"
        else:
            text = f"{value} bytes" if value else "none"
        yield f"sandbox.{name}", text


# --- comparing


class Answer(NamedTuple):
    """What the client of a CGI program gets: the status, 0 if it can't be told, and the lines of the header."""

    status: int
    header: list[str]


def answer_of(capture: Capture, done: Replayed) -> Answer:
    """Tell from the program's output what its client would get, as the server does (RFC 3875 section 6)."""
    if capture.protocol != "http":
        return Answer(0, [])
    end = re.search(rb"\n\r?\n", done.output)
    text = done.output[: end.start()].decode("utf-8", "surrogateescape") if end is not None else ""
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    if end is None or not all(_FIELD.match(line) for line in lines):
        return Answer(504 if done.overdue else 502, [])
    fields = [(name, value.strip(" \t")) for name, _, value in (line.partition(":") for line in lines)]
    by_name = {name.lower(): value for name, value in fields}
    header = [f"{name}: {value}" for name, value in fields if _is_passed(name.lower())]
    location = by_name.get("location")
    if location is not None and len(fields) == 1 and location.startswith("/"):
        return Answer(0, header)  # a local redirect: the status is another answer's
    status = by_name.get("status", "")[:3]
    if not status and location is None and "content-type" not in by_name:
        return Answer(502, [])
    return Answer(int(status) if status.isdecimal() else 302 if location is not None else 200, header)


def _is_passed(name: str) -> bool:
    """Whether a field goes on to the client, and so is in a capture."""
    return name not in ("status", "content-length", "connection", "keep-alive", "transfer-encoding", "date", "server")


class Row(NamedTuple):
    """A line of the comparison.

    :ivar differs: None where that means nothing, as of times.
    """

    label: str
    before: str
    now: str
    differs: bool | None


def compare(capture: Capture, done: Replayed) -> list[Row]:
    """Compare, line by line; the header and standard error follow by ``differences``."""
    answer = answer_of(capture, done)
    rows = [Row("outcome", _outcome(capture), _ended(done), _ends_differ(capture, done))]
    if capture.status or answer.status:
        is_known = bool(capture.status and answer.status)
        differs = capture.status != answer.status if is_known else None
        rows.append(Row("status", str(capture.status or "-"), str(answer.status or "-"), differs))
    rows.append(Row("took", span(capture.took), span(done.took), None))
    rows.append(Row("CPU", span(capture.cpu), span(done.cpu), None))
    if capture.protocol == "http":
        before = [line for line in capture.header if _is_passed(line.partition(":")[0].lower())]
        rows.append(_lines_row("header", before, answer.header))
    rows.append(_lines_row("stderr", capture.stderr, done.stderr))
    return rows


def _lines_row(label: str, before: Sequence[str], now: Sequence[str]) -> Row:
    return Row(label, counted(len(before), "line"), counted(len(now), "line"), list(before) != list(now))


def _ends_differ(capture: Capture, done: Replayed) -> bool:
    if capture.reason.startswith("over its"):
        return not done.overdue
    return capture.returncode != done.returncode or done.overdue


def _outcome(capture: Capture) -> str:
    if capture.returncode is None:
        return capture.reason or "not started"
    return "; ".join(filter(None, (describe_exit(capture.returncode), capture.reason)))


def _ended(done: Replayed) -> str:
    return describe_exit(done.returncode) + ("; over its timeout" if done.overdue else "")


def differences(capture: Capture, done: Replayed) -> Iterator[str]:
    """The lines of the header and of standard error that differ: ``-`` was captured, ``+`` is now."""
    before = [line for line in capture.header if _is_passed(line.partition(":")[0].lower())]
    pairs = [("header", before, answer_of(capture, done).header)] if capture.protocol == "http" else []
    for label, old, new in (*pairs, ("stderr", capture.stderr, done.stderr)):
        if list(old) != list(new):
            yield f"{label}:"
            yield from (f"  {line}" for line in ndiff(list(old), list(new)) if not line.startswith("?"))
