"""Lines of the access log, by pure functions: Combined Log Format or JSON.

A log that can be forged is worse than none. Everything that comes from a client is escaped: control characters, DEL,
quotes, backslashes and bytes above 127 become `\\xHH`. So a line is always one request, and every field stays between
its quotes.

Combined Log Format is what Apache calls "combined": address, identity (never known), user, time, request line, status,
bytes of the body, Referer, User-Agent. After it come `name=value` fields of this server; empty ones are left out.
"""

from __future__ import annotations

import ipaddress
import json
import re
import time

import msgspec

__all__ = ["Entry", "combined", "json_line", "mask_address"]

_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_find_unsafe = re.compile(r"[^ !#-\[\]-~]").search
_lone = re.compile("[\ud800-\udfff]").sub  # what no reader of JSON takes
_replace_unsafe = re.compile(r"[^ !#-\[\]-~]").sub


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One request.

    :ivar address: of the client, masked if it is to be; "" for a unix socket.
    :ivar time: of the request's first byte, seconds since the epoch.
    :ivar line: the request line as sent, or what is known of it.
    :ivar status: that the client got; 0 if it got none.
    :ivar body_bytes: bytes of the response's body, without framing.
    :ivar referer, agent, user: from the request, "" where not sent.
    :ivar program: the name of the program that ran for it, "" where none ran.
    :ivar queued: seconds that it waited for this program; None where none ran.
    :ivar first_byte: seconds from `time` to the response's first byte; None where none was sent.
    :ivar total: seconds from `time` to the end.
    :ivar returncode: of the program: exit status, or minus the signal's number; None where none ran.
    :ivar cpu: seconds of CPU time that it and its children used, as wait4 has it.
    :ivar peak_memory: bytes, only where it is the program's own.
    """

    address: str
    time: float
    line: str
    status: int
    body_bytes: int
    referer: str = ""
    agent: str = ""
    user: str = ""
    program: str = ""
    queued: float | None = None
    first_byte: float | None = None
    total: float = 0.0
    returncode: int | None = None
    cpu: float | None = None
    peak_memory: int | None = None


def escape(text: str) -> str:
    """Text from outside as visible ASCII and spaces, without quotes and bare backslashes."""
    if _find_unsafe(text) is None:
        return text
    return _replace_unsafe(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    character = match[0]
    if character in '"\\':
        return "\\" + character
    # A byte that was not text (PEP 383), or another surrogate, which only a program's own text can contain.
    errors = "surrogateescape" if "\udc80" <= character <= "\udcff" else "surrogatepass"
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", errors))


def mask_address(address: str) -> str:
    """Remove the part of an address that tells a client from its neighbours: IPv4 keeps 24 bits, IPv6 48.

    Any other text is kept as it is.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    bits = 8 if parsed.version == 4 else 80
    return str(type(parsed)(int(parsed) >> bits << bits))


def combined(entry: Entry) -> str:
    """The entry as a line in Combined Log Format, with its line end; times in UTC."""
    t = time.gmtime(entry.time)
    stamp = f"{t.tm_mday:02}/{_MONTHS[t.tm_mon - 1]}/{t.tm_year:04}:{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} +0000"
    user = escape(entry.user).replace(" ", "\\x20")
    line = (
        f"{escape(entry.address) or '-'} - {user or '-'} [{stamp}]"
        f' "{escape(entry.line) or "-"}" {entry.status or "-"} {entry.body_bytes or "-"}'
        f' "{escape(entry.referer) or "-"}" "{escape(entry.agent) or "-"}"'
    )
    for name, value in _measured(entry).items():
        line += f" {name}={value:.6f}" if isinstance(value, float) else f" {name}={value}"
    return line + "\n"


def json_line(entry: Entry) -> str:
    """The entry as one line of JSON, with its line end: pure ASCII, only what is known."""
    t = time.gmtime(entry.time)
    milliseconds = int(entry.time % 1 * 1000)
    record: dict[str, object] = {
        "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', t)}.{milliseconds:03}Z",
        "address": entry.address,
        "user": entry.user,
        "request": entry.line,
        "status": entry.status,
        "bytes": entry.body_bytes,
        "referer": entry.referer,
        "agent": entry.agent,
        "program": entry.program,
    }
    known = {
        name: _lone(_escaped, value) if isinstance(value, str) else value
        for name, value in record.items()
        if value != ""
    }
    return json.dumps(known | _measured(entry), ensure_ascii=True) + "\n"


def _measured(entry: Entry) -> dict[str, object]:
    """The measurements: times in seconds, memory in bytes."""
    measured: dict[str, object] = {}
    if entry.queued is not None:
        measured["queued"] = round(entry.queued, 6)
    if entry.first_byte is not None:
        measured["first"] = round(entry.first_byte, 6)
    measured["total"] = round(entry.total, 6)
    if entry.returncode is not None:
        name = "exit" if entry.returncode >= 0 else "signal"
        measured[name] = abs(entry.returncode)
    if entry.cpu is not None:
        measured["cpu"] = round(entry.cpu, 6)
    if entry.peak_memory is not None:
        measured["peak"] = entry.peak_memory
    return measured
