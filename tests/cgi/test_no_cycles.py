"""The cgi plugin: a request leaves nothing behind for the garbage collector, by any protocol, cold or warm."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from tests.helpers.http import Client, cgi_listener, write_programs
from tests.helpers.plugins import served
from tests.helpers.server import ServerProcess, receive_all, wait_until

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
    "nph-all.sh": "printf 'HTTP/1.1 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\nall'",
    "local.sh": "printf 'Location: /hello.sh\\n\\n'",
    "bad.sh": "echo no header; echo words >&2",
    "warm.py": f"#!{sys.executable}\nimport os\nprint('Content-Type: text/plain\\n\\n', os.getppid())",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = write_programs(tmp_path_factory.mktemp("root"), PROGRAMS)
    keys = 'plugins = ["counts"]'
    listeners = (
        cgi_listener(keys=keys, root=root, nph=["*/nph-*"]),
        cgi_listener("warm", keys=keys, root=root, warm=True),
        cgi_listener("line", keys=keys, root=root, protocol="line", max_programs=1),
        cgi_listener("inetd", keys=keys, protocol="inetd", program=["cat"], max_programs=1),
    )
    with served(tmp_path_factory.mktemp("server"), COUNTS, *listeners) as running:
        yield running


def get(server: ServerProcess, listener: str, path: str, status: int = 200) -> None:
    with Client(server, listener) as client:
        assert client.get(path).status == status


def talk(server: ServerProcess, listener: str, data: bytes, answer: bytes) -> None:
    with server.connect(listener) as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == answer


def assert_that_no_connection_is_left(server: ServerProcess, visit: Callable[[], object]) -> None:
    before = len(server.lines)

    def alone() -> bool:
        visit()
        return any(line.endswith("objects: 1") for line in server.lines[before:])

    wait_until(alone, "an end of all other connections")


def test_a_request_leaves_no_reference_cycle_behind(server: ServerProcess) -> None:
    for path in ("/hello.sh", "/late.sh", "/nph-all.sh", "/local.sh"):
        get(server, "www", path)
    for path, status in (("/bad.sh", 502), ("/no.sh", 404)):
        get(server, "www", path, status)
    assert_that_no_connection_is_left(server, partial(get, server, "www", "/no.sh", 404))


def test_neither_does_one_in_a_warm_interpreter(server: ServerProcess) -> None:
    def ran_warm() -> bool:
        with Client(server, "warm") as client:
            return int(client.get("/warm.py").body) not in server.worker_pids()

    for _ in range(3):
        wait_until(ran_warm, "a warm interpreter")
    assert_that_no_connection_is_left(server, partial(get, server, "warm", "/no.sh", 404))


@pytest.mark.parametrize(
    ("listener", "data", "answer"), [("line", b"bad.sh\n", b"no header\n"), ("inetd", b"all of it", b"all of it")]
)
def test_neither_does_one_without_http(server: ServerProcess, listener: str, data: bytes, answer: bytes) -> None:
    with server.connect(listener) as sock:
        sock.sendall(data)
        for _ in range(2):
            with server.connect(listener) as waiting:  # there may be one program at a time
                waiting.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == answer
    assert_that_no_connection_is_left(server, partial(talk, server, listener, data, answer))
