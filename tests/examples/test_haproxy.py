"""The example for HAProxy: a real one in front of two servers that are stopped and started in turn."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers.haproxy import Haproxy
from tests.helpers.load import Load
from tests.helpers.server import TIMEOUT, ServerProcess, free_port, wait_until

PAGE = "/page.txt"
EXAMPLE = Path(__file__).parents[2] / "examples" / "haproxy" / "haproxy.cfg"

# A second signal to stop ends the notice, once HAProxy has seen it.
NODE = """
[pool]
workers = 1
drain_notice = 600.0
[listeners.www]
bind = "{www}"
handler = "files"
proxy_protocol = true
trusted_proxies = ["127.0.0.1"]
[listeners.www.files]
root = "{root}"
[listeners.status]
bind = "{status}"
handler = "status"
"""


def of_these(nodes: dict[str, ServerProcess], port: int) -> str:
    """The example's configuration with other addresses, without an agent, and with checks ten times as often."""
    text = EXAMPLE.read_text().replace("bind 10.0.0.2:80", f"bind 127.0.0.1:{port}")
    text = text.replace("port 9187 inter 1s", "inter 100ms").replace("timeout check 1s", "timeout check 10s")
    text = re.sub(r".*(stats socket|agent-check|server c ).*\n", "", text)
    for name, node in nodes.items():
        www, status = node.addresses("www")[0], node.addresses("status")[0]
        text, count = re.subn(rf"server {name} \S+", f"server {name} {www} port {status.rpartition(':')[2]}", text)
        assert count == 1
    return text


def is_now(name: str, state: str) -> re.Pattern[str]:
    return re.compile(f"Server poolsrv/{name} is {state}")


@pytest.fixture
def nodes(tmp_path: Path, serve: Callable[..., ServerProcess]) -> dict[str, ServerProcess]:
    (tmp_path / PAGE[1:]).write_text("hello")

    def node() -> ServerProcess:
        """At ports that nobody else gets while it is restarted."""
        www, status = (f"127.0.0.1:{free_port()}" for _ in range(2))
        return serve(NODE.format(www=www, status=status, root=tmp_path))

    return {"a": node(), "b": node()}


def test_it_is_a_valid_configuration() -> None:
    done = subprocess.run(["haproxy", "-c", "-f", str(EXAMPLE)], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.server
def test_servers_are_restarted_in_turn_and_no_request_fails(
    tmp_path: Path, serve: Callable[..., ServerProcess], nodes: dict[str, ServerProcess]
) -> None:
    port = free_port()
    with closing(Haproxy(tmp_path, of_these(nodes, port), [port])) as haproxy, Load(("127.0.0.1", port), PAGE) as load:
        for name, node in nodes.items():
            www, status = node.addresses("www")[0], node.addresses("status")[0]
            node.signal(signal.SIGTERM)
            haproxy.wait_for(is_now(name, "DOWN"))
            node.signal(signal.SIGTERM)
            assert node.wait() == 0
            before = load.count
            wait_until(lambda before=before: load.has_gone_on(before), "requests while one server is gone")  # type: ignore[misc]
            serve(NODE.format(www=www, status=status, root=tmp_path))
            haproxy.wait_for(is_now(name, "UP"))
    assert load.failures == []
    assert load.answers.keys() == {b"hello"}
