"""Restart back-off: the delays, by the number of failures in a row."""

from __future__ import annotations

import pytest

from poolsrv.dispatcher import restart_delays


def test_delays_after_failed_starts_double_up_to_the_longest() -> None:
    delays = [restart_delays.after_failed_start(failures) for failures in range(1, 12)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0])


def test_after_the_first_early_exit_a_worker_is_replaced_at_once() -> None:
    delays = [restart_delays.after_early_exit(exits) for exits in range(1, 8)]
    assert delays == pytest.approx([0.0, 0.05, 0.1, 0.2, 0.4, 0.5, 0.5])


def test_many_failures_do_not_overflow() -> None:
    assert restart_delays.after_failed_start(100_000) == restart_delays.LONGEST_DELAY
    assert restart_delays.after_early_exit(100_000) == restart_delays.LONGEST_EARLY_EXIT_DELAY
