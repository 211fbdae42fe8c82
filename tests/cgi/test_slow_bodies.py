"""Bodies that come slowly, or never: no program waits for them, and they fill neither memory nor disk."""

from __future__ import annotations

import os
import select
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.http import PROGRAMS, Client, cgi_listener, chunked, pool, write_programs
from tests.helpers.server import ServerProcess, descendants_of, wait_until

pytestmark = pytest.mark.server

MORE = {
    "begun.sh": "printf 'Content-Type: text/plain\\n\\nbegun'; exec cat >/dev/null",
    "holds.sh": "printf 'Content-Type: text/plain\\n\\n%s\\n' $$; exec sleep 1000",
}
POST = b"POST /cat.sh HTTP/1.1\r\nHost: a\r\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_programs(tmp_path_factory.mktemp("root"), PROGRAMS | MORE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[ServerProcess]:
    text = pool() + cgi_listener("one", root=root, max_programs=1, queue_size=0)
    text += cgi_listener("first-part", root=root, spool_memory=20_000)
    text += cgi_listener("finish", root=root, keys='half_close = "finish"')
    text += cgi_listener("trickle", root=root, spool_memory=0, body_timeout=0.5, min_body_rate=1000)
    with ServerProcess(text, tmp_path_factory.mktemp("server")) as running:
        yield running.wait_ready()


def test_a_body_that_has_not_come_holds_no_place(server: ServerProcess) -> None:
    """One byte, none, a client that waits for 100 Continue, an unfinished chunked body; they are served once they go
    on."""
    worker = server.worker_pids()[0]
    wait_until(lambda: descendants_of(worker) == [], "the end of programs of other tests")
    slow = [Client(server, "one") for _ in range(4)]
    slow[0].send(POST + b"Content-Length: 5\r\n\r\nh")
    slow[1].send(POST + b"Content-Length: 5\r\n\r\n")
    slow[2].send(POST + b"Content-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert slow[2].head() == b"HTTP/1.1 100 Continue\r\n\r\n"
    slow[3].send(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
    with Client(server, "one") as other:
        for _ in range(5):
            assert other.get("/hello.sh").body == b"hello"
    assert descendants_of(worker) == []
    rests = (b"ello", b"hello", b"hello", b"0\r\n\r\n")
    for client, rest in zip(slow, rests, strict=True):
        assert client.send(rest).response().body == b"hello"
        wait_until(lambda: descendants_of(worker) == [], "the program's end")
        client.sock.close()


def test_a_large_body_starts_its_program_by_its_first_part(server: ServerProcess) -> None:
    """What follows is given to it as it comes."""
    with Client(server, "first-part") as client:
        client.send(b"POST /begun.sh HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + b"x" * 19_999)
        with Client(server, "first-part") as other:
            assert other.get("/hello.sh").status == 200
        client.send(b"x")
        assert client.head().startswith(b"HTTP/1.1 200")
        assert client.take(10) == b"5\r\nbegun\r\n"
        client.send(b"x" * 980_000)
        assert client.take(5) == b"0\r\n\r\n"


def test_a_client_that_leaves_before_its_body_is_here_starts_nothing(server: ServerProcess) -> None:
    for head in (b"Content-Length: 5\r\n\r\nhell", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"):
        with Client(server, "finish") as client:
            client.send(POST + head)
            client.sock.shutdown(socket.SHUT_WR)
            assert client.is_closed()


def test_a_trickle_does_not_keep_a_program_waiting(server: ServerProcess) -> None:
    """A byte now and then, behind a first part that was large enough."""
    with Client(server, "trickle") as client:
        client.send(POST + b"Content-Length: 100000\r\n\r\n" + b"x" * 20_000)
        client.sock.settimeout(0.05)
        received = b""
        with suppress(ConnectionResetError, BrokenPipeError):
            while b"\r\n\r\n" not in received:
                try:
                    received += client.sock.recv(65536) or b"\r\n\r\n"
                except TimeoutError:
                    client.send(b"x")
    server.wait_for_line("no more of the request's body within body_timeout|body_timeout")


def test_bodies_that_are_kept_are_bounded_over_the_pool(serve: Callable[..., ServerProcess], root: Path) -> None:
    """Unfinished ones; they count no more when they are over, or when their worker is killed."""
    server = serve(pool(2) + cgi_listener(root=root, spool_memory=1000, max_spooled=100_000))
    part = b"%x\r\n" % 40_000 + b"x" * 40_000

    def holder() -> Client:
        client = Client(server)
        client.send(POST + b"Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.send(part)
        return client

    def fill() -> list[Client]:
        clients = [holder(), holder()]

        def is_full() -> bool:
            for index, client in enumerate(clients):
                if select.select([client.sock], [], [], 0)[0]:  # the probe was faster, so this one was refused
                    client.sock.close()
                    clients[index] = holder()
            return refused(50_000)

        wait_until(is_full, "a refusal")
        return clients

    def refused(size: int) -> bool:
        with Client(server) as client:
            try:
                client.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"y" * size))
                answer = client.response()
            except (ConnectionResetError, BrokenPipeError):
                return False
            assert answer.status in (200, 503)
            assert answer.status == 200 or answer.headers[b"retry-after"]
            return answer.status == 503

    for client in fill():
        client.sock.close()
    wait_until(lambda: not refused(90_000), "room")
    clients = fill()
    workers = server.worker_pids()
    for worker in workers:
        os.kill(worker, signal.SIGKILL)
    for client in clients:
        client.sock.close()
    wait_until(lambda: len(server.worker_pids()) == 2 and not set(server.worker_pids()) & set(workers), "new workers")
    wait_until(lambda: not refused(90_000), "room")


def test_a_file_that_a_program_has_counts_on(serve: Callable[..., ServerProcess], root: Path) -> None:
    server = serve(pool() + cgi_listener(root=root, spool_memory=1000, max_spooled=100_000))
    post = b"POST /holds.sh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
    with Client(server) as holding, Client(server) as other:
        holding.send(post + chunked(b"x" * 60_000))
        assert holding.head().startswith(b"HTTP/1.1 200")
        assert other.send(post + chunked(b"x" * 60_000)).response().status == 503
    with Client(server) as again:
        wait_until(lambda: not descendants_of(server.worker_pids()[0]), "the program's end")
        again.send(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(b"x" * 60_000))
        assert again.response().body == b"x" * 60_000
