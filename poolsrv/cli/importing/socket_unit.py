"""systemd's ``.socket`` units with ``Accept=yes``, and the template service that belongs to each."""

from __future__ import annotations

import re
from pathlib import Path

from . import units
from .clients import admit
from .exec_service import run_service
from .lines import Line, read_lines
from .networks import EVERYBODY
from .service import Place, Service
from .specifiers import expanded
from .units import Unit

_OTHER_SOCKETS = (
    "ListenDatagram", "ListenSequentialPacket", "ListenFIFO", "ListenSpecial", "ListenNetlink", "ListenMessageQueue",
    "ListenUSBFunction",
)  # fmt: skip
# Settings that mean nothing here, or are met anyway.
_MET = {"Accept", "FileDescriptorName", "ReusePort", "RemoveOnStop", "DirectoryMode", "TimeoutSec", "FlushPending"}
LARGEST_BACKLOG = 65535
LONGEST_KEEPALIVE = 32767


class SocketUnit:
    """One unit.

    :raises BadSource: a line that can't be understood.
    """

    def __init__(self, path: Path, lines: list[Line]) -> None:
        self._path = path
        self._unit = units.load(path, read_lines, lines)
        self.accepts = self._unit.yes("Socket", "Accept")

    def services(self) -> list[Service]:
        """The service of this unit.

        :raises BadSource: a value can't be understood.
        """
        unit = self._unit
        if not unit.has("Socket"):
            raise Place(self._path).mistake("no section [Socket], expected a .socket unit")
        service = Service(name=self._path.stem, place=Place(self._path), source=list(unit.source))
        if not self.accepts:
            service.held_back.append(
                'Accept=no: its service takes the listening socket itself; `bind = "systemd:NAME"` serves on such a one'
            )
        self._bind(service)
        self._limits(service)
        template = f"{self._path.stem}@.service"
        found = units.find(self._path, template, read_lines) if self.accepts else None
        if found is not None:
            service.source += [f"# {template}", *found.source]
            run_service(service, found, self._path.stem)
        elif self.accepts:
            service.held_back.append(
                f"{template} is neither beside it nor in systemd's folders, so its program is not known"
            )
        self._admit(service, found)
        self._notes(service)
        return [service]

    def _bind(self, service: Service) -> None:
        unit = self._unit
        only_ipv6 = unit.text("Socket", "BindIPv6Only") == "ipv6-only"
        for value in unit.all("Socket", "ListenStream"):
            address = expanded(value, self._path.stem)
            if address is None or not (bound := _address(address, only_ipv6)):
                service.held_back.append(f"ListenStream={value}: no counterpart")
            else:
                service.bind.append(bound)
        for name in _OTHER_SOCKETS:
            for value in unit.all("Socket", name):
                service.lose(f"{name}={value}", "no counterpart, only TCP and unix stream sockets are served")
        if not service.bind and not service.held_back:
            service.held_back.append("it has no ListenStream=: only TCP and unix stream sockets are served")

    def _limits(self, service: Service) -> None:
        unit = self._unit
        most = unit.number("Socket", "MaxConnections", int)
        service.set(
            "max_connections", int(64 if most is None else most) or 1, "MaxConnections=; systemd's default is 64"
        )
        service.set("when_full", "refuse")
        is_unix = [address.startswith("unix:") for address in service.bind]
        if any(is_unix):
            mode = unit.text("Socket", "SocketMode", "0666")
            if not re.fullmatch(r"0?[0-7]{1,3}", mode):
                raise unit.place("Socket", "SocketMode").mistake(f'SocketMode= is "{mode}", expected octal digits')
            service.set("socket_mode", f"0{int(mode, 8):03o}", "SocketMode=; 0666 is its default")
        per_source = unit.number("Socket", "MaxConnectionsPerSource", int)
        if per_source and per_source > 0 and not all(is_unix):
            service.set("max_per_source", int(per_source))
        if (backlog := unit.number("Socket", "Backlog", int)) is not None and backlog > 0:
            service.set("backlog", min(int(backlog), LARGEST_BACKLOG))
        burst = unit.number("Socket", "TriggerLimitBurst", int)
        interval = unit.number("Socket", "TriggerLimitIntervalSec", units.seconds)
        if burst and interval != 0:
            service.set("connection_rate", min(round(burst / (interval or 2), 3), 1e6), "TriggerLimitBurst=")
            service.set("connection_rate_burst", int(burst))
        if not all(is_unix):
            self._tcp(service)

    def _tcp(self, service: Service) -> None:
        unit = self._unit
        if unit.all("Socket", "NoDelay"):
            service.set("tcp_nodelay", unit.yes("Socket", "NoDelay"))
        time = unit.number("Socket", "KeepAliveTimeSec", units.seconds)
        if unit.yes("Socket", "KeepAlive") and time is not None:
            service.set("keepalive", min(max(int(time), 1), LONGEST_KEEPALIVE))
        if unit.yes("Socket", "ReusePort"):
            service.set("reuse_port", True)

    def _admit(self, service: Service, found: Unit | None) -> None:
        allowed: list[str] = []
        denied: list[str] = []
        for unit, section in ((self._unit, "Socket"), (found, "Service")):
            if unit is not None:
                allowed += " ".join(unit.all(section, "IPAddressAllow")).split()
                denied += " ".join(unit.all(section, "IPAddressDeny")).split()
        if not denied:
            return  # without it, nobody is refused
        is_for_all = "any" in denied or {"0.0.0.0/0", "::/0"} <= set(denied)
        if is_for_all:
            admit(service, allowed, (), ("IPAddressAllow", "IPAddressDeny"))
        else:
            admit(service, [*allowed, *EVERYBODY], denied, ("IPAddressAllow", "IPAddressDeny"))

    def _notes(self, service: Service) -> None:
        for name, value in self._unit.left("Socket"):
            if name not in _MET:
                service.lose(f"{name}={value}", "no counterpart")


def _address(text: str, only_ipv6: bool) -> str:
    """An address of ``ListenStream=`` as ``bind`` takes it; empty if it has no counterpart."""
    if text.startswith("/"):
        return f"unix:{text}"
    if re.fullmatch(r"\d{1,5}", text):
        return f"[::]:{text}" if only_ipv6 else f":{text}"
    if re.fullmatch(r"\[::\]:\d{1,5}", text) and not only_ipv6:
        return f":{text.rpartition(':')[2]}"
    if re.fullmatch(r"(\d+\.\d+\.\d+\.\d+|\[[0-9a-fA-F:.%\w]+\]):\d{1,5}", text):
        return text
    return ""
