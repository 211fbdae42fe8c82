"""One server for the tests of a module: an echo and the status over HTTP, with two workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.server import ServerProcess

CONFIG = """
[pool]
workers = 2
control = "ctl"
[listeners.hello]
bind = "127.0.0.1:0"
handler = "echo"
[listeners.full]
bind = "127.0.0.1:0"
handler = "echo"
max_connections = 1
[listeners.others]
bind = "127.0.0.1:0"
handler = "status"
allow = ["192.0.2.1"]
[listeners.unix]
bind = "unix:status.sock"
handler = "status"
[listeners.status]
bind = "127.0.0.1:0"
handler = "status"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    running = ServerProcess(CONFIG, tmp_path_factory.mktemp("status"))
    try:
        yield running.wait_ready()
    finally:
        running.close()
