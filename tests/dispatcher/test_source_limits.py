"""Limits per source: what counts as one source, and what is kept of it."""

from __future__ import annotations

import pytest

from poolsrv.dispatcher import source_limits
from poolsrv.dispatcher.source_limits import SourceLimits
from poolsrv.dispatcher.token_bucket import Rate
from poolsrv.net.access_list import number_of


def source(of: SourceLimits, address: str) -> int:
    number = number_of(address)
    assert number is not None
    return of.source_of(*number)


def test_an_ipv4_address_is_a_source_and_so_is_an_ipv6_network() -> None:
    limits = SourceLimits(1, None, 64)
    assert source(limits, "192.0.2.1") == source(limits, "::ffff:192.0.2.1")
    assert source(limits, "192.0.2.1") != source(limits, "192.0.2.2")
    assert source(limits, "2001:db8::1") == source(limits, "2001:db8::ffff:1")
    assert source(limits, "2001:db8::1") != source(limits, "2001:db8:0:1::1")
    whole = SourceLimits(1, None, 128)
    assert source(whole, "2001:db8::1") != source(whole, "2001:db8::2")
    # the network of all zeros, and the address
    assert source(limits, "::1") != source(limits, "0.0.0.0")


def test_open_connections_are_counted_per_source() -> None:
    limits = SourceLimits(2, None, 64)
    for number in (1, 2):
        assert limits.refusal(7, 0.0) is None
        limits.opened(number, 7, 0.0)
    assert limits.refusal(7, 0.0) == "max_per_source"
    assert limits.refusal(8, 0.0) is None
    limits.closed(99)  # another listener's
    limits.closed(1)
    assert limits.refusal(7, 0.0) is None
    limits.closed(1)  # reported twice, it counts once
    limits.opened(3, 7, 0.0)
    assert limits.refusal(7, 0.0) == "max_per_source"


def test_nothing_is_kept_of_a_source_without_connections() -> None:
    limits = SourceLimits(2, None, 64)
    for number in range(1000):
        limits.opened(number, number % 10, 0.0)
    assert len(limits) == 10
    for number in range(1000):
        limits.closed(number)
    assert len(limits) == 0
    assert not limits._source_of


def test_each_source_has_its_bucket() -> None:
    limits = SourceLimits(0, Rate(1.0, 2), 64)
    for number in (1, 2):
        assert limits.refusal(7, 50.0) is None
        limits.opened(number, 7, 50.0)
    assert limits.refusal(7, 50.0) == "rate_per_source"
    assert limits.refusal(8, 50.0) is None
    assert limits.refusal(7, 51.0) is None


def test_buckets_that_are_full_again_are_forgotten() -> None:
    limits = SourceLimits(0, Rate(1.0, 2), 64)
    limits.opened(1, 7, 50.0)
    limits.opened(2, 8, 50.5)
    assert limits.forget_full(50.9)
    assert len(limits) == 2
    assert limits.forget_full(51.0)
    assert len(limits) == 1
    assert not limits.forget_full(51.5)
    assert len(limits) == 0


def test_a_flood_of_sources_does_not_grow_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The least recently used one goes first."""
    monkeypatch.setattr(source_limits, "MAX_BUCKETS", 100)
    limits = SourceLimits(0, Rate(0.001, 1), 64)
    limits.opened(0, -1, 0.0)
    for number in range(1, 1000):
        if number % 50 == 0 and limits.refusal(-1, float(number)) is None:
            raise AssertionError("the one that goes on coming was forgotten")
        if number % 50 == 0:
            limits.opened(number, -1, float(number))
        limits.opened(number, number, float(number))
        assert len(limits) <= 100
    assert limits.refusal(-1, 1000.0) == "rate_per_source"
    assert limits.refusal(1, 1000.0) is None
