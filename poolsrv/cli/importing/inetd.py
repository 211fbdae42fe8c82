"""inetd.conf(5), as the inetds of Debian, GNU and the BSDs read it: a service is a line."""

from __future__ import annotations

import re
from collections.abc import Iterable

from . import internal
from .addresses import bound
from .command import Preparation
from .lines import Line
from .ports import port_of
from .service import BadSource, Place, Service

_OFF = re.compile(r"#<off>#\s*(?=\S)")  # Debian's update-inetd switches a line off with it
_WORD = re.compile(r"""\s*("[^"]*"|'[^']*'|[^\s"']\S*)""")
_FIELDS = "service name, socket type, protocol, wait or nowait, user, program, arguments"
# More starts in a minute than this, and inetd switches the service off for ten minutes.
_PER_MINUTE = 256


class InetdFile:
    """One file."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self._lines = _joined(lines)
        self._address = ""

    def services(self) -> list[Service]:
        """The services of all lines.

        :raises BadSource: with every mistake in the file.
        """
        services: list[Service] = []
        errors: list[str] = []
        for line in self._lines:
            try:
                services += self._line(line)
            except BadSource as error:
                errors += error.lines
        if errors:
            raise BadSource(*errors)
        return services

    def _line(self, line: Line) -> list[Service]:
        off = _OFF.match(line.text)
        fields = _words(line.text[off.end() :] if off else line.text, line.place)
        if not off and len(fields) == 1 and fields[0].endswith(":"):
            self._address = fields[0][:-1].strip("[]")
            return []
        if len(fields) < 6:
            if off:
                return []
            raise line.place.mistake(f"{len(fields)} fields, expected {_FIELDS}")
        try:
            service = self._service(fields, line)
        except BadSource:
            if off:  # it may never have been right
                return []
            raise
        service.disabled = bool(off)
        return [service]

    def _service(self, fields: list[str], line: Line) -> Service:
        name, kind, protocol, wait, user = fields[:5]
        hosts, name = self._hosts(name)
        service = Service(name=name.rpartition("/")[2] if protocol == "unix" else name, place=line.place)
        service.source = [line.text]
        service.user, service.group = _user(user)
        protocol, *buffers = protocol.split(",")
        if buffers:
            service.lose(",".join(buffers), "no counterpart: the kernel sizes the buffers")
        most = self._hold_back(service, kind, protocol, wait, line)
        if not service.held_back:
            self._bind(service, hosts, name, protocol, line)
        self._program(service, fields[5:], name)
        self._rate(service, most, line)
        return service

    def _hosts(self, name: str) -> tuple[list[str], str]:
        if name.startswith("/") or ":" not in name:
            return [self._address], name
        hosts, _, name = name.rpartition(":")
        return [host.strip("[]") for host in hosts.split(",")], name

    def _hold_back(self, service: Service, kind: str, protocol: str, wait: str, line: Line) -> list[str]:
        """Find what can't be served at all.

        :returns: the numbers behind nowait.
        """
        if kind not in ("stream", "dgram", "raw", "rdm", "seqpacket"):
            raise line.place.mistake(f'"{kind}" is no socket type, expected stream or dgram: the fields are {_FIELDS}')
        word, *most = re.split(r"[.:/]", wait)
        if word not in ("wait", "nowait"):
            raise line.place.mistake(f'"{wait}", expected wait or nowait: the fields are {_FIELDS}')
        if protocol.startswith("rpc/"):
            service.held_back.append("an RPC service: no counterpart")
        elif service.name.startswith("tcpmux/"):
            service.held_back.append("a TCPMUX service: no counterpart")
        elif kind != "stream" or protocol not in ("tcp", "tcp4", "tcp6", "tcp46", "unix"):
            service.held_back.append(f"{kind} over {protocol}: no counterpart, only TCP and unix sockets are served")
        elif word == "wait":
            service.held_back.append(
                "wait: no counterpart, the program accepts connections itself: run it as a service of its own"
            )
        return most

    def _bind(self, service: Service, hosts: list[str], name: str, protocol: str, line: Line) -> None:
        if protocol == "unix":
            service.bind = [f"unix:{name}"]
            return
        port = port_of(service, name, line.place)
        family = {"tcp4": 4, "tcp6": 6}.get(protocol, 0)
        for host in hosts if port is not None else ():
            service.bind += bound(service, host, port or 0, family)

    def _program(self, service: Service, fields: list[str], name: str) -> None:
        server, arguments = fields[0], fields[1:]
        if server == "internal":
            internal.serve(service, name)
            return
        preparation = Preparation()
        if arguments:
            server, arguments = internal.without_wrapper(service, server, arguments, preparation)
        service.server, service.command = server, preparation.apply([server, *arguments])
        service.option("stderr", "client", "as before: standard error is the connection too")
        service.option("timeout", 0.0, "as before: no limit")
        service.option("max_programs", 0, "as before: no limit")

    def _rate(self, service: Service, most: list[str], line: Line) -> None:
        """``nowait.400``; FreeBSD's inetd has ``nowait/children/per minute of an address/children of an address``."""
        if any(not re.fullmatch(r"\d{1,6}", number) for number in most):
            raise line.place.mistake(f'"{".".join(most)}" behind nowait, expected numbers')
        if "/" in line.text.split()[3] and most:
            keys = ("max_connections", "rate_per_source", "max_per_source")
            for key, value in zip(keys, map(int, most), strict=False):
                if value:
                    service.set(key, round(value / 60, 3) if key == "rate_per_source" else value)
            return
        number = int(most[0]) if most else _PER_MINUTE
        origin = "" if most else ", inetd's default"
        service.set("connection_rate", round(number / 60, 3), f"{number} a minute{origin}; more connections wait")
        service.set("connection_rate_burst", number)


def _joined(lines: Iterable[Line]) -> list[Line]:
    """Leave out comments, and join lines that begin with a space to the line before."""
    found: list[Line] = []
    for line in lines:
        if not line.text.strip() or (line.text.lstrip().startswith("#") and not _OFF.match(line.text)):
            continue
        if line.text[0] in " \t" and found:
            found[-1] = Line(f"{found[-1].text} {line.text.strip()}", found[-1].place)
        else:
            found.append(line)
    return found


def _words(text: str, place: Place) -> list[str]:
    """Split at spaces; a word may be in quotes."""
    words = []
    position = 0
    text = text.rstrip()
    while position < len(text):
        match = _WORD.match(text, position)
        if match is None:
            raise place.mistake("a quote is not closed")
        word = match[1]
        words.append(word[1:-1] if word[0] in "\"'" else word)
        position = match.end()
    return words


def _user(field: str) -> tuple[str, str]:
    """``user``, ``user.group`` or ``user:group``, and FreeBSD's ``/class`` behind it."""
    user, _, group = field.partition("/")[0].partition(":")
    if not group and "." in user:
        user, _, group = user.partition(".")
    return user, group
