"""What proxies say of their clients: who is believed, and how their fields are read."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from poolsrv_cgi.environment import http_environment
from poolsrv_cgi.options import Options
from poolsrv_cgi.scripts import Script
from poolsrv_http.endpoints import Endpoints
from poolsrv_http.forwarding import Forwarding, Origin, elements_of, node_address
from poolsrv_http.head import RequestParser
from poolsrv_http.request_head import SINGLE_FIELDS, RequestError, RequestHead, RequestLimits

PROXIES = {"10.0.0.1", "10.0.0.2", "10.0.0.3", "2001:db8::10"}
ENDPOINTS = Endpoints.from_sockets(("10.0.0.1", 40000), ("10.0.0.9", 8080))
PROGRAM = Script(argv=("/x",), filename="/x", directory="/", script_name="/x")
ALL = {
    "user_field": "X-User",
    "auth_type_field": "X-Auth-Type",
    "client_field": "X-Forwarded-For",
    "scheme_field": "X-Forwarded-Proto",
    "host_field": "X-Forwarded-Host",
}
RFC_7239 = {"client_field": "Forwarded", "scheme_field": "Forwarded", "host_field": "Forwarded"}


def trusts(address: str) -> bool:
    return address in PROXIES


def request_of(forwarding: Forwarding, *fields: str) -> RequestHead:
    head = "\r\n".join(["GET /x HTTP/1.1", "Host: inner:8080", *fields, "", ""])
    limits = RequestLimits(single=SINGLE_FIELDS | forwarding.single)
    request = RequestParser(limits).feed(head.encode("latin-1"))
    assert request is not None
    return request


def variables(request: RequestHead, origin: Origin) -> dict[str, str]:
    return http_environment(
        request,
        PROGRAM,
        origin.endpoints,
        base={},
        fixed={},
        document_root="/",
        software="x",
        body_length=None,
        user=origin.user,
        auth_type=origin.auth_type,
    )


def believed(*fields: str, **options: str) -> dict[str, str]:
    """The environment where the peer is a trusted proxy."""
    forwarding = Forwarding(Options(**(options or ALL)))  # type: ignore[arg-type]
    return variables(*forwarding.read(request_of(forwarding, *fields), ENDPOINTS, trusts))


def test_everything() -> None:
    """RFC 3875 sections 4.1.1, 4.1.8, 4.1.11, 4.1.14, 4.1.15."""
    found = believed(
        "x-USER: jo",
        "X-Auth-Type: Digest",
        "X-Forwarded-For: 192.0.2.7",
        "X-Forwarded-Proto: https",
        "X-Forwarded-Host: www.example.org",
    )
    assert (found["REMOTE_USER"], found["AUTH_TYPE"]) == ("jo", "Digest")
    assert (found["REMOTE_ADDR"], found["REMOTE_PORT"], found["HTTPS"]) == ("192.0.2.7", "0", "on")
    assert (found["HTTP_HOST"], found["SERVER_NAME"]) == ("www.example.org", "www.example.org")
    assert found["SERVER_PORT"] == "443"


def test_nothing() -> None:
    """What no proxy says is as it is without one."""
    found = believed()
    assert not {"REMOTE_USER", "AUTH_TYPE", "HTTPS"} & set(found)
    assert (found["REMOTE_ADDR"], found["REMOTE_PORT"], found["SERVER_PORT"]) == ("10.0.0.1", "40000", "8080")
    assert (found["HTTP_HOST"], found["SERVER_NAME"]) == ("inner:8080", "inner")


def test_only_fields_that_are_named_count() -> None:
    """A field that is not configured may come from any client."""
    found = believed(
        "X-Forwarded-For: 192.0.2.7", "Forwarded: for=192.0.2.8;proto=https", "X-User: x", user_field="X-U"
    )
    assert not {"REMOTE_USER", "HTTPS"} & set(found)
    assert found["REMOTE_ADDR"] == "10.0.0.1"
    assert not Forwarding(Options()).names


def test_a_peer_that_is_not_believed() -> None:
    """Its fields become no variable at all, in whatever case they are written."""
    forwarding = Forwarding(Options(**{**ALL, "scheme_field": "Forwarded"}))  # type: ignore[arg-type]
    names = ["X-User", "x-user", "X-AUTH-TYPE", "X-Forwarded-For", "Forwarded", "X-Forwarded-HOST"]
    for name in names:
        request = forwarding.without(request_of(forwarding, f"{name}: for=10.0.0.1", "X-Other: y"))
        found = variables(request, Origin(endpoints=ENDPOINTS))
        assert not {key for key in found if "USER" in key or "FORWARDED" in key or "AUTH" in key}
        assert (found["HTTP_X_OTHER"], found["HTTP_HOST"], found["REMOTE_ADDR"]) == ("y", "inner:8080", "10.0.0.1")
    plain = request_of(forwarding, "X-Other: y")
    assert forwarding.without(plain) is plain


def test_names_that_look_alike() -> None:
    """RFC 3875 section 4.1.18: an underscore is no hyphen."""
    found = believed("X_User: root", "X_Forwarded_For: 192.0.2.7", "X-User: jo")
    assert (found["REMOTE_USER"], found["REMOTE_ADDR"], found["HTTP_X_USER"]) == ("jo", "10.0.0.1", "jo")
    assert "HTTP_X_FORWARDED_FOR" not in found


@pytest.mark.parametrize("fields", [("X-User: root", "X-User: jo"), ("X-User:", "x-user: jo"), ("x-auth-type: a",) * 2])
def test_a_user_can_not_be_told_twice(fields: tuple[str, ...]) -> None:
    """A proxy that adds its field to the client's has to be set up rightly first (RFC 9110 section 5.3)."""
    with pytest.raises(RequestError) as caught:
        believed(*fields)
    assert caught.value.status == 400


def test_the_user_and_the_way_of_authentication() -> None:
    """RFC 3875 section 4.1.1: AUTH_TYPE is there with REMOTE_USER."""
    assert believed("X-User: jo", "Authorization: Basic eDp5")["AUTH_TYPE"] == "Basic"
    assert believed("X-User: jo")["AUTH_TYPE"] == "Proxy"
    assert believed("X-User: Jos\xc3\xa9, the 2nd")["REMOTE_USER"] == "José, the 2nd"
    for fields in (["X-User:"], ["X-User:  ", "X-Auth-Type: Basic"], ["X-Auth-Type: Basic"]):
        assert not {"REMOTE_USER", "AUTH_TYPE"} & set(believed(*fields))
    with pytest.raises(RequestError):
        believed("X-User: jo", "X-Auth-Type: a b")


@pytest.mark.parametrize(
    ("fields", "address", "port"),
    [
        (["192.0.2.7"], "192.0.2.7", 0),
        (["192.0.2.7:1234"], "192.0.2.7", 1234),
        (["2001:DB8:0::7"], "2001:db8::7", 0),
        (["[2001:db8::7]"], "2001:db8::7", 0),
        (["[2001:db8::7]:1234"], "2001:db8::7", 1234),
        (["::ffff:192.0.2.7"], "192.0.2.7", 0),
        (["[::ffff:192.0.2.7]:9"], "192.0.2.7", 9),
        (["8.8.8.8, 192.0.2.7"], "192.0.2.7", 0),  # what the client has invented
        (["10.0.0.2, 192.0.2.7"], "192.0.2.7", 0),  # a trusted proxy that it has invented
        (["10.0.0.1", "192.0.2.7"], "192.0.2.7", 0),
        (["192.0.2.7, 10.0.0.2"], "192.0.2.7", 0),
        (["8.8.8.8, 192.0.2.7, 10.0.0.3, 10.0.0.2"], "192.0.2.7", 0),
        (["8.8.8.8", "192.0.2.7,10.0.0.3", "[2001:db8::10]:80"], "192.0.2.7", 0),
        (["192.0.2.7, ::ffff:10.0.0.2"], "192.0.2.7", 0),
        (["10.0.0.3, 10.0.0.2"], "10.0.0.3", 0),  # a proxy is the client
        (["192.0.2.7, , ,"], "192.0.2.7", 0),
        (["8.8.8.8, unknown"], "10.0.0.1", 40000),
        (["8.8.8.8, _hidden"], "10.0.0.1", 40000),
        (["8.8.8.8, unknown, 10.0.0.2:5"], "10.0.0.2", 5),
        (["8.8.8.8, nonsense"], "10.0.0.1", 40000),
        (["192.0.2.7.1"], "10.0.0.1", 40000),
        (["192.0.2.256"], "10.0.0.1", 40000),
        (["192.0.2.07"], "10.0.0.1", 40000),
        (["192.0.2.7:99999"], "10.0.0.1", 40000),
        (["192.0.2.7:"], "10.0.0.1", 40000),
        (["[192.0.2.7]"], "10.0.0.1", 40000),
        (["[2001:db8::7"], "10.0.0.1", 40000),
        (["fe80::1%eth0"], "10.0.0.1", 40000),
        (["unix:"], "10.0.0.1", 40000),
        (["127.1"], "10.0.0.1", 40000),
        ([""], "10.0.0.1", 40000),
    ],
)
def test_the_walk_from_the_end(fields: list[str], address: str, port: int) -> None:
    """RFC 7239 section 8.1: only what the own proxies have added is worth something."""
    found = believed(*(f"X-Forwarded-For: {field}" for field in fields))
    assert (found["REMOTE_ADDR"], found["REMOTE_PORT"]) == (address, str(port))


@pytest.mark.parametrize(
    ("field", "address", "port", "https", "host"),
    [
        ("for=192.0.2.7", "192.0.2.7", 0, False, "inner:8080"),
        ('For="192.0.2.7:1234";Proto=HTTPS;HOST=a.example', "192.0.2.7", 1234, True, "a.example"),
        ('for="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17", 4711, False, "inner:8080"),
        ('for="[2001:db8::17]:_port"', "2001:db8::17", 0, False, "inner:8080"),
        ("for=192.0.2.43, for=192.0.2.7;proto=https;by=203.0.113.60", "192.0.2.7", 0, True, "inner:8080"),
        ("for=192.0.2.7;proto=https;host=a, for=10.0.0.2;proto=http;host=b", "192.0.2.7", 0, True, "a"),
        ("for=192.0.2.7;proto=http, for=10.0.0.2;proto=https", "192.0.2.7", 0, False, "inner:8080"),
        ("for=8.8.8.8;proto=https;host=evil, for=unknown", "10.0.0.1", 40000, False, "inner:8080"),
        ("for=8.8.8.8;host=evil, for=_gazonk;proto=https", "10.0.0.1", 40000, True, "inner:8080"),
        ("for=8.8.8.8, proto=https;by=_x", "10.0.0.1", 40000, True, "inner:8080"),
        (r'for="192.0.2.\7"; host="a.example:4\443"', "192.0.2.7", 0, False, "a.example:4443"),
        (", ;for=192.0.2.7;, ,", "192.0.2.7", 0, False, "inner:8080"),
        ("for=192.0.2.7:80", "192.0.2.7", 80, False, "inner:8080"),
        ("for=192.0.2.7;secret=x;proto=gopher", "192.0.2.7", 0, False, "inner:8080"),
    ],
)
def test_forwarded(field: str, address: str, port: int, https: bool, host: str) -> None:
    """RFC 7239 sections 4 to 6."""
    found = believed(f"Forwarded: {field}", **RFC_7239)
    assert (found["REMOTE_ADDR"], found["REMOTE_PORT"]) == (address, str(port))
    assert (found.get("HTTPS") == "on", found["HTTP_HOST"]) == (https, host)


@pytest.mark.parametrize(
    "field",
    [
        'for="192.0.2.1, for=192.0.2.7',
        'for=1.1.1.1;x=", for=192.0.2.7;by="_p"',
        "for=192.0.2.7;for=192.0.2.8",
        "for=192.0.2.7 for=192.0.2.8",
        "for 192.0.2.7",
        "for=",
        "=x",
        'for="a"b',
        "for=192.0.2.7;host=a/b",
        'for=192.0.2.7;host="a b"',
        "192.0.2.7",
    ],
)
def test_a_malformed_forwarded_is_refused(field: str) -> None:
    """RFC 7239 section 4: quotes left open by a client would hide what the proxy has added."""
    with pytest.raises(RequestError) as caught:
        believed(f"Forwarded: {field}", **RFC_7239)
    assert caught.value.status == 400
    assert str(caught.value).isprintable()


def test_scheme_and_host_are_as_far_from_the_end_as_the_client() -> None:
    """Lists that a chain of proxies has made, and such that a client has begun."""
    chain = "X-Forwarded-For: 8.8.8.8, 192.0.2.7, 10.0.0.2"
    for values, https in (("http, https, http", True), ("https, http, https", False), ("https", True), ("http", False)):
        assert (believed(chain, f"X-Forwarded-Proto: {values}").get("HTTPS") == "on") is https
    spoofed = believed("X-Forwarded-For: 8.8.8.8, 192.0.2.7", "X-Forwarded-Proto: https", "X-Forwarded-Proto: http")
    assert "HTTPS" not in spoofed
    found = believed("X-Forwarded-For: 192.0.2.7, 10.0.0.2", "X-Forwarded-Host: evil, a.example:8443, b.example")
    assert (found["HTTP_HOST"], found["SERVER_PORT"]) == ("a.example:8443", "8443")
    assert believed("X-Forwarded-Proto: https, http").get("HTTPS") is None
    with pytest.raises(RequestError):
        believed("X-Forwarded-Host: a/b")


def test_the_port_that_the_client_knows() -> None:
    """RFC 3875 section 4.1.15."""
    assert believed("X-Forwarded-Proto: https")["SERVER_PORT"] == "8080"  # of the Host that the proxy has passed on
    assert believed("X-Forwarded-Proto: https", "X-Forwarded-Host: a")["SERVER_PORT"] == "443"
    assert believed("X-Forwarded-Proto: http", "X-Forwarded-Host: [::1]")["SERVER_PORT"] == "80"
    assert believed("X-Forwarded-Host: [::1]:81")["SERVER_NAME"] == "[::1]"


def test_a_proxy_in_front_of_tls() -> None:
    """What the proxy says wins over how it has connected."""
    forwarding = Forwarding(Options(**ALL))  # type: ignore[arg-type]
    tls = Endpoints.from_sockets(("10.0.0.1", 1), ("10.0.0.9", 8443), tls=True)
    request = request_of(forwarding, "X-Forwarded-Proto: http")
    assert "HTTPS" not in variables(*forwarding.read(request, tls, trusts))


@given(field=st.one_of(st.binary(max_size=60), st.from_regex(rb'(for=|proto=|"|[\[\]:.,; \\a_]|192.0.2.7){0,20}')))
def test_any_field(field: bytes) -> None:
    """RFC 7239: elements, or a ValueError; an address, or None."""
    node_address(field)
    try:
        elements: list[dict[bytes, bytes]] = elements_of(field)
    except ValueError:
        return
    assert all(elements)


@given(before=st.text('0123456789abcdef.:,[]_ unknow"=;', max_size=40))
def test_no_client_can_be_another(before: str) -> None:
    """RFC 7239 section 8.1: whatever a client sends, the proxy's word behind it holds."""
    options: dict[str, Any] = {"client_field": "X-Forwarded-For"}
    assert believed(f"X-Forwarded-For: {before}, 192.0.2.7", **options)["REMOTE_ADDR"] == "192.0.2.7"
    try:
        found = believed(f"Forwarded: {before}, for=192.0.2.7", **RFC_7239)
    except RequestError:
        return
    assert found["REMOTE_ADDR"] == "192.0.2.7"
