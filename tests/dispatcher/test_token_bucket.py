"""Token buckets, with a simulated clock."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poolsrv.dispatcher.token_bucket import TokenBucket


def test_a_bucket_is_full_at_first() -> None:
    bucket = TokenBucket(2.0, 3)
    assert [bucket.take(100.0) for _ in range(5)] == [True, True, True, False, False]


def test_it_fills_by_its_rate() -> None:
    bucket = TokenBucket(2.0, 3)
    assert all(bucket.take(100.0) for _ in range(3))
    assert bucket.delay(100.0) == pytest.approx(0.5, abs=0.01)
    assert not bucket.take(100.4)
    assert bucket.take(100.5)
    assert not bucket.take(100.5)
    assert bucket.take(101.0)


def test_it_holds_no_more_than_its_burst() -> None:
    bucket = TokenBucket(10.0, 2)
    assert bucket.take(0.0)
    assert [bucket.take(1000.0) for _ in range(3)] == [True, True, False]


def test_asking_takes_no_token() -> None:
    bucket = TokenBucket(1.0, 1)
    assert bucket.has_token(5.0)
    assert bucket.has_token(5.0)
    assert bucket.delay(5.0) == 0
    assert bucket.take(5.0)
    assert not bucket.has_token(5.0)


def test_less_than_one_a_second() -> None:
    bucket = TokenBucket(0.1, 1)
    assert bucket.take(0.0)
    assert not bucket.take(9.0)
    assert bucket.take(10.0)


@given(
    st.floats(0.01, 100_000),
    st.integers(1, 1000),
    st.lists(st.floats(0, 10), min_size=1, max_size=300),
    st.floats(0, 1e7),
)
def test_never_more_than_the_burst_and_what_was_added_since(
    rate: float, burst: int, pauses: list[float], start: float
) -> None:
    bucket, now, taken = TokenBucket(rate, burst), start, 0
    for pause in pauses:
        now += pause
        taken += bucket.take(now)
        assert taken <= burst + rate * (now - start) + 0.02 + 1e-6 * taken


@given(st.floats(0.01, 100_000), st.integers(1, 20), st.floats(0, 1e7))
def test_after_the_delay_there_is_a_token(rate: float, burst: int, start: float) -> None:
    """A client that waits as long as the bucket says finds a token."""
    bucket, now = TokenBucket(rate, burst), start
    for _ in range(burst + 5):
        now += bucket.delay(now)
        assert bucket.take(now)
