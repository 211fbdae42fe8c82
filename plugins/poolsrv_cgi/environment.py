"""A request as environment variables (RFC 3875 section 4.1), by functions without side effects.

A program's environment has three layers, a later one wins:

1. `base_environment`: PATH and what the config passes on from the server's own environment. The same for every
   program of a listener, so it is made once. Nothing else of the server's environment is seen by programs.
2. The variables of the request.
3. What the config sets (`environment`). It comes last, so that an administrator can say HTTPS=on behind a proxy.

Header fields become HTTP_* variables, except those that would be wrong or dangerous there:

- `Proxy`, which would become HTTP_PROXY, which programs take for their own outgoing proxy ("httpoxy");
- `Redirect-Status`, which older versions of php-cgi take for the server's own word (REDIRECT_STATUS, below);
- names with an underscore, which can't be told from a hyphen in a variable, so that a client could get past a proxy in
  front that filters a header; and names with any other character that no shell variable can have;
- Content-Type and Content-Length, which have variables of their own; Transfer-Encoding, Trailer and TE, which are
  about a framing that the program does not see; Connection, Keep-Alive and Upgrade, which are about the connection
  (RFC 3875 section 4.1.18); Expect, which the server has answered;
- Authorization and Proxy-Authorization, as long as the config does not pass Authorization on.

All values are str as `os.fsdecode` gives them: the bytes arrive in the program as they came.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping
from functools import lru_cache

from poolsrv_http import Endpoints, RequestHead, host_name, port_of

from .scripts import Script

__all__ = [
    "DEFAULT_PATH",
    "base_environment",
    "http_environment",
    "inetd_environment",
    "line_environment",
]

# Where nothing else is configured; without a PATH git-http-backend does not find git, and dash does not export one.
DEFAULT_PATH = "/usr/local/bin:/usr/bin:/bin"

_ENCODING = sys.getfilesystemencoding()
_HIDDEN = frozenset(
    (
        b"proxy",
        b"content-type",
        b"content-length",
        b"transfer-encoding",
        b"trailer",
        b"te",
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"upgrade",
        b"expect",
        b"proxy-authorization",
        b"redirect-status",
    )
)


@lru_cache(maxsize=1024)
def _variable(name: bytes) -> str | None:
    """The variable for a header field's name in lower case, None if it gets none."""
    if name in _HIDDEN or not name.replace(b"-", b"").isalnum():
        return None
    return "HTTP_" + name.decode("ascii").upper().replace("-", "_")


def base_environment(server: Mapping[str, str], passed: Iterable[str], fixed: Mapping[str, str]) -> dict[str, str]:
    """What is the same for every program of a listener.

    :param server: the server's own environment (`os.environ`).
    :param passed: names of variables to take from it, where they are set.
    :param fixed: what the config sets; only a PATH among it counts here.
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
    program: Script,
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
    :param fixed: what the config sets: wins over all else.
    :param document_root: absolute path of the programs' root directory.
    :param software: name and version of this server (SERVER_SOFTWARE).
    :param body_length: bytes that the program will find on its standard input, decoded; None where the request has no
        body (section 4.1.2).
    :param pass_authorization: whether the program gets HTTP_AUTHORIZATION.
    :param user: whom somebody who is believed has authenticated (section 4.1.11); "" for nobody.
    :param auth_type: how (section 4.1.1).
    """
    environment = dict(base)
    environment["GATEWAY_INTERFACE"] = "CGI/1.1"
    environment["SERVER_SOFTWARE"] = software
    environment["SERVER_PROTOCOL"] = "HTTP/1.1" if request.version[1] else "HTTP/1.0"
    environment["SERVER_NAME"] = host_name(request.host) or _own_name(endpoints)
    environment["SERVER_PORT"] = _server_port(request, endpoints)
    environment["REQUEST_METHOD"] = request.method
    environment["REQUEST_URI"] = request.target
    environment["QUERY_STRING"] = request.query
    environment["SCRIPT_NAME"] = program.script_name
    environment["SCRIPT_FILENAME"] = program.filename
    environment["DOCUMENT_ROOT"] = document_root
    # A unix socket's client has no address. The name says so: neither an empty string nor 127.0.0.1 would be true.
    environment["REMOTE_ADDR"] = endpoints.remote_address or "unix:"
    environment["REMOTE_PORT"] = str(endpoints.remote_port)
    if endpoints.tls:
        environment["HTTPS"] = "on"
    if program.interpreted:
        # As after Apache's redirect to the handler of an Action; php-cgi insists on it (cgi.force_redirect).
        environment["REDIRECT_STATUS"] = "200"
    if user:
        environment["REMOTE_USER"] = user
        environment["AUTH_TYPE"] = auth_type
    if program.path_info:
        environment["PATH_INFO"] = program.path_info
        environment["PATH_TRANSLATED"] = document_root.rstrip("/") + program.path_info
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
        # With an absolute target, its host replaces the field's (RFC 9112 section 3.2.2).
        environment["HTTP_HOST"] = request.host.decode("ascii")
    if fixed:
        environment.update(fixed)
    return environment


def inetd_environment(endpoints: Endpoints, *, base: Mapping[str, str], fixed: Mapping[str, str]) -> dict[str, str]:
    """The environment of a program with the connection on its descriptors 0 and 1.

    The variables of the UCSPI convention (https://cr.yp.to/proto/ucspi.txt, tcp-environ(5)): PROTO is TCP for IPv4 and
    IPv6, or UNIX; the host names and the remote user's name, which would have to be looked up, are left out.
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
        **fixed,
    }


def line_environment(
    endpoints: Endpoints, *, base: Mapping[str, str], fixed: Mapping[str, str], software: str
) -> dict[str, str]:
    """The environment of a program of the "line" protocol: who calls, and where."""
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
    """For a client that names no host: the address that it connected to, in brackets if it is an IPv6 one."""
    address = endpoints.local_address
    if not endpoints.local_port:
        return "localhost"
    return f"[{address}]" if ":" in address else address


def _server_port(request: RequestHead, endpoints: Endpoints) -> str:
    """RFC 3875 section 4.1.15: the port that the request came in on; a unix socket has none, so the client's word."""
    if endpoints.server_port or endpoints.local_port:
        return str(endpoints.server_port or endpoints.local_port)
    return port_of(request.host) or ("443" if endpoints.tls else "80")
