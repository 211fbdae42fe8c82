"""What the attributes of xinetd.conf(5) mean here."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping

from . import internal
from .addresses import bound
from .attributes import Attribute, Attributes
from .clients import admit
from .command import Preparation
from .limits import limit_program
from .ports import port_of
from .service import Place, Service

# What is logged here too: of connections by log_connections, and of refusals always.
_LOGGED = {"log_on_success": {"HOST", "PID", "DURATION", "EXIT", "TRAFFIC"}, "log_on_failure": {"HOST", "ATTEMPT"}}
# Why an attribute has no counterpart; those that are not here say so themselves.
_WHY = {
    "access_times": "no counterpart: here clients are served at any time",
    "max_load": "no counterpart: `max_connections` and `connection_rate` limit the load",
    "banner_fail": "no counterpart: a client that is refused sees a reset",
    "libwrap": "no counterpart: TCP wrappers are not used; write their rules as `allow` and `deny`",
    "mdns": "no counterpart",
    "deny_time": "no counterpart",
    "groups": "here programs always have the supplementary groups of their user",
    "rpc_version": "RPC services can't be served",
    "rpc_number": "RPC services can't be served",
}
_FLAGS = {
    "INTERCEPT": "no counterpart, and not needed without wait",
    "IDONLY": "no counterpart: no remote user is asked for",
    "LABELED": "no counterpart: programs have the SELinux context of the server",
}
_KNOWN_FLAGS = {
    *_FLAGS,
    "NORETRY",
    "NAMEINARGS",
    "NODELAY",
    "KEEPALIVE",
    "NOLIBWRAP",
    "SENSOR",
    "IPV4",
    "IPV6",
    "REUSE",
    "DISABLE",
}
_TYPES = {"RPC", "INTERNAL", "TCPMUX", "TCPMUXPLUS", "UNLISTED"}


def service_of(
    name: str, place: Place, source: list[str], own: Mapping[str, Attribute], defaults: Mapping[str, Attribute]
) -> Service:
    """Translate one entry.

    :raises BadSource: a value can't be understood.
    """
    attributes = Attributes(own, defaults)
    service = Service(name=attributes.text("id", name), place=place, source=source)
    flags = _words(attributes, "flags", _KNOWN_FLAGS)
    types = _words(attributes, "type", _TYPES)
    service.disabled = _is_disabled(service.name, attributes, flags)
    service.user, service.group = attributes.text("user"), attributes.text("group")
    _hold_back(service, attributes, types, flags)
    if not service.held_back:
        service.bind = _bind(service, name, attributes, flags)
    preparation = Preparation()
    _limits(service, attributes)
    limit_program(service, attributes, preparation)
    if "INTERNAL" in types or "SENSOR" in flags:
        service.command, service.options = (), {}
        internal.serve(service, name)
    else:
        _program(service, attributes, flags, preparation)
    admit(
        service,
        attributes.all("only_from") if "only_from" in attributes else None,
        attributes.all("no_access"),
        ("only_from", "no_access"),
    )
    _notes(service, attributes, flags)
    return service


def _words(attributes: Attributes, name: str, known: set[str]) -> set[str]:
    words = {word.upper() for word in attributes.all(name)}
    if unknown := sorted(words - known):
        raise attributes.place(name).mistake(
            f'"{name}" has "{unknown[0]}", expected some of {", ".join(sorted(known))}'
        )
    return words


def _is_disabled(name: str, attributes: Attributes, flags: set[str]) -> bool:
    enabled, disabled = attributes.all("enabled"), attributes.all("disabled")
    is_left_out = name in disabled or ("enabled" in attributes and name not in enabled)
    return attributes.yes("disable") is True or "DISABLE" in flags or is_left_out


def _hold_back(service: Service, attributes: Attributes, types: set[str], flags: set[str]) -> None:
    """What can't be served at all."""
    kind = attributes.text("socket_type", "stream").lower()
    protocol = attributes.text("protocol", "tcp").lower()
    waits = attributes.yes("wait")
    if kind not in ("stream", "dgram", "raw", "seqpacket"):
        raise attributes.place("socket_type").mistake(
            f'"socket_type" is "{kind}", expected stream, dgram, raw or seqpacket'
        )
    if "RPC" in types:
        service.held_back.append("an RPC service: no counterpart")
    elif types & {"TCPMUX", "TCPMUXPLUS"}:
        service.held_back.append("a TCPMUX service: no counterpart")
    elif kind != "stream" or protocol not in ("tcp", "tcp4", "tcp6"):
        service.held_back.append(f"{kind} over {protocol}: no counterpart, only TCP is served")
    elif waits:
        service.held_back.append(
            "wait = yes: no counterpart, the program accepts connections itself: run it as a service of its own"
        )
    if "SENSOR" in flags:
        service.held_back.append("flags = SENSOR: no counterpart")


def _bind(service: Service, name: str, attributes: Attributes, flags: set[str]) -> list[str]:
    place = attributes.place("port") if "port" in attributes else service.place
    port = port_of(service, attributes.text("port", name), place)
    if port is None:
        return []
    host = attributes.text("interface") or attributes.text("bind")
    attributes.all("bind")
    only_ipv6 = attributes.yes("v6only") is True
    family = 4 if "IPV4" in flags else 6 if only_ipv6 else 0
    return bound(service, host, port, family)


def _limits(service: Service, attributes: Attributes) -> None:
    instances, per_source = attributes.number("instances"), attributes.number("per_source")
    if instances is not None:
        service.set("max_connections", max(instances, 1), "instances")
        service.set("when_full", "refuse")
    if per_source is not None:
        service.set("max_per_source", max(per_source, 1), "per_source")
    if "cps" in attributes:
        values = attributes.all("cps")
        if not values or len(values) > 2 or not all(re.fullmatch(r"[0-9]{1,9}", value) for value in values):
            raise attributes.place("cps").mistake('"cps" expected two numbers: connections a second, and seconds')
        service.set("connection_rate", min(float(values[0]), 1e6), "cps; a rate never switches the service off")


def _program(service: Service, attributes: Attributes, flags: set[str], preparation: Preparation) -> None:
    for name in ("banner", "banner_success"):
        if name in attributes:
            preparation.show(attributes.text(name))
    if "redirect" in attributes:
        _redirect(service, attributes)
        return
    attributes.all("redirect")
    server, arguments = attributes.text("server"), attributes.all("server_args")
    if not server:
        if not service.held_back:
            raise service.place.mistake(f'"{service.name}" has no server, expected "server = FILE"')
        return
    if "NAMEINARGS" in flags and arguments:
        server, arguments = internal.without_wrapper(service, server, arguments, preparation)
    service.server, service.command = server, preparation.apply([server, *arguments])
    service.option("stderr", "client", "as before: standard error is the connection too")
    service.option("timeout", 0.0, "as before: no limit")
    is_limited = "max_connections" in service.listener
    service.option("max_programs", 0, "max_connections limits them" if is_limited else "as before: no limit")
    if environment := attributes.all("env"):
        pairs = [pair.partition("=") for pair in environment]
        service.option("environment", {key: value for key, _, value in pairs if key}, "env")
    if passed := attributes.all("passenv"):
        service.option("pass_environment", passed, "passenv")


def _redirect(service: Service, attributes: Attributes) -> None:
    target = attributes.all("redirect")
    if len(target) != 2:
        raise attributes.place("redirect").mistake('"redirect" expected an address and a port')
    for unused in ("server", "server_args"):
        attributes.all(unused)
    host = f"[{target[0]}]" if ":" in target[0] else target[0]
    service.command = (shutil.which("socat") or "/usr/bin/socat", "-", f"TCP:{host}:{target[1]}")
    service.option("timeout", 0.0)
    service.option("max_programs", 0)
    service.lose(f"redirect = {' '.join(target)}", "socat does it here, a process for each connection")


def _logs(service: Service, attributes: Attributes) -> None:
    if "log_type" in attributes:
        kind = " ".join(attributes.all("log_type"))
        service.lose(f"log_type = {kind}", "no counterpart, all services share one log ([log])")
    words = {
        name: list(dict.fromkeys(word.upper() for word in attributes.all(name)))
        for name in ("log_on_success", "log_on_failure")
    }
    if set(words["log_on_success"]) & _LOGGED["log_on_success"]:
        service.set("log_connections", True, "log_on_success")
    if refused := [word for word in words["log_on_failure"] if word in _LOGGED["log_on_failure"]]:
        service.lose(
            f"log_on_failure = {' '.join(refused)}",
            "the log has a line when refusals begin and when they end; `poolsrv status --json` has the latest clients",
        )
    if names := [name for name, found in words.items() if "USERID" in found]:
        service.lose(
            f"USERID in {' and '.join(names)}", "only this is lost: no counterpart, no remote user is asked for"
        )
    for name, found in words.items():
        if left := [word for word in found if word not in _LOGGED[name] and word != "USERID"]:
            service.lose(f"{name} = {' '.join(left)}", "no counterpart")


def _notes(service: Service, attributes: Attributes, flags: set[str]) -> None:
    _logs(service, attributes)
    for name in ("deny_time", "mdns"):
        if name not in attributes:
            attributes.all(name)
    for name, value in attributes.left():
        service.lose(f"{name} = {value}", _WHY.get(name, "no counterpart"))
    for flag in sorted(flags & _FLAGS.keys()):
        service.lose(f"flags = {flag}", _FLAGS[flag])
