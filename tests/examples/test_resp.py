"""The example poolsrv-resp: Redis's own clients, reloads, and deaths."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.plugins import ask
from tests.helpers.server import TIMEOUT, ServerProcess, receive_line, wait_until

pytestmark = pytest.mark.server

RESP = Path(__file__).parents[2] / "examples" / "poolsrv-resp"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The example's config, with the class for its name: it is not installed."""
    text = (RESP / "poolsrv.toml").read_text()
    assert 'handler = "resp"' in text
    text = text.replace('"resp"', '"poolsrv_resp:Resp"').replace("6380", "0").replace('"everysec"', '"no"')
    with ServerProcess(f"[pool]\nworkers = 1\n{text}", tmp_path_factory.mktemp("resp"), paths=(RESP,)) as running:
        yield running.wait_ready()


def run(server: ServerProcess, program: str, *arguments: str) -> str:
    found = shutil.which(program)
    assert found, f"{program} is in Debian's redis-tools"
    port = server.addresses("redis")[0].rpartition(":")[2]
    result = subprocess.run([found, "-p", port, *arguments], capture_output=True, text=True, timeout=2 * TIMEOUT)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_redis_cli(server: ServerProcess) -> None:
    assert run(server, "redis-cli", "PING") == "PONG"
    assert run(server, "redis-cli", "SET", "greeting", "hello world", "EX", "100") == "OK"
    assert run(server, "redis-cli", "GET", "greeting") == "hello world"
    assert 50 < int(run(server, "redis-cli", "TTL", "greeting")) <= 100
    assert run(server, "redis-cli", "SET", "greeting", "x", "NX") == ""
    assert run(server, "redis-cli", "INCR", "number") == "1"
    assert run(server, "redis-cli", "DEL", "greeting", "number", "nothing") == "2"
    assert run(server, "redis-cli", "NOTHING").startswith("ERR unknown command 'NOTHING'")


def test_redis_benchmark(server: ServerProcess) -> None:
    for pipeline in ("1", "16"):
        report = run(server, "redis-benchmark", "-t", "ping,set,get,incr,mset", "-n", "500", "-P", pipeline, "--csv")
        assert [line.split(",")[0] for line in report.splitlines()[1:]] == [
            '"PING_INLINE"',
            '"PING_MBULK"',
            '"SET"',
            '"GET"',
            '"INCR"',
            '"MSET (10 keys)"',
        ]
    assert int(run(server, "redis-cli", "GET", "counter:__rand_int__")) >= 1000  # it sends whole pipelines


@pytest.mark.long
def test_acknowledged_writes_survive_reloads_and_a_killed_worker(server: ServerProcess) -> None:
    acknowledged = 0
    ended = threading.Event()

    def write() -> None:
        nonlocal acknowledged
        while not ended.is_set():
            with server.connect("redis") as sock:
                try:
                    while not ended.is_set():
                        sock.sendall(b"SET key%d %d\r\n" % (acknowledged, acknowledged))
                        if receive_line(sock) != b"+OK\r\n":
                            break
                        acknowledged += 1
                except OSError:
                    pass

    def more() -> None:
        wanted = acknowledged + 20
        wait_until(lambda: acknowledged >= wanted, "acknowledged writes")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            more()
            server.reload()
        more()
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        more()
    finally:
        ended.set()
        writer.join()
    with server.connect("redis") as sock:
        for number in range(acknowledged):
            sock.sendall(b"GET key%d\r\n" % number)
            assert receive_line(sock).startswith(b"$")
            assert receive_line(sock) == b"%d\r\n" % number
        assert ask(sock, b"PING") == b"+PONG\r"
