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
[listeners.status]
bind = "127.0.0.1:0"
handler = "status"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with ServerProcess(CONFIG, tmp_path_factory.mktemp("status")) as running:
        yield running.wait_ready()
