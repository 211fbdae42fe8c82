"""The access log of the cgi plugin, on a running server."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.http import PROGRAMS, Client, cgi_listener, pool, write_programs
from tests.helpers.server import ServerProcess, receive_all, wait_until

pytestmark = pytest.mark.server

MORE = {
    "burn.sh": "printf 'Content-Type: text/plain\\n\\n'; i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; echo x",
    "fails.sh": "printf 'Content-Type: text/plain\\nContent-Length: 5\\n\\nhello'; exit 3",
    "dies.sh": "printf 'Content-Type: text/plain\\n\\nhello'; kill -9 $$",
    "slow.sh": "sleep 0.3; printf 'Content-Type: text/plain\\n\\nab'; sleep 0.3; printf cd",
    "wait.sh": "printf 'Content-Type: text/plain\\n\\n'; while [ ! -e go ]; do sleep 0.02; done; echo end",
    "big.sh": "printf 'Content-Type: text/plain\\nContent-Length: 200000\\n\\n'; head -c 200000 /dev/zero",
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_programs(tmp_path / "root", PROGRAMS | MORE)


def lines(log: Path, count: int) -> list[str]:
    """So many lines of the log: each is written when response and program are over."""
    wait_until(lambda: log.exists() and log.read_text().count("\n") >= count, f"{count} lines")
    text = log.read_text()
    assert text.count("\n") == count
    return text.splitlines()


def test_a_log_that_can_not_be_opened(serve: Callable[..., ServerProcess], root: Path, tmp_path: Path) -> None:
    """Which only a worker finds out, who has the pool's user: one line with the option's name, and no traceback."""
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    config = pool(max_boot_failures=1) + cgi_listener(root=root, access_log=loop)
    server = serve(config, ready=False)
    assert server.wait() == 1
    assert f"www: plugin 'cgi' failed in on_worker_start: access_log: {loop} can't be opened: " in server.log
    assert "Traceback" not in server.log


def test_combined(serve: Callable[..., ServerProcess], root: Path, tmp_path: Path) -> None:
    """Combined Log Format, and behind it what was measured."""
    log = tmp_path / "access.log"
    server = serve(pool() + cgi_listener(root=root, access_log=log))
    with Client(server) as client:
        client.get("/hello.sh?q=1", "User-Agent: test/1", "Referer: http://a/")
        lines(log, 1)
        client.get("/no.sh", 'User-Agent: "\\')
        client.send(b"nonsense\r\n\r\n").response()
    first, second, third = lines(log, 3)
    assert re.fullmatch(
        r'127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d \+0000\] "GET /hello.sh\?q=1 HTTP/1.1" 200 5'
        r' "http://a/" "test/1" queued=0.000000 first=\d+\.\d{6} total=\d+\.\d{6} exit=0 cpu=\d+\.\d{6}( peak=\d+)?',
        first,
    )
    assert re.search(r'"GET /no.sh HTTP/1.1" 404 14 "-" "\\"\\\\" first=\d+\.\d+ total=\d+\.\d+$', second)
    assert re.search(r'"nonsense" 400 16 "-" "-" first=', third)


def test_json_and_masked_addresses(serve: Callable[..., ServerProcess], root: Path, tmp_path: Path) -> None:
    """Every value that is known, in seconds and bytes; addresses without their last part."""
    log = tmp_path / "access.log"
    options: dict[str, Any] = {"access_log": log, "access_log_format": "json", "mask_addresses": True}
    server = serve(pool() + cgi_listener(root=root, **options))
    with Client(server) as client:
        targets = ["/hello.sh", "/burn.sh", "/fails.sh", "/slow.sh", "/big.sh", "/hello.sh"]
        for number, target in enumerate(targets):
            client.get(target, method="HEAD" if number == 5 else "GET")
            lines(log, number + 1)
        client.request("/dies.sh")
        receive_all(client.sock)
        lines(log, 7)
    records = [json.loads(line) for line in lines(log, 7)]
    hello, burn, fails, slow, big, head, dies = records
    assert {record["address"] for record in records} == {"127.0.0.0"}
    assert (hello["request"], hello["status"], hello["bytes"]) == ("GET /hello.sh HTTP/1.1", 200, 5)
    assert (hello["program"], hello["exit"]) == ("/hello.sh", 0)
    assert burn["cpu"] > 0.01
    assert (fails["exit"], fails["bytes"]) == (3, 5)
    assert slow["first"] >= 0.3
    assert slow["total"] >= 0.6
    assert slow["bytes"] == 4
    assert big["bytes"] == 200_000
    assert head["bytes"] == 0
    assert (dies["signal"], dies["status"]) == (9, 200)
    assert "exit" not in dies


def test_queue_time(serve: Callable[..., ServerProcess], root: Path, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    options: dict[str, Any] = {"access_log": log, "access_log_format": "json", "max_programs": 1}
    server = serve(pool() + cgi_listener(root=root, **options))
    with Client(server) as client, Client(server) as other, Client(server) as third:
        client.request("/wait.sh")
        client.head()
        other.request("/hello.sh")
        assert third.get("/no.sh").status == 404  # so the one before it is in the queue by now
        time.sleep(0.2)
        (root / "go").touch()
        assert other.response().body == b"hello"
        client.take(1)
    by_program = {record.get("program"): record for record in map(json.loads, lines(log, 3))}
    assert by_program["/wait.sh"]["queued"] == 0
    assert by_program["/hello.sh"]["queued"] >= 0.2


def test_a_client_that_leaves(serve: Callable[..., ServerProcess], root: Path, tmp_path: Path) -> None:
    """Its request has a line too: no status where it got none."""
    log = tmp_path / "access.log"
    keys = 'half_close = "abort"'
    server = serve(
        pool() + cgi_listener(keys=keys, root=root, access_log=log, access_log_format="json", max_programs=1)
    )
    with Client(server) as client:
        client.request("/wait.sh")
        client.head()
        with Client(server) as other:
            other.request("/hello.sh")
            with Client(server) as third:  # its answer says that the other has been taken in
                third.get("/no.sh")
        wait_until(lambda: log.exists() and log.read_text().count("\n") >= 2, "two lines")
    records = {record["request"].split()[1]: record for record in map(json.loads, lines(log, 3))}
    assert records["/no.sh"]["status"] == 404
    assert (records["/hello.sh"]["status"], records["/wait.sh"]["status"]) == (0, 200)
    assert records["/wait.sh"]["signal"] == 15


def test_a_log_that_nobody_reads(serve: Callable[..., ServerProcess], root: Path, tmp_path: Path) -> None:
    """A pipe that is full costs lines, and no request waits for it."""
    log = tmp_path / "pipe"
    os.mkfifo(log)
    reader = os.open(log, os.O_RDONLY | os.O_NONBLOCK)
    server = serve(pool() + cgi_listener(root=root, access_log=log))
    with Client(server) as client:
        for _ in range(60):
            client.send(b"GET /no.sh HTTP/1.1\r\nHost: a\r\nUser-Agent: %b\r\n\r\n" % (b"x" * 2000))
            assert client.response().status == 404
    server.wait_for_line("can't write the access log: Resource temporarily unavailable")
    os.close(reader)
