"""``NAME@.service``: the program of a ``.socket`` unit (systemd.service(5), systemd.exec(5))."""

from __future__ import annotations

import re
import shlex

from . import units
from .command import Preparation
from .service import Service
from .specifiers import advice, expanded
from .units import Unit

_LIMITS = {
    "LimitAS": "address_space",
    "LimitCPU": "cpu_seconds",
    "LimitNOFILE": "open_files",
    "LimitNPROC": "processes",
}
_ULIMITS = {"LimitDATA": ("d", 1024), "LimitSTACK": ("s", 1024), "LimitRSS": ("m", 1024), "LimitCORE": ("c", 512),
            "LimitFSIZE": ("f", 512), "LimitMEMLOCK": ("l", 1024)}  # fmt: skip
_WHY = {
    "ExecStartPre": "no counterpart: nothing runs before the program",
    "ExecStartPost": "no counterpart",
    "ExecStopPost": "no counterpart: nothing runs after the program",
    "ExecCondition": "no counterpart: every client is served",
    "SupplementaryGroups": "no counterpart: programs have the groups of their user",
    "EnvironmentFile": "no counterpart: write its variables in `environment`",
    "TimeoutStopSec": "here a program has 5 seconds from TERM to KILL",
    "KillMode": "here the whole process group of the program is ended",
    "Restart": "no counterpart: each client starts a program",
}
# What these confine, cgi's sandbox may confine too.
_CONFINING = ("Protect", "Private", "ReadOnly", "ReadWrite", "Inaccessible", "NoExec", "Restrict", "SystemCall", "Cap")
_MET = {"Type", "SyslogIdentifier", "IPAddressAllow", "IPAddressDeny", "RemainAfterExit"}


def _why_not_for_one(key: str) -> str:
    other = "cgi's `sandbox` may do the same for its programs, or " if key.startswith(_CONFINING) else ""
    return f"no counterpart here; {other}the server's own unit may have it"


def run_service(service: Service, unit: Unit, name: str) -> None:
    """Take over the program, and what is said about it.

    :param name: the name of the socket unit, without its suffix.
    :raises BadSource: a value can't be understood.
    """
    preparation = Preparation()
    is_dynamic = unit.text("Service", "DynamicUser") in ("yes", "true", "1", "on")
    service.user, service.group = unit.text("Service", "User"), unit.text("Service", "Group")
    if is_dynamic:
        service.lose("DynamicUser=yes", "no counterpart in a config; examples/systemd has it for the whole server")
        service.user = service.group = ""
    elif not service.user:
        service.user = "root"
    environment = _environment(service, unit, name)
    directory = unit.text("Service", "WorkingDirectory").removeprefix("-")
    if directory and directory != "/":
        preparation.enter(directory)
    _limits(service, unit, preparation)
    _descriptors(service, unit, preparation)
    _command(service, unit, name, environment, preparation)
    runtime = unit.number("Service", "RuntimeMaxSec", units.seconds)
    service.option("timeout", min(runtime or 0.0, 1e9), "RuntimeMaxSec=; systemd's default is no limit")
    service.option("max_programs", 0, "max_connections limits them")
    if environment:
        service.option("environment", environment, "Environment=")
    if passed := " ".join(unit.all("Service", "PassEnvironment")).split():
        service.option("pass_environment", passed, "PassEnvironment=")
    for key, value in unit.left("Service"):
        if key not in _MET:
            service.lose(f"{key}={value}", _WHY.get(key) or _why_not_for_one(key))


def _environment(service: Service, unit: Unit, name: str) -> dict[str, str]:
    found = {}
    for value in unit.all("Service", "Environment"):
        try:
            words = shlex.split(value)
        except ValueError:
            raise unit.place("Service", "Environment").mistake("Environment= has a quote that is not closed") from None
        for word in words:
            key, equals, text = word.partition("=")
            whole = expanded(text, name)
            if not equals or not key or whole is None:
                service.lose(f"Environment={word}", advice(text) if whole is None else "no counterpart")
            else:
                found[key] = whole
    return found


def _limits(service: Service, unit: Unit, preparation: Preparation) -> None:
    nice = unit.number("Service", "Nice", int)
    if nice:
        service.option("nice", min(max(int(nice), -20), 19))
    if umask := unit.text("Service", "UMask"):
        if not re.fullmatch(r"0?[0-7]{1,3}", umask):
            raise unit.place("Service", "UMask").mistake(f'UMask= is "{umask}", expected octal digits')
        service.option("umask", f"{int(umask, 8):04o}")
    limits = {}
    for setting, key in _LIMITS.items():
        read = (lambda text: units.seconds(text.partition(":")[0])) if key == "cpu_seconds" else units.size
        value = unit.number("Service", setting, read)
        if value is not None:
            limits[key] = max(int(value), 3 if key == "open_files" else 1)
    if limits:
        service.option("limits", limits)
    for setting, (letter, unit_size) in _ULIMITS.items():
        value = unit.number("Service", setting, units.size)
        if value is not None:
            preparation.limit(letter, int(value) // unit_size)


def _descriptors(service: Service, unit: Unit, preparation: Preparation) -> None:
    """What is the connection: standard input, or descriptor 3 (sd_listen_fds(3))."""
    source = unit.text("Service", "StandardInput", "null")
    # systemd.exec(5) says that the default is the journal. With StandardInput=socket it is the socket: so systemd 252.
    output = unit.text("Service", "StandardOutput", "inherit" if source == "socket" else "journal")
    errors = unit.text("Service", "StandardError", "inherit")
    has_output = output == "socket" or (output == "inherit" and source == "socket")
    if source != "socket":
        preparation.export("LISTEN_FDS=1 LISTEN_FDNAMES=connection LISTEN_PID=$$")
        preparation.redirect("3<&0 0</dev/null")
        if source != "null":
            service.lose(f"StandardInput={source}", "no counterpart, it is empty")
    if not has_output:
        preparation.redirect("1>/dev/null" if output == "null" else "1>&2")
    if errors == "socket" or (errors == "inherit" and has_output):
        service.option("stderr", "client", "as before: standard error is the connection too")
    elif errors == "null":
        preparation.redirect("2>/dev/null")
    for setting, value in (("StandardOutput", output), ("StandardError", errors)):
        if value.partition(":")[0] in ("file", "append", "truncate", "fd", "tty"):
            service.lose(f"{setting}={value}", "no counterpart, it goes to the server's log")


def _command(service: Service, unit: Unit, name: str, environment: dict[str, str], preparation: Preparation) -> None:
    commands = unit.all("Service", "ExecStart")
    if not commands:
        service.held_back.append("its service has no ExecStart=")
        return
    if len(commands) > 1:
        service.held_back.append("its service has several ExecStart=: no counterpart, a shell script could run them")
    line = commands[0]
    prefix = re.match(r"[-@:+!]*", line)
    flags = prefix[0] if prefix else ""
    if "+" in flags or "!" in flags:
        service.lose(f"ExecStart={line}", "no counterpart of + and !: it runs as the server's user")
    try:
        words = shlex.split(line[len(flags) :])
    except ValueError:
        raise unit.place("Service", "ExecStart").mistake("ExecStart= has a quote that is not closed") from None
    argv: list[str] = []
    for word in words:
        whole = expanded(word, name)
        if whole is None:
            service.held_back.append(f"ExecStart= has {word}: {advice(word)}")
            whole = word  # in the listener that is a comment
        argv += [whole] if ":" in flags else _substituted(whole, environment)
    if not argv:
        raise unit.place("Service", "ExecStart").mistake("ExecStart= names no program")
    if "@" in flags and len(argv) > 1:
        preparation.call_it(argv.pop(1))
    service.server, service.command = argv[0], preparation.apply(argv)


def _substituted(word: str, environment: dict[str, str]) -> list[str]:
    """Replace variables: ``$NAME`` alone is split at spaces, ``${NAME}`` is not."""
    if match := re.fullmatch(r"\$([A-Za-z_]\w*)", word):
        return environment.get(match[1], "").split()
    found = re.compile(r"\$\$|\$\{([A-Za-z_]\w*)\}")
    return [found.sub(lambda match: environment.get(match[1], "") if match[1] else "$", word)]
