"""The cgi plugin over HTTP: answers that are there before the request's body."""

from __future__ import annotations

import http.client
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.http import PROGRAMS, Client, cgi_listener, pool, write_programs
from tests.helpers.server import ServerProcess, receive_all, wait_until

pytestmark = pytest.mark.server

MORE = {
    "unread.sh": "printf 'Content-Type: text/plain\\n\\nunread'",
    "counted.sh": "printf 'Content-Type: text/plain\\nContent-Length: 7\\n\\ncounted'; exec sleep 2",
    "denied.sh": "printf 'Status: 401\\nContent-Type: text/plain\\n\\nwho are you?'",
    "large.sh": "printf 'Content-Type: text/plain\\n\\n'; head -c 240000 /dev/zero",
    "plain.txt": "no program",
}
UPLOAD = 20_000_000
MOMENT = 0.2  # seconds: less than what a body is waited for
FIRST_PART = 300_000  # more than the part of a body that has to be here before a program starts (spool_memory)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_programs(tmp_path_factory.mktemp("root"), PROGRAMS | MORE)
    (root / "plain.txt").chmod(0o644)
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[ServerProcess]:
    config = pool(2) + cgi_listener(root=root) + cgi_listener("small", root=root, max_body_size=1000)
    with ServerProcess(config, tmp_path_factory.mktemp("server")) as running:
        yield running.wait_ready()


REFUSALS = [
    ("www", "/no.sh", 404),
    ("www", "/plain.txt", 403),
    ("www", "/denied.sh", 401),
    ("www", "/unread.sh", 200),
    ("www", "/counted.sh", 200),
    ("small", "/cat.sh", 413),
]


@pytest.mark.parametrize(("listener", "target", "status"), REFUSALS)
def test_the_body_does_not_come(server: ServerProcess, listener: str, target: str, status: int) -> None:
    """RFC 9112 section 9.6: what would come next might be the body or a request. So this was the last response."""
    runs_a_program = target in ("/denied.sh", "/unread.sh", "/counted.sh")
    for size, sent in ((UPLOAD, FIRST_PART),) if runs_a_program else ((2000, 5), (2000, 0), (UPLOAD, 5)):
        with Client(server, listener) as client:
            head = f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n"
            client.send(head.encode() + b"x" * sent)
            answer = client.response()
            assert (answer.status, answer.headers[b"connection"]) == (status, b"close")
            assert client.is_closed()


@pytest.mark.parametrize(("listener", "target", "status"), REFUSALS)
def test_a_client_that_sends_all_before_it_reads(
    server: ServerProcess, listener: str, target: str, status: int
) -> None:
    for _ in range(3):
        with Client(server, listener) as client:
            client.request(target, method="POST", body=bytes(UPLOAD))
            answer = client.response()
            assert answer.status == status
            if b"connection" in answer.headers:
                assert answer.headers[b"connection"] == b"close"
                assert client.is_closed()
            else:  # the whole body was here before the answer ended: nothing is in doubt, and the connection goes on
                assert client.get("/hello.sh").body == b"hello"


def test_a_large_answer_to_such_a_client(server: ServerProcess) -> None:
    """Neither side waits for the other to read."""
    with Client(server, receive_buffer=4096) as client:
        client.request("/large.sh", method="POST", body=bytes(UPLOAD))
        assert len(client.response().body) == 240_000
        assert client.is_closed()


def test_chunks(server: ServerProcess) -> None:
    with Client(server) as client:
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        client.send(
            b"POST /no.sh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * (UPLOAD // 65536)
        )
        answer = client.response()
        assert (answer.status, answer.headers[b"connection"]) == (404, b"close")
        assert client.is_closed()


@pytest.mark.parametrize(("listener", "target", "status"), REFUSALS)
def test_clients_that_others_wrote(server: ServerProcess, listener: str, target: str, status: int) -> None:
    address = server.addresses(listener)[0]
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("POST", target, body=bytes(UPLOAD))
    assert connection.getresponse().status == status
    connection.close()
    if shutil.which("curl"):
        curl = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "-H", "Expect:", "--data-binary", "@-"]
        done = subprocess.run(
            [*curl, f"http://{address}{target}"], input=bytes(UPLOAD), capture_output=True, timeout=60
        )
        assert done.stdout == str(status).encode(), done.stderr


def test_a_body_that_comes_a_moment_later(server: ServerProcess) -> None:
    """Many clients send head and body apart: the connection goes on. On a busy machine a moment may be too long."""

    def goes_on() -> bool:
        with Client(server) as client:
            for target in ("/no.sh", "/unread.sh"):
                client.send(f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n".encode())
                began = time.monotonic()
                client.send(bytes(100_000))
                if time.monotonic() - began > MOMENT:
                    return False
                assert b"connection" not in client.response().headers
            assert client.get("/hello.sh").body == b"hello"
            return True

    wait_until(goes_on, "a client that is fast enough")


def test_a_client_that_drips_is_not_waited_for(server: ServerProcess) -> None:
    """What comes after the answer is thrown away, as long as it comes at a rate worth the name."""
    with Client(server) as client:
        client.send(b"POST /no.sh HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n")
        assert client.response().status == 404
        assert receive_all(client.sock) == b""
        stop = threading.Event()
        while not stop.wait(0.1):
            try:
                client.sock.send(b"x")
            except (BrokenPipeError, ConnectionResetError):
                break


def test_a_client_that_goes_on_is_thrown_away_for_long(server: ServerProcess) -> None:
    """Beyond what any buffer holds."""
    with Client(server) as client:
        client.send(b"POST /no.sh HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
        for _ in range(50):
            client.send(bytes(1_000_000))
        assert client.response().status == 404
        client.sock.shutdown(socket.SHUT_WR)
        assert client.is_closed()
