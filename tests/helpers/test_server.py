"""A server's process that a test starts is gone after its ``with`` statement, whatever has happened in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.server import ServerFailed, ServerProcess, children_of, is_alive, wait_until

pytestmark = pytest.mark.server


def test_a_server_that_never_becomes_ready_is_closed(tmp_path: Path) -> None:
    silent = ("sh", "-c", "exec 2>&-; sleep 1000 & wait")
    pids = []

    def serve() -> None:
        with ServerProcess("", tmp_path, program=silent) as server:
            wait_until(lambda: children_of(server.pid), "its child")
            pids.extend([server.pid, *children_of(server.pid)])
            server.wait_ready()

    with pytest.raises(ServerFailed, match="the server has ended"):
        serve()
    assert len(pids) == 2
    wait_until(lambda: not any(map(is_alive, pids)), "the end of both")
