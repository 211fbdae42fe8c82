"""The verdict on a server, and whether it should get new traffic."""

from __future__ import annotations

from typing import Any

import pytest

from poolsrv.ipc.health import Health, judge, readiness
from tests.helpers.statuses import status, worker

STOPPED = worker(slot=1, state="stopped")


@pytest.mark.parametrize(
    ("fields", "health", "is_ready", "why"),
    [
        ({}, Health.WELL, True, "ready: well: 1 worker, 3 connections"),
        (
            {"workers": [worker(), STOPPED]},
            Health.DEGRADED,
            True,
            "ready: degraded: 1 worker stopped (1)",
        ),
        (
            {"apart": [worker(slot=-1, state="stalled")]},
            Health.DEGRADED,
            True,
            "ready: degraded: the worker apart is stalled",
        ),
        ({"workers": [STOPPED]}, Health.DOWN, False, "not ready: down: no worker serves: 1 worker stopped (1)"),
        (
            {"server": {"state": "stopping", "drains_in": 4.2}},
            Health.DEGRADED,
            False,
            "not ready: the pool is stopping (it drains in 4 s)",
        ),
        (
            {"server": {"state": "stopping"}},
            Health.DEGRADED,
            False,
            "not ready: the pool is stopping (3 connections are open)",
        ),
        (
            {"server": {"last_reload": {"at": 1.0, "ok": False}}},
            Health.DEGRADED,
            True,
            "ready: degraded: the last reload has failed",
        ),
    ],
)
def test_verdicts(fields: dict[str, Any], health: Health, is_ready: bool, why: str) -> None:
    record = status(**fields)
    assert judge(record)[0] == health
    assert readiness(record) == (is_ready, why)


def test_workers_that_have_ended_are_no_trouble_of_a_pool_that_stops() -> None:
    workers = [worker(), worker(slot=1, state="empty")]
    assert judge(status(workers=workers))[1] == "degraded: 1 worker empty (1)"
    assert judge(status(workers=workers, server={"state": "stopping"}))[1] == "degraded: the pool is stopping"
