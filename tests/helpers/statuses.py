"""A record of ``status``, for tests in process."""

from __future__ import annotations

from typing import Any

import msgspec

from poolsrv.ipc.stats import Status

_WORKER: dict[str, Any] = {
    "slot": 0,
    "pid": 10,
    "state": "serving",
    "restarts": 0,
    "silent": 0.0,
    "in_flight": 0,
    "lag": 0.002,
    "descriptors": 12,
    "descriptor_limit": 1024,
    **dict.fromkeys(("open", "accepted", "events", "bytes_in", "bytes_out", "memory"), 1),
    **dict.fromkeys(("accepted_rate", "events_rate", "bytes_in_rate", "bytes_out_rate"), 0.0),
    **dict.fromkeys(("age", "cpu"), 1.0),
    "cpu_percent": 50.0,
}


def worker(**fields: Any) -> dict[str, Any]:
    """A worker that serves, but for these fields."""
    return _WORKER | fields


def listener(**fields: Any) -> dict[str, Any]:
    """A listener without limits, but for these fields."""
    return {
        "name": "www",
        "handler": "cgi",
        "plugins": [],
        "addresses": ["127.0.0.1:8080"],
        "open": 3,
        "max_connections": 0,
        "accepted": 7,
        "accepted_rate": 0.5,
        "queued": 0,
        "waiting": 0,
        "homeless": 0,
        "paused": False,
        "refusals": {},
        "queues": [{"address": "127.0.0.1:8080", "queued": 2, "limit": 4096}],
    } | fields


def status(server: dict[str, Any] | None = None, **fields: Any) -> Status:
    """A server that is well, but for these fields."""
    totals = dict.fromkeys(("open", "accepted", "programs", "memory"), 3)
    rates = ("accepted_rate", "events_rate", "bytes_in_rate", "bytes_out_rate", "cpu_percent")
    whole: dict[str, Any] = {
        "time": 1790000000.0,
        "server": {
            "version": "0.1.0",
            "config": "/etc/poolsrv.toml",
            "pid": 8,
            "dispatcher_pid": 9,
            "generation": 2,
            "state": "serving",
            "started_at": 1789990000.0,
            "uptime": 10000.0,
            "pool_started_at": 1789995000.0,
            "restarts": 1,
            "last_reload": None,
            "leaving": [],
        }
        | (server or {}),
        "totals": totals | dict.fromkeys(rates, 0.0),
        "workers": [worker()],
        "listeners": [listener()],
        "programs": [],
        "recent_refusals": [],
    }
    return msgspec.convert(whole | fields, Status)
