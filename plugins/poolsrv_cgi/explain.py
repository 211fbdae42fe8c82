"""What would answer a request, and why, for `poolsrv explain`: nothing is run."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Protocol
from urllib.parse import urlsplit

import msgspec
from poolsrv_http import Endpoints, FileService, RequestError, RequestHead, RequestLimits, RequestParser

from .environment import SOFTWARE, http_environment, inetd_environment, line_environment
from .line_server import find_script_of_line, refusal
from .options import Options
from .programs.runner import ProgramRunner
from .sandboxing import sandbox_rows
from .scripts import NoScript, Script, ScriptPaths, find_script
from .shebang import find_problem

__all__ = ["explain_http", "explain_inetd", "explain_line"]

Rows = Iterator[tuple[str, str]]

# Whoever asks is no client: the addresses stand for those of a real one (RFC 5737).
_CLIENT = ("192.0.2.1", 49152)
_SERVER = ("127.0.0.1", 80)


class Service(Protocol):
    """What answers HTTP requests: `exchange.CgiService`."""

    paths: ScriptPaths
    document_root: str | None

    def files_for(self, head: RequestHead) -> FileService | None:
        """The static files, if the path is theirs."""


def explain_http(url: str, runner: ProgramRunner, service: Service) -> Rows:
    """Explain a GET of a URL, or of its path alone.

    :raises ValueError: it can't be requested.
    """
    parts = urlsplit(url)
    head = _head(url, parts.netloc)
    yield "request", f"GET {head.target}"
    files = service.files_for(head)
    if files is not None:
        yield from files.explain(head.path)
        return
    found = find_script(service.paths, head.path)
    if isinstance(found, NoScript):
        yield "refused", f"{found.status}: {found.reason}"
        if found.location:
            yield "location", found.location
        return
    options = runner.options
    yield from _program(found, options, found.warm and runner.warm.command_for(found) is not None)
    yield from _confinement(runner)
    endpoints = _endpoints(parts.port or _SERVER[1], parts.scheme == "https")
    environment = http_environment(
        head,
        found,
        endpoints,
        base=runner.base,
        fixed=options.environment,
        document_root=service.document_root if service.document_root is not None else found.root,
        software=SOFTWARE,
        body_length=None,
        pass_authorization=options.pass_authorization,
    )
    yield from _environment(environment)


def explain_line(line: str, runner: ProgramRunner, paths: ScriptPaths) -> Rows:
    """Explain a line, without its line end."""
    yield "line", line
    options = runner.options
    encoded = line.encode(errors="surrogateescape")
    if len(encoded) > options.max_line:
        yield "refused", f"the line is over max_line ({options.max_line} bytes)"
        return
    found = find_script_of_line(paths, encoded, arguments=options.arguments)
    if isinstance(found, NoScript):
        yield "refused", found.reason
        yield "the client gets", refusal(found).decode().rstrip()
        return
    yield from _program(found, options)
    yield from _confinement(runner)
    endpoints = _endpoints(_SERVER[1], tls=False)
    yield from _environment(line_environment(endpoints, base=runner.base, fixed=options.environment, software=SOFTWARE))


def explain_inetd(runner: ProgramRunner) -> Rows:
    """Explain a connection."""
    options = runner.options
    yield "command", shlex.join(options.program)
    yield from _problem(options.program)
    yield from _limits(options)
    yield from _confinement(runner)
    endpoints = _endpoints(_SERVER[1], tls=False)
    yield from _environment(inetd_environment(endpoints, base=runner.base, fixed=options.environment))


def _head(url: str, host: str) -> RequestHead:
    target = url if url.startswith("/") else url.partition("://")[2].removeprefix(host) or "/"
    target = target.partition("#")[0]
    request = f"GET {target} HTTP/1.1\r\nHost: {host.rpartition('@')[2] or 'localhost'}\r\n\r\n"
    try:
        head = RequestParser(RequestLimits()).feed(request.encode(errors="surrogateescape"))
    except RequestError as error:
        raise ValueError(f"{error.status}: {error}") from None
    if head is None:
        raise ValueError("400: not one request")
    return head


def _endpoints(port: int, tls: bool) -> Endpoints:
    return Endpoints(
        remote_address=_CLIENT[0], remote_port=_CLIENT[1], local_address=_SERVER[0], local_port=port, tls=tls
    )


def _program(found: Script, options: Options, warm: bool = False) -> Rows:
    yield "program", found.filename
    yield "command", shlex.join(found.argv)
    yield "directory", found.directory
    yield from _problem(found.argv, found.directory)
    yield "SCRIPT_NAME", found.script_name
    yield "PATH_INFO", found.path_info or "none"
    if found.nph:
        yield "runs", "as a separate process, which writes the whole response itself (nph)"
    elif warm:
        yield "runs", "in a child of a warm interpreter"
    else:
        why = ": warm, but not a Python program" if found.warm else ""
        yield "runs", f"as a separate process{why}"
    yield from _limits(options)


def _problem(argv: Sequence[str], directory: str | None = None) -> Rows:
    if problem := find_problem(argv, directory):
        yield "problem", problem


def _limits(options: Options) -> Rows:
    defaults = {"timeout": "seconds", "output_timeout": "seconds", "max_programs": "", "queue_timeout": "seconds"}
    for name, unit in defaults.items():
        if name == "output_timeout" and options.protocol != "http":
            continue
        value = getattr(options, name)
        yield name, f"{value:g} {unit}".rstrip() if value else "no limit"
    for name, value in msgspec.structs.asdict(options.limits).items():
        if value is not None:
            yield f"limits.{name}", str(value)


def _confinement(runner: ProgramRunner) -> Rows:
    for name in ("user", "group"):
        if (value := getattr(runner.options, name)) is not None:
            yield name, str(value)
    if runner.sandbox is not None:
        yield from sandbox_rows(runner.sandbox)


def _environment(environment: dict[str, str]) -> Rows:
    for name, value in sorted(environment.items()):
        yield "environment", f"{name}={value}"
