"""The example's plugin that answers HAProxy's agent-check. test_nodes.py has it with a real HAProxy."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolsrv.testing import Harness
from poolsrv.worker.status_client import report_on, report_without
from tests.helpers.modules import load_module
from tests.helpers.statuses import listener, status

EXAMPLE = Path(__file__).parents[2] / "examples" / "haproxy"


AGENT = load_module(EXAMPLE / "poolsrv-agent" / "poolsrv_agent.py")


@pytest.mark.parametrize(
    ("cpu", "open_", "limit", "line"),
    [
        (0.0, 0, 0, "up 100%\n"),
        (30.0, 0, 0, "up 70%\n"),
        (30.0, 80, 100, "up 20%\n"),  # the listener has less room than the worker
        (95.0, 0, 100, "up 10%\n"),  # `least`
        (250.0, 3, 0, "up 10%\n"),
    ],
)
def test_the_share_that_it_asks_for(cpu: float, open_: int, limit: int, line: str) -> None:
    idle = status()
    busy = status(
        totals={name: getattr(idle.totals, name) for name in idle.totals.__struct_fields__} | {"cpu_percent": cpu},
        listeners=[listener(), listener(name="other", open=open_, max_connections=limit)],
    )
    assert AGENT.answer(report_on(busy), 10) == line


def test_a_server_that_wants_no_clients_says_why() -> None:
    stopping = report_on(status({"state": "stopping", "drains_in": 4.0}))
    assert AGENT.answer(stopping, 10) == "down#not ready: the pool is stopping (it drains in 4 s)\n"
    assert AGENT.answer(report_without("no answer"), 10) == "down#not ready: no answer\n"


def test_it_speaks_first_and_ends() -> None:
    with Harness(AGENT.Agent) as harness:
        assert harness.connect().receive_all() == b"up 100%\n"
