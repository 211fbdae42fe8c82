"""The environment of programs, for each protocol."""

from __future__ import annotations

import os
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from poolsrv_cgi.environment import (
    DEFAULT_PATH,
    base_environment,
    http_environment,
    inetd_environment,
    line_environment,
)
from poolsrv_cgi.scripts import Script
from poolsrv_http.endpoints import Endpoints
from poolsrv_http.head import RequestParser
from poolsrv_http.request_head import RequestError

ENDPOINTS = Endpoints.from_sockets(("2001:db8::1", 40000, 0, 0), ("2001:db8::2", 8080, 0, 0))
PROGRAM = Script(
    argv=("/srv/cgi/x.sh",), filename="/srv/cgi/x.sh", directory="/srv/cgi", script_name="/x.sh", path_info=""
)


def environment(head: bytes, program: Script = PROGRAM, **changes: Any) -> dict[str, str]:
    request = RequestParser().feed(head)
    assert request is not None
    arguments: dict[str, Any] = {
        "base": {"PATH": DEFAULT_PATH},
        "fixed": {},
        "document_root": "/srv/cgi",
        "software": "poolsrv/1",
        "body_length": None,
        **changes,
    }
    endpoints = arguments.pop("endpoints", ENDPOINTS)
    return http_environment(request, program, endpoints, **arguments)


GET = b"GET /x.sh HTTP/1.1\r\nHost: example.org:1234\r\n\r\n"


def test_all_of_a_plain_request() -> None:
    """RFC 3875 section 4.1: what is always there, and nothing else."""
    assert environment(GET) == {
        "PATH": DEFAULT_PATH,
        "GATEWAY_INTERFACE": "CGI/1.1",
        "SERVER_SOFTWARE": "poolsrv/1",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "SERVER_NAME": "example.org",
        "SERVER_PORT": "8080",
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": "/x.sh",
        "QUERY_STRING": "",
        "SCRIPT_NAME": "/x.sh",
        "SCRIPT_FILENAME": "/srv/cgi/x.sh",
        "DOCUMENT_ROOT": "/srv/cgi",
        "REMOTE_ADDR": "2001:db8::1",
        "REMOTE_PORT": "40000",
        "HTTP_HOST": "example.org:1234",
    }


def test_path_info() -> None:
    """RFC 3875 section 4.1.6: PATH_TRANSLATED only with PATH_INFO."""
    program = Script(argv=("/r/x",), filename="/r/x", directory="/r", script_name="/x", path_info="/a/b")
    variables = environment(GET, program, document_root="/r")
    assert (variables["PATH_INFO"], variables["PATH_TRANSLATED"]) == ("/a/b", "/r/a/b")
    assert environment(GET, program, document_root="/")["PATH_TRANSLATED"] == "/a/b"


def test_redirect_status() -> None:
    """A custom of Apache and php-cgi: set for a program that an interpreter runs, and by the server alone."""
    head = b"GET / HTTP/1.1\r\nHost: a\r\nRedirect-Status: 200\r\n\r\n"
    assert not {"REDIRECT_STATUS", "HTTP_REDIRECT_STATUS"} & set(environment(head))
    program = msgspec.structs.replace(PROGRAM, interpreted=True)
    assert environment(GET, program)["REDIRECT_STATUS"] == "200"
    assert environment(GET, program, fixed={"REDIRECT_STATUS": "302"})["REDIRECT_STATUS"] == "302"


def test_body() -> None:
    """RFC 3875 sections 4.1.2 and 4.1.3: CONTENT_LENGTH if and only if there is a body, CONTENT_TYPE if it was sent."""
    head = b"POST /x.sh HTTP/1.1\r\nHost: a\r\nContent-Type: a/b; c=d\r\nTransfer-Encoding: chunked\r\n\r\n"
    variables = environment(head, body_length=12)
    assert variables["CONTENT_LENGTH"] == "12"
    assert variables["CONTENT_TYPE"] == "a/b; c=d"
    assert not {"HTTP_CONTENT_LENGTH", "HTTP_CONTENT_TYPE", "HTTP_TRANSFER_ENCODING"} & set(variables)
    assert environment(head, body_length=0)["CONTENT_LENGTH"] == "0"


def test_authorization() -> None:
    """RFC 3875 section 4.1.18: the password only where the config passes it on (and 4.1.1: no AUTH_TYPE)."""
    head = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic eDp5\r\nProxy-Authorization: Basic eDp5\r\n\r\n"
    assert "HTTP_AUTHORIZATION" not in environment(head)
    variables = environment(head, pass_authorization=True)
    assert variables["HTTP_AUTHORIZATION"] == "Basic eDp5"
    assert not {"AUTH_TYPE", "REMOTE_USER", "HTTP_PROXY_AUTHORIZATION"} & set(variables)


def test_tls() -> None:
    """RFC 3875 section 4.1 (by custom of all servers): HTTPS=on under TLS."""
    tls = Endpoints.from_sockets(("192.0.2.1", 1), ("192.0.2.2", 8443), tls=True)
    assert environment(GET, endpoints=tls)["HTTPS"] == "on"


def test_server_name_and_port() -> None:
    """RFC 3875 sections 4.1.14 and 4.1.15: the host asked for and the port it came in on."""
    old = b"GET / HTTP/1.0\r\n\r\n"
    assert environment(old)["SERVER_NAME"] == "[2001:db8::2]"
    assert "HTTP_HOST" not in environment(old)
    unix = Endpoints.from_sockets("", "/run/www.sock")
    variables = environment(GET, endpoints=unix)
    assert (variables["SERVER_NAME"], variables["SERVER_PORT"]) == ("example.org", "1234")
    assert (variables["REMOTE_ADDR"], variables["REMOTE_PORT"]) == ("unix:", "0")
    variables = environment(b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", endpoints=unix)
    assert (variables["SERVER_NAME"], variables["SERVER_PORT"]) == ("[::1]", "80")
    assert environment(old, endpoints=unix)["SERVER_NAME"] == "localhost"


def test_mapped_addresses() -> None:
    """RFC 3875 section 4.1.8: an IPv4 client of an IPv6 socket has an IPv4 address (RFC 4291 section 2.5.5.2)."""
    mapped = Endpoints.from_sockets(("::ffff:192.0.2.1", 1, 0, 0), ("::ffff:192.0.2.2", 80, 0, 0))
    assert (mapped.remote_address, mapped.local_address) == ("192.0.2.1", "192.0.2.2")
    assert Endpoints.from_sockets(b"", b"\0abstract").local_address == "\0abstract"


def test_layers() -> None:
    """RFC 3875 section 4.1: a clean environment; the config passes on and sets, and what it sets wins."""
    server = {"PATH": "/server/bin", "LANG": "C.UTF-8", "SECRET": "x", "HOME": "/root"}
    base = base_environment(server, ("LANG", "NOT_SET"), {})
    assert base == {"PATH": DEFAULT_PATH, "LANG": "C.UTF-8"}
    assert base_environment(server, ("PATH",), {})["PATH"] == "/server/bin"
    assert base_environment(server, ("PATH",), {"PATH": "/x"})["PATH"] == "/x"
    fixed = {"HTTPS": "on", "SERVER_PORT": "443", "GIT_PROJECT_ROOT": "/srv/git"}
    variables = environment(GET, base=base, fixed=fixed)
    assert variables | fixed == variables
    assert variables["LANG"] == "C.UTF-8"
    assert base == {"PATH": DEFAULT_PATH, "LANG": "C.UTF-8"}  # a pure function


def test_inetd() -> None:
    """The UCSPI convention (tcp-environ(5)); RFC 3875 has no such case."""
    base, fixed = {"PATH": "/bin"}, {"X": "y"}
    assert inetd_environment(ENDPOINTS, base=base, fixed=fixed) == {
        "PATH": "/bin",
        "PROTO": "TCP",
        "TCPLOCALIP": "2001:db8::2",
        "TCPLOCALPORT": "8080",
        "TCPREMOTEIP": "2001:db8::1",
        "TCPREMOTEPORT": "40000",
        "REMOTE_ADDR": "2001:db8::1",
        "REMOTE_PORT": "40000",
        "X": "y",
    }
    unix = Endpoints.from_sockets("", "/run/x.sock")
    assert inetd_environment(unix, base=base, fixed=fixed) == {
        "PATH": "/bin", "PROTO": "UNIX", "UNIXLOCALPATH": "/run/x.sock", "X": "y",
    }  # fmt: skip


def test_line() -> None:
    """RFC 3875 section 4.1 by analogy: the small set of the "line" protocol."""
    assert line_environment(ENDPOINTS, base={"PATH": "/bin"}, fixed={}, software="poolsrv/1") == {
        "PATH": "/bin",
        "SERVER_SOFTWARE": "poolsrv/1",
        "SERVER_NAME": "[2001:db8::2]",
        "SERVER_PORT": "8080",
        "REMOTE_ADDR": "2001:db8::1",
        "REMOTE_PORT": "40000",
    }


TOKEN = st.text(alphabet="!#$%&'*+-.^_`|~019AZaz", min_size=1, max_size=12)
VALUE = st.binary(max_size=40).map(lambda value: bytes(byte for byte in value if byte == 9 or 32 <= byte != 127))


def joined(values: list[bytes], separator: bytes) -> bytes:
    """An empty value has no space in front of it."""
    first, *others = values
    return first + b"".join(separator + (b" " + value if value else b"") for value in others)


@given(
    fields=st.lists(st.tuples(TOKEN, VALUE), max_size=8), query=st.from_regex(rb"[!-\"$->@-~]{0,20}", fullmatch=True)
)
def test_any_request(fields: list[tuple[str, bytes]], query: bytes) -> None:
    """RFC 3875 section 4.1.18: values arrive byte for byte; no field can become any other variable than its own."""
    lines = b"".join(b"%b: %b\r\n" % (name.encode(), value) for name, value in fields)
    head = b"GET /x.sh?" + query + b" HTTP/1.1\r\nHost: a\r\n" + lines + b"\r\n"
    try:
        variables = environment(head)
    except RequestError:
        return
    plain = environment(GET)
    assert variables["QUERY_STRING"] == query.decode()
    extra = {name: value for name, value in variables.items() if name not in plain}
    sent: dict[str, list[bytes]] = {}
    for field, content in fields:
        if field.replace("-", "").isalnum():
            sent.setdefault("HTTP_" + field.upper().replace("-", "_"), []).append(content.strip(b" \t"))
    for name, value in extra.items():
        if name != "CONTENT_TYPE":
            assert os.fsencode(value) in (joined(sent[name], b","), joined(sent[name], b";"))
            assert not {"\0", "\n", "\r"} & set(value)
    for name in set(plain) - {"QUERY_STRING", "REQUEST_URI", "HTTP_HOST", "SERVER_NAME"}:
        assert variables[name] == plain[name]
