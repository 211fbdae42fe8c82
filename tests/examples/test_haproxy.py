"""The example for HAProxy: a real one in front of two servers that are stopped and started in turn."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.load import Load
from tests.helpers.server import TIMEOUT, ServerProcess, wait_until

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


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return f"127.0.0.1:{free.getsockname()[1]}"


class Haproxy:
    """HAProxy with the example's configuration, other addresses, and checks ten times as often."""

    def __init__(self, folder: Path, nodes: dict[str, ServerProcess]) -> None:
        self.address = free_address()
        text = EXAMPLE.read_text().replace("bind 10.0.0.2:80", f"bind {self.address}")
        text = text.replace("port 9187 inter 1s", "inter 100ms").replace("timeout check 1s", "timeout check 10s")
        for name, node in nodes.items():
            www, status = node.addresses("www")[0], node.addresses("status")[0]
            text, count = re.subn(rf"server {name} \S+", f"server {name} {www} port {status.rpartition(':')[2]}", text)
            assert count == 1
        file = folder / "haproxy.cfg"
        file.write_text(text)
        self.process = subprocess.Popen(
            ["haproxy", "-db", "-f", str(file)], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as lines:
            self._lines.extend(lines)

    def wait_for(self, name: str, state: str, count: int) -> None:
        """Wait until HAProxy has told that a server is UP or DOWN, so often."""
        pattern = re.compile(f"Server poolsrv/{name} is {state}")
        wait_until(lambda: sum(map(bool, map(pattern.search, list(self._lines)))) >= count, f"{name} is {state}")

    def listens(self) -> bool:
        assert self.process.poll() is None, self._lines
        host, port = self.address.split(":")
        with socket.socket() as sock:
            return sock.connect_ex((host, int(port))) == 0

    def close(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)


@pytest.fixture
def nodes(tmp_path: Path, serve: Callable[..., ServerProcess]) -> dict[str, ServerProcess]:
    (tmp_path / "page.txt").write_text("hello")
    config = NODE.format(www="127.0.0.1:0", status="127.0.0.1:0", root=tmp_path)
    return {"a": serve(config), "b": serve(config)}


@pytest.fixture
def haproxy(tmp_path: Path, nodes: dict[str, ServerProcess]) -> Iterator[Haproxy]:
    one = Haproxy(tmp_path, nodes)
    try:
        wait_until(one.listens, "HAProxy")
        yield one
    finally:
        one.close()


def test_it_is_a_valid_configuration() -> None:
    done = subprocess.run(["haproxy", "-c", "-f", str(EXAMPLE)], capture_output=True, text=True, timeout=TIMEOUT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.server
def test_servers_are_restarted_in_turn_and_no_request_fails(
    tmp_path: Path, serve: Callable[..., ServerProcess], nodes: dict[str, ServerProcess], haproxy: Haproxy
) -> None:
    host, port = haproxy.address.split(":")
    with Load((host, int(port)), "/page.txt") as load:
        for name, node in nodes.items():
            www, status = node.addresses("www")[0], node.addresses("status")[0]
            node.signal(signal.SIGTERM)
            haproxy.wait_for(name, "DOWN", 1)
            node.signal(signal.SIGTERM)
            assert node.wait() == 0
            before = load.count
            wait_until(lambda before=before: load.has_gone_on(before), "requests while one server is gone")  # type: ignore[misc]
            serve(NODE.format(www=www, status=status, root=tmp_path))
            haproxy.wait_for(name, "UP", 1)
    assert load.failures == []
    assert load.answers.keys() == {b"hello"}
