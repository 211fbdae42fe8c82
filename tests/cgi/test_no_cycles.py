"""The cgi plugin over HTTP: a request leaves nothing behind for the garbage collector."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.http import Client, cgi_listener, write_programs
from tests.helpers.plugins import served
from tests.helpers.server import wait_until

pytestmark = pytest.mark.server

COUNTS = """
import gc, weakref


class Counts:
    # Logs, without a garbage collection, how many connections are still objects, the new one included.
    @hookimpl
    def on_worker_start(self, worker):
        gc.disable()
        self.seen = weakref.WeakSet()

    @hookimpl
    def on_connection_init(self, conn):
        self.seen.add(conn)
        conn.log.info("objects: %d", len(self.seen))
"""
PROGRAMS = {
    "hello.sh": "printf 'Content-Type: text/plain\\n\\nhello'",
    "late.sh": "printf 'Content-Type: text/plain\\nContent-Length: 1\\n\\nx'; exec 1>&-; sleep 0.1",
    "bad.sh": "echo no header; echo words >&2",
}


def test_a_request_leaves_no_reference_cycle_behind(tmp_path: Path) -> None:
    root = write_programs(tmp_path / "root", PROGRAMS)
    config = cgi_listener(keys='plugins = ["counts"]', root=root)
    with served(tmp_path, COUNTS, config) as server:
        for path, status in (("/hello.sh", 200), ("/late.sh", 200), ("/bad.sh", 502), ("/no.sh", 404)) * 3:
            with Client(server, "www") as client:
                assert client.get(path).status == status
        before = len(server.lines)

        def alone() -> bool:
            with Client(server, "www") as client:
                client.get("/no.sh")
            return any(line.endswith("objects: 1") for line in server.lines[before:])

        wait_until(alone, "an end of all other connections")
