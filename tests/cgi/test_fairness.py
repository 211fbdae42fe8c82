"""The cgi plugin: a client that sends much at once does not make others wait, and nothing is lost."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.http import PROGRAMS, Client, cgi_listener, pool, write_programs
from tests.helpers.server import ServerProcess, process_state, receive_all, wait_until

NOWHERE = b"GET /no HTTP/1.1\r\nHost: a\r\n\r\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_programs(tmp_path_factory.mktemp("root"), PROGRAMS)


def at_once(server: ServerProcess, parts: list[tuple[Client, bytes]]) -> None:
    """Have these bytes there, in this order, before the worker looks."""
    worker = server.worker_pids()[0]
    os.kill(worker, signal.SIGSTOP)
    try:
        wait_until(lambda: process_state(worker) == "T", "the stop")
        for client, data in parts:
            client.send(data)
    finally:
        os.kill(worker, signal.SIGCONT)


@pytest.mark.server
def test_pipelined_requests_have_nobody_wait(serve: Callable[..., ServerProcess], root: Path, tmp_path: Path) -> None:
    """RFC 9112 section 9.3.2. The order in which requests were served is that of the access log's lines."""
    log = tmp_path / "access.log"
    server = serve(pool() + cgi_listener(root=root, access_log=log))
    greedy = [Client(server) for _ in range(10)]
    other = Client(server)
    for client in (*greedy, other):
        assert client.get("/no").status == 404
    at_once(server, [*((client, NOWHERE * 500) for client in greedy), (other, NOWHERE.replace(b"no", b"other"))])
    assert other.response().status == 404
    for client in greedy:
        assert [client.response().status for _ in range(500)] == [404] * 500
    wait_until(lambda: log.read_text().count("\n") >= 5012, "the last line")
    lines = log.read_text().splitlines()[11:]
    assert len(lines) == 5001
    before = next(number for number, line in enumerate(lines) if "/other" in line)
    assert before < 500  # some for each connection and turn, and not all of anybody's
    for client in (*greedy, other):
        client.sock.close()


@pytest.mark.server
def test_pipelined_requests_before_the_end_of_stream(serve: Callable[..., ServerProcess], root: Path) -> None:
    """RFC 9112 section 9.6: each is answered, those of programs and the server's own answers, in their order."""
    server = serve(pool() + cgi_listener(root=root, keys='half_close = "finish"'))
    hello = b"GET /hello.sh HTTP/1.1\r\nHost: a\r\n\r\n"
    with Client(server) as client:
        client.send((NOWHERE * 99 + hello) * 3)
        client.sock.shutdown(socket.SHUT_WR)
        assert [client.response().status for _ in range(300)] == ([404] * 99 + [200]) * 3
        assert client.is_closed()


@pytest.mark.server
def test_a_client_that_does_not_read_answers_gets_no_more_of_them(
    serve: Callable[..., ServerProcess], root: Path
) -> None:
    """What is kept for it stays far below `max_unsent`, and it gets everything once it reads."""
    server = serve(pool() + cgi_listener(root=root, keys='half_close = "finish"\nmax_unsent = 600000'))
    with Client(server, receive_buffer=4096) as client:
        client.send(NOWHERE * 10_000)
        client.sock.shutdown(socket.SHUT_WR)
        assert receive_all(client.sock).count(b"HTTP/1.1 404 ") == 10_000
