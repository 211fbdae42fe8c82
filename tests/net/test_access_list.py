"""Networks as the config writes them, and which of them decides."""

from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolsrv.net.access_list import EXAMPLES, AccessList, Network, number_of, parse


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("192.0.2.0/24", "192.0.2.0/24"),
        ("192.0.2.7", "192.0.2.7/32"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        ("2001:DB8::/32", "2001:db8::/32"),
        ("::1", "::1/128"),
        ("::/0", "::/0"),
    ],
)
def test_what_is_a_network(text: str, network: str) -> None:
    assert str(parse(text)) == network


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "192.0.2.7/24",
            '"192.0.2.7/24" has bits set beyond its prefix, expected the network "192.0.2.0/24", or the address'
            ' "192.0.2.7" alone',
        ),
        (
            "2001:db8::1/32",
            '"2001:db8::1/32" has bits set beyond its prefix, expected the network "2001:db8::/32", or the address'
            ' "2001:db8::1" alone',
        ),
        (
            "192.0.2.0/33",
            '"33" in "192.0.2.0/33" is not the length of a prefix, expected a number from 0 to 32',
        ),
        (
            "192.0.2.0/255.255.255.0",
            '"255.255.255.0" in "192.0.2.0/255.255.255.0" is not the length of a prefix, expected a number from 0 to'
            " 32",
        ),
        ("::/129", '"129" in "::/129" is not the length of a prefix, expected a number from 0 to 128'),
        ("192.0.2.0/", '"" in "192.0.2.0/" is not the length of a prefix, expected a number from 0 to 32'),
        (
            "::ffff:192.0.2.1",
            '"::ffff:192.0.2.1" is an IPv4-mapped IPv6 address, expected IPv4, such as "192.0.2.1"',
        ),
        ("localhost", f'"localhost" is a host name, which is not looked up, expected a network such as {EXAMPLES}'),
        (
            ".example",
            f'".example" is a host name, which is not looked up, expected a network such as {EXAMPLES}',
        ),
        ("fe80::1%eth0", f'"fe80::1%eth0" names an interface, expected a network without it, such as {EXAMPLES}'),
        (
            "127.0.0.1:80",
            f'"127.0.0.1:80" is no network, expected an address without brackets and port, such as {EXAMPLES}',
        ),
        ("[::1]", f'"[::1]" is no network, expected an address without brackets and port, such as {EXAMPLES}'),
        ("10.", f'"10." is no network, expected one such as {EXAMPLES}'),
        ("10.0.0/8", f'"10.0.0/8" is no network, expected one such as {EXAMPLES}'),
        ("", f'"" is no network, expected one such as {EXAMPLES}'),
        ("a\0b", f'"a\\u0000b" is a host name, which is not looked up, expected a network such as {EXAMPLES}'),
    ],
)
def test_what_is_none(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        parse(text)


def test_addresses_as_sockets_and_proxies_write_them() -> None:
    assert number_of("192.0.2.1") == (32, 0xC0000201)
    assert number_of("::ffff:192.0.2.1") == (32, 0xC0000201)
    assert number_of("2001:db8::1") == (128, 0x20010DB8 << 96 | 1)
    assert number_of("fe80::1%eth0") == (128, 0xFE80 << 112 | 1)
    assert number_of("unix:/run/x.sock") is None
    assert number_of("") is None


def verdict(allow: list[str], deny: list[str], address: str) -> str | None:
    number = number_of(address)
    assert number is not None
    return AccessList(map(parse, allow), map(parse, deny)).refusal(*number)


@pytest.mark.parametrize(
    ("allow", "deny", "address", "refusal"),
    [
        ([], ["192.0.2.0/24"], "192.0.2.1", "deny"),
        ([], ["192.0.2.0/24"], "192.0.3.1", None),
        (["192.0.2.0/24"], [], "192.0.2.1", None),
        (["192.0.2.0/24"], [], "192.0.3.1", "allow"),
        # the smaller network decides, in whichever list it is
        (["10.0.0.0/8"], ["10.1.0.0/16"], "10.1.2.3", "deny"),
        (["10.0.0.0/8"], ["10.1.0.0/16"], "10.2.2.3", None),
        (["10.1.2.3"], ["10.0.0.0/8"], "10.1.2.3", None),
        (["10.1.2.3"], ["10.0.0.0/8"], "10.1.2.4", "deny"),
        (["10.1.2.3"], ["10.0.0.0/8"], "192.0.2.1", "allow"),
        (["0.0.0.0/0"], ["10.0.0.0/8"], "192.0.2.1", None),
        # families have nothing to do with each other, but for "all others"
        (["10.0.0.0/8"], [], "::1", "allow"),
        ([], ["0.0.0.0/0"], "::1", None),
        ([], ["::/0"], "::ffff:192.0.2.1", None),
        ([], ["192.0.2.1"], "::ffff:192.0.2.1", "deny"),
        (["2001:db8::/32"], ["2001:db8:1::/48"], "2001:db8:1::7", "deny"),
        (["2001:db8::/32"], ["2001:db8:1::/48"], "2001:db8:2::7", None),
    ],
)
def test_which_clients_are_refused(allow: list[str], deny: list[str], address: str, refusal: str | None) -> None:
    assert verdict(allow, deny, address) == refusal


# Few bits differ, so that networks overlap.
numbers = st.integers(0, 2**32 - 1).map(lambda number: number & 0xF000F00F)
networks = st.builds(
    lambda number, length: ipaddress.ip_network((number, length), strict=False), numbers, st.integers(0, 32)
)


@given(st.sets(networks, max_size=8), st.sets(networks, max_size=8), numbers)
def test_the_longest_prefix_decides(allow: set[Network], deny: set[Network], number: int) -> None:
    """As looked up one by one, in the standard library's own terms."""
    deny -= allow
    address = ipaddress.IPv4Address(number)
    matching = sorted(((n.prefixlen, n in allow) for n in allow | deny if address in n), reverse=True)
    expected = (None if matching[0][1] else "deny") if matching else "allow" if allow else None
    assert AccessList(allow, deny).refusal(32, number) == expected


def test_many_networks_take_no_longer_than_few() -> None:
    """Counted in look-ups: one for each prefix length."""
    access = AccessList([], [ipaddress.IPv4Network((number << 8, 24)) for number in range(50_000)])
    assert sum(len(levels) for levels in access._levels.values()) == 1
    assert access.refusal(32, 49_999 << 8 | 7) == "deny"
    assert access.refusal(32, 50_000 << 8 | 7) is None
