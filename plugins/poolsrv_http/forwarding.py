"""The client's address, user, scheme and host, as an HTTP proxy in front says in fields of the request.

Such a field is as good as its sender. A peer that is one of the listener's `trusted_proxies` is believed. From any
other peer the field is dropped, so that no handler can take it for the proxy's word either. Nothing is guessed: only
the fields that the config names count, by their exact names.

A proxy appends to the list that it has received. So a list is read from its end. The last entry is what the peer has
said; while an address is that of a trusted proxy, the entry before it is what that proxy has said. The first address
that is not a trusted proxy's is the client's; the client may have invented everything before it. Where a proxy does not
tell ("unknown", a made-up name, RFC 7239 section 6), or an entry can't be read, the walk ends, and the last known
address counts. Scheme and host are what the proxy next to the client saw: as far from the end of their lists, or the
first entry of a shorter list.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from ipaddress import IPv6Address, ip_address
from os import fsdecode

import msgspec

from .authority import is_authority, port_of
from .endpoints import Endpoints
from .options import HttpOptions
from .request_head import RequestError, RequestHead

__all__ = ["Forwarding", "Origin", "elements_of", "node_address"]

FORWARDED = b"forwarded"

_TOKEN = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_match_token = re.compile(_TOKEN).fullmatch
# RFC 7239 section 4, with whitespace around the separators, and with addresses that should be in quotes and are not.
_match_pair = re.compile(
    rb"[ \t]*(?:(" + _TOKEN + rb")=(?:([!#$%&'*+.^_`|~0-9A-Za-z:\[\]/@-]+)"
    rb'|"((?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*)")[ \t]*)?(;|,|\Z)'
).match
# RFC 7239 section 6: an address, with brackets where it is an IPv6 one, and a port, perhaps a made-up one.
# X-Forwarded-For has IPv6 addresses without brackets, too.
_match_node = re.compile(
    r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+))(?::(?:([0-9]{1,5})|_[A-Za-z0-9._-]+))?|([0-9A-Fa-f]*:[0-9A-Fa-f:.]+)"
).fullmatch


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where a request comes from.

    :ivar endpoints: the client's, and the server's as the client knows it.
    :ivar user: the user that a proxy has authenticated; "" for none.
    :ivar auth_type: how the proxy has authenticated that user.
    """

    endpoints: Endpoints
    user: str = ""
    auth_type: str = ""


class Forwarding:
    """The fields that one listener's proxies set.

    :ivar names: all their names, in lower case; empty where no proxy is believed.
    :ivar single: those that may come only once.
    """

    def __init__(self, options: HttpOptions) -> None:
        self._user, self._auth_type, self._client, self._scheme, self._host = (
            name.lower().encode("ascii")
            for name in (
                options.user_field,
                options.auth_type_field,
                options.client_field,
                options.scheme_field,
                options.host_field,
            )
        )
        self.names = frozenset((self._user, self._auth_type, self._client, self._scheme, self._host)) - {b""}
        self.single = frozenset((self._user, self._auth_type)) - {b""}

    def without(self, request: RequestHead) -> RequestHead:
        """Drop these fields from the request of a peer that is not believed."""
        if self.names.isdisjoint(request.headers):
            return request
        headers = {name: value for name, value in request.headers.items() if name not in self.names}
        return msgspec.structs.replace(request, headers=headers)

    def read(
        self, request: RequestHead, endpoints: Endpoints, trusts: Callable[[str], bool]
    ) -> tuple[RequestHead, Origin]:
        """Read what a trusted proxy says: the request, perhaps for another host, and its origin.

        :param endpoints: of the connection.
        :param trusts: whether an IP address is a trusted proxy's.
        :raises RequestError: 400: a field is malformed.
        """
        headers = request.headers
        elements = self._elements(request)
        distance = 0
        if self._client in headers:
            nodes = _values(self._client, b"for", headers, elements)
            address, port, distance = _walk(nodes, trusts)
            if address:
                endpoints = msgspec.structs.replace(endpoints, remote_address=address, remote_port=port)
        scheme = _at(_values(self._scheme, b"proto", headers, elements), distance).lower()
        if scheme in (b"https", b"http"):
            endpoints = msgspec.structs.replace(endpoints, tls=scheme == b"https")
        host = _at(_values(self._host, b"host", headers, elements), distance)
        if host:
            if not is_authority(host):
                raise RequestError(400, f"{self._host.decode()}: {host[:100]!r} is no host", request.line)
            request = msgspec.structs.replace(request, host=host, headers={**headers, b"host": host})
        if host or scheme in (b"https", b"http"):
            port_there = port_of(request.host) or ("443" if endpoints.tls else "80")
            endpoints = msgspec.structs.replace(endpoints, server_port=int(port_there))
        user = headers.get(self._user, b"") if self._user else b""
        return request, Origin(endpoints=endpoints, user=fsdecode(user), auth_type=self._how(request) if user else "")

    def _elements(self, request: RequestHead) -> list[dict[bytes, bytes]]:
        """The elements of the Forwarded field, where it counts."""
        if FORWARDED not in self.names or FORWARDED not in request.headers:
            return []
        try:
            return elements_of(request.headers[FORWARDED])
        except ValueError as error:
            raise RequestError(400, f"forwarded: {error}", request.line) from None

    def _how(self, request: RequestHead) -> str:
        """How the user was authenticated: as the proxy says, or the scheme of the Authorization field."""
        given = request.headers.get(self._auth_type, b"") if self._auth_type else b""
        given = given or request.headers.get(b"authorization", b"").partition(b" ")[0] or b"Proxy"
        if not _match_token(given):
            raise RequestError(400, f"{given[:100]!r} is no way to authenticate", request.line)
        return given.decode("ascii")


def _values(
    field: bytes, parameter: bytes, headers: dict[bytes, bytes], elements: list[dict[bytes, bytes]]
) -> list[bytes]:
    """The values of a field, one for each proxy; of Forwarded, one parameter, b"" where an element lacks it."""
    if not field:
        return []
    if field == FORWARDED:
        return [element.get(parameter, b"") for element in elements]
    values = (value.strip(b" \t") for value in headers.get(field, b"").split(b","))
    return [value for value in values if value]


def _at(values: list[bytes], distance: int) -> bytes:
    """The value at a distance from the end."""
    return values[-1 - min(distance, len(values) - 1)] if values else b""


def _walk(nodes: list[bytes], trusts: Callable[[str], bool]) -> tuple[str, int, int]:
    """Walk from the end of the list to the client.

    :returns: address and port ("" and 0 where not even the last is known), and their distance from the end.
    """
    address, port, distance = "", 0, 0
    for distance, node in enumerate(reversed(nodes)):  # noqa: B007 - the last one counts
        found = node_address(node)
        if found is None:
            break
        address, port = found
        if not trusts(address):
            break
    return address, port, distance


def node_address(node: bytes) -> tuple[str, int] | None:
    """An address, and its port or 0, from X-Forwarded-For or Forwarded's `for`; None for anything else.

    An IPv4 address that is mapped into IPv6 (RFC 4291 section 2.5.5.2) counts as an IPv4 address.
    """
    matched = _match_node(node.decode("latin-1"))
    if matched is None:
        return None
    bracketed, plain, port, bare = matched.groups()
    try:
        address = ip_address(bracketed or plain or bare)
    except ValueError:
        return None
    if bracketed and address.version != 6:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if port and int(port) > 65535:
        return None
    return str(address), int(port or 0)


def elements_of(field: bytes) -> list[dict[bytes, bytes]]:
    """The elements of a Forwarded field (RFC 7239 section 4), each with its parameters, their names in lower case.

    :raises ValueError: it is malformed. Then it can't be read from its end either: open quotes of a client may hide
        what a proxy has added.
    """
    elements: list[dict[bytes, bytes]] = []
    element: dict[bytes, bytes] = {}
    position = 0
    while True:
        matched = _match_pair(field, position)
        if matched is None:
            raise ValueError(f"{field[position : position + 60]!r} is no parameter")
        name, value, quoted, end = matched.groups()
        if name is not None:
            name = name.lower()
            if name in element:
                raise ValueError(f"{name.decode('ascii')} twice in one element")
            element[name] = value if quoted is None else re.sub(rb"\\(.)", rb"\1", quoted)
        position = matched.end()
        if end != b";":
            if element:
                elements.append(element)
            element = {}
        if not end:
            return elements
