"""The environment of programs: a request as variables (RFC 3875 section 4.1). Functions without side effects.

A program's environment has three layers, of which a later one wins:

1. `base_environment`: PATH and what the config passes on from the server's own environment. It is the same for all
   programs of a listener, so it is made once. Programs see nothing else of the server's environment.
2. The variables of the request.
3. What the config sets (`environment`). It comes last, so that an administrator can set HTTPS=on behind a proxy.

Header fields become HTTP_* variables, except those that would be wrong or dangerous there:

- `Proxy`: programs take HTTP_PROXY for their own outgoing proxy ("httpoxy");
- `Redirect-Status`: older versions of php-cgi take it for the server's own REDIRECT_STATUS (below);
- names with an underscore: a variable does not tell it from a hyphen, so a client could get past a proxy in front that
  filters a field; and names with any other character that no shell variable can have;
- Content-Type and Content-Length, which have variables of their own; Transfer-Encoding, Trailer and TE, which are
  about a framing that the program does not see; Connection, Keep-Alive and Upgrade, which are about the connection
  (RFC 3875 section 4.1.18); Expect, which the server has answered;
- Proxy-Authorization; and Authorization, unless the config passes it on.

All values are str as `os.fsdecode` gives them, so that the bytes reach the program as they came.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache
from importlib.metadata import version

from poolsrv_http import CONNECTION_FIELDS, Endpoints, RequestHead, host_name, port_of

from .scripts import Script

__all__ = [
    "DEFAULT_PATH",
    "SOFTWARE",
    "base_environment",
    "http_environment",
    "inetd_environment",
    "line_environment",
]

SOFTWARE = f"poolsrv/{version('poolsrv')}"

# For programs of a config without a PATH. They need one: git-http-backend has to find git, and dash exports none.
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"

_ENCODING = sys.getfilesystemencoding()
_HIDDEN = CONNECTION_FIELDS | {b"proxy", b"content-type", b"expect", b"proxy-authorization", b"redirect-status"}


@lru_cache(maxsize=1024)
def _variable(name: bytes) -> str | None:
    """The variable for a header field, whose name is in lower case; None if it gets none."""
    if name in _HIDDEN or not name.replace(b"-", b"").isalnum():
        return None
    return "HTTP_" + name.decode("ascii").upper().replace("-", "_")


def base_environment(server: Mapping[str, str], passed: Iterable[str], fixed: Mapping[str, str]) -> dict[str, str]:
    """The variables that are the same for all programs of a listener.

    :param server: the server's own environment (`os.environ`).
    :param passed: names of variables to take from it, where they are set.
    :param fixed: what the config sets; only its PATH counts here.
    """
    base = {"PATH": DEFAULT_PATH}
    for name in passed:
        if name in server:
            base[name] = server[name]
    if "PATH" in fixed:
        base["PATH"] = fixed["PATH"]
    return base


def http_environment(
    request: RequestHead,
    script: Script,
    endpoints: Endpoints,
    *,
    base: Mapping[str, str],
    fixed: Mapping[str, str],
    document_root: str,
    software: str,
    body_length: int | None,
    pass_authorization: bool = False,
    user: str = "",
    auth_type: str = "",
) -> dict[str, str]:
    """The environment of a CGI program (RFC 3875 section 4.1).

    :param base: from `base_environment`.
    :param fixed: what the config sets; it wins over all else.
    :param document_root: absolute path of the directory of static files, or of the programs' root.
    :param software: name and version of this server (SERVER_SOFTWARE).
    :param body_length: bytes of the body on the program's standard input, decoded; None where the request has no body
        (section 4.1.2).
    :param pass_authorization: whether the program gets HTTP_AUTHORIZATION.
    :param user: the user that a trusted proxy has authenticated (section 4.1.11), or "".
    :param auth_type: how the proxy did that (section 4.1.1).
    """
    environment = {
        **base,
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": software,
        "SERVER_PROTOCOL": "HTTP/1.1" if request.version[1] else "HTTP/1.0",
        "SERVER_NAME": host_name(request.host) or _own_name(endpoints),
        "SERVER_PORT": _server_port(request, endpoints),
        "REQUEST_METHOD": request.method,
        "REQUEST_URI": request.target,
        "QUERY_STRING": request.query,
        "SCRIPT_NAME": script.script_name,
        "SCRIPT_FILENAME": script.filename,
        "DOCUMENT_ROOT": document_root,
        # A client of a unix socket has no address, and the value says so: "" or 127.0.0.1 would not be true.
        "REMOTE_ADDR": endpoints.remote_address or "unix:",
        "REMOTE_PORT": str(endpoints.remote_port),
    }
    if endpoints.tls:
        environment["HTTPS"] = "on"
    if script.interpreted:
        # php-cgi insists on it (cgi.force_redirect). Apache sets it when it redirects to the handler of an Action.
        environment["REDIRECT_STATUS"] = "200"
    if user:
        environment["REMOTE_USER"] = user
        environment["AUTH_TYPE"] = auth_type
    if script.path_info:
        environment["PATH_INFO"] = script.path_info
        environment["PATH_TRANSLATED"] = document_root.rstrip("/") + script.path_info
    if body_length is not None:
        environment["CONTENT_LENGTH"] = str(body_length)
    headers = request.headers
    content_type = headers.get(b"content-type")
    if content_type is not None:
        environment["CONTENT_TYPE"] = content_type.decode(_ENCODING, "surrogateescape")
    for name, value in headers.items():
        variable = _variable(name)
        if variable is not None:
            environment[variable] = value.decode(_ENCODING, "surrogateescape")
    if not pass_authorization:
        environment.pop("HTTP_AUTHORIZATION", None)
    if b"host" in headers:
        # The host of an absolute target replaces the one of the field (RFC 9112 section 3.2.2).
        environment["HTTP_HOST"] = request.host.decode("ascii")
    if fixed:
        environment.update(fixed)
    return environment


def inetd_environment(endpoints: Endpoints, *, base: Mapping[str, str], fixed: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program with the connection on its descriptors 0 and 1.

    The variables are those of UCSPI (https://cr.yp.to/proto/ucspi.txt, tcp-environ(5)), and those of systemd's
    ``Accept=yes`` (REMOTE_ADDR, REMOTE_PORT; systemd.exec(5)). PROTO is TCP for IPv4 and IPv6, or UNIX. Host names and
    the name of the remote user are left out, since they would have to be looked up.
    """
    if not endpoints.remote_address:
        return {**base, "PROTO": "UNIX", "UNIXLOCALPATH": endpoints.local_address, **fixed}
    return {
        **base,
        "PROTO": "TCP",
        "TCPLOCALIP": endpoints.local_address,
        "TCPLOCALPORT": str(endpoints.local_port),
        "TCPREMOTEIP": endpoints.remote_address,
        "TCPREMOTEPORT": str(endpoints.remote_port),
        "REMOTE_ADDR": endpoints.remote_address,
        "REMOTE_PORT": str(endpoints.remote_port),
        **fixed,
    }


def line_environment(
    endpoints: Endpoints, *, base: Mapping[str, str], fixed: Mapping[str, str], software: str
) -> dict[str, str]:
    """The environment of a program of the "line" protocol: the two ends of its connection."""
    return {
        **base,
        "SERVER_SOFTWARE": software,
        "SERVER_NAME": _own_name(endpoints),
        "SERVER_PORT": str(endpoints.local_port),
        "REMOTE_ADDR": endpoints.remote_address or "unix:",
        "REMOTE_PORT": str(endpoints.remote_port),
        **fixed,
    }


def _own_name(endpoints: Endpoints) -> str:
    """The server's name for a client that names no host: the address that it connected to, in brackets for IPv6."""
    address = endpoints.local_address
    if not endpoints.local_port:
        return "localhost"
    return f"[{address}]" if ":" in address else address


def _server_port(request: RequestHead, endpoints: Endpoints) -> str:
    """The port that the request came in on (RFC 3875 section 4.1.15); on a unix socket, the one in its host."""
    if endpoints.server_port or endpoints.local_port:
        return str(endpoints.server_port or endpoints.local_port)
    return port_of(request.host) or ("443" if endpoints.tls else "80")
