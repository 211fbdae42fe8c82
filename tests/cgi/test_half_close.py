"""The cgi plugin over HTTP: a client that has finished sending gets its answers; one that is gone ends its program."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h11
import pytest

from tests.helpers.certificates import Certificates
from tests.helpers.http import PROGRAMS, Client, cgi_listener, chunked, pool, write_programs
from tests.helpers.plugins import reset
from tests.helpers.server import ServerProcess, is_alive, receive_all, wait_until
from tests.worker.test_tls import Peer, tls

pytestmark = pytest.mark.server

MORE = {
    "slow.sh": "sleep 1.5; printf 'Content-Type: text/plain\\n\\nslow'",
    "localslow.sh": "printf 'Location: /slow.sh\\n\\n'",
    # Tells its number in a file of the name that it is asked for, and says nothing for long.
    "silent.sh": 'echo $$ >new.$$; mv new.$$ "$QUERY_STRING"; exec sleep 60',
    # Takes nothing of its input for a while.
    "lateread.sh": "sleep 2.5; printf 'Content-Type: text/plain\\n\\n'; wc -c",
    "ticks.sh": "printf 'Content-Type: text/plain\\n\\n'; for i in 1 2 3 4 5; do echo $i; sleep 0.5; done",
    "count.py": "#!/usr/bin/env python3\nimport sys, time\ntime.sleep(1.5)\nprint('Content-Type: text/plain\\n')\n"
    "print(len(sys.stdin.buffer.read()), end='')",
}
IN_TIME = 0.8  # seconds after the last byte: less than what counts as leaving
LATE = 1.6  # seconds after the last byte: later than what counts as finishing with it


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_programs(tmp_path_factory.mktemp("root"), PROGRAMS | MORE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("server")
    config = pool() + cgi_listener(root=root)
    config += cgi_listener("path", bind="unix:www.sock", root=root)
    config += cgi_listener("finish", keys='half_close = "finish"', root=root)
    config += cgi_listener("abort", keys='half_close = "abort"', root=root)
    config += cgi_listener("warm", root=root, warm=True)
    config += cgi_listener("one", root=root, max_programs=1)
    certificates = Certificates(tmp_path_factory.mktemp("certificates")).folder
    config += tls(certificates, "cgi", "tls") + f'[listeners.tls.cgi]\nroot = "{root}"\n'
    with ServerProcess(config, folder) as running:
        yield running.wait_ready()


def finish(client: Client) -> None:
    client.sock.shutdown(socket.SHUT_WR)


def finished(server: ServerProcess, listener: str, send: Callable[[Client], object], pause: float = 0.0) -> Client:
    """A client that has sent its requests, and finished then. On a busy machine that may come so late that it counts as
    leaving: then another client tries again.

    :param pause: seconds in between.
    """
    for _ in range(100):
        client = Client(server, listener)
        send(client)
        began = time.monotonic()
        time.sleep(pause)
        finish(client)
        if time.monotonic() - began < IN_TIME:
            return client
        client.sock.close()
    raise AssertionError("it was too late a hundred times")


def wait_for_end(pid: int) -> None:
    wait_until(lambda: not is_alive(pid), "the program's end")


def silent_program(client: Client, root: Path) -> int:
    """The process id of a program that this client waits for."""
    name = f"pid.{time.monotonic_ns()}"
    client.request(f"/silent.sh?{name}")
    wait_until((root / name).exists, "the program's start")
    return int((root / name).read_text())


@pytest.mark.parametrize("listener", ["www", "path", "finish"])
@pytest.mark.parametrize("target", ["/hello.sh", "/slow.sh", "/localslow.sh", "/no.sh"])
def test_a_client_that_finishes_with_its_request_is_answered(server: ServerProcess, listener: str, target: str) -> None:
    """RFC 9112 section 9.6: what nc -N, socat and monitoring scripts do."""
    with finished(server, listener, lambda client: client.request(target)) as client:
        assert client.response().body in (b"hello", b"slow") or target == "/no.sh"
        assert client.is_closed()


@pytest.mark.parametrize("listener", ["www", "path"])
def test_shortly_after_the_request_counts_too(server: ServerProcess, listener: str) -> None:
    with finished(server, listener, lambda client: client.request("/slow.sh"), pause=0.3) as client:
        assert client.response().body == b"slow"


def test_every_kind_of_request(server: ServerProcess) -> None:
    """Pipelined, with bodies of either kind, HEAD."""
    body = os.urandom(200_000)

    def send(client: Client) -> None:
        client.request("/slow.sh", method="HEAD")
        client.request("/cat.sh", body=body, method="POST")
        client.send(b"POST /cat.sh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(body, b"x"))
        client.request("/slow.sh")

    with finished(server, "www", send) as client:
        assert client.response("HEAD").status == 200
        assert [client.response().body for _ in range(3)] == [body, body + b"x", b"slow"]
        assert client.is_closed()


def test_more_requests_than_are_read_ahead(server: ServerProcess) -> None:
    """The end of the stream comes while nothing is read: it is noticed all the same, and the rest is read after it."""
    count = 40

    def send(client: Client) -> None:
        for number in range(count):
            client.request("/hello.sh" if number else "/slow.sh", "X-Long: " + "x" * 20_000)

    with finished(server, "www", send) as client:
        assert [client.response().status for _ in range(count)] == [200] * count
        assert client.is_closed()


@pytest.mark.parametrize("listener", ["www", "path"])
def test_a_program_that_reads_late(server: ServerProcess, listener: str) -> None:
    """The body and the end of the stream wait in the kernel."""
    body = b"x" * 1_000_000
    with finished(server, listener, lambda client: client.request("/lateread.sh", method="POST", body=body)) as client:
        assert client.response().body.strip() == b"1000000"


def test_a_warm_script(server: ServerProcess) -> None:
    body = b"x" * 100_000
    for _ in range(2):
        with finished(server, "warm", lambda client: client.request("/count.py", method="POST", body=body)) as client:
            assert client.response().body == b"100000"


def test_a_client_that_waits_for_a_permit_is_answered_too(server: ServerProcess) -> None:
    def send(client: Client) -> None:
        client.request("/slow.sh")

    with finished(server, "one", send) as first, finished(server, "one", send) as second:
        assert [client.response().body for client in (first, second)] == [b"slow", b"slow"]


@pytest.mark.parametrize("listener", ["www", "path", "abort"])
def test_a_client_that_leaves_later_ends_its_program(server: ServerProcess, root: Path, listener: str) -> None:
    for leave in (finish, lambda client: client.sock.close(), lambda client: reset(client.sock)):
        with Client(server, listener) as client:
            pid = silent_program(client, root)
            time.sleep(LATE)
            leave(client)
            wait_for_end(pid)


def test_a_reset_ends_the_program_at_any_time(server: ServerProcess, root: Path) -> None:
    for listener in ("www", "finish"):
        with Client(server, listener) as client:
            pid = silent_program(client, root)
            reset(client.sock)
            wait_for_end(pid)


def test_a_client_that_waits_for_a_permit_and_leaves_gives_it_up(server: ServerProcess, root: Path) -> None:
    """No program is started for a client that is gone."""
    with Client(server, "one") as first, Client(server, "one") as second:
        pid = silent_program(first, root)
        second.request("/silent.sh?never")
        time.sleep(LATE)
        finish(second)
        assert second.is_closed()
        time.sleep(LATE)
        reset(first.sock)
        wait_for_end(pid)
    with Client(server, "one") as third:
        assert third.get("/hello.sh").body == b"hello"
    assert not (root / "never").exists()


def test_abort_can_be_had(server: ServerProcess, root: Path) -> None:
    with Client(server, "abort") as client:
        pid = silent_program(client, root)
        finish(client)
        wait_for_end(pid)


def test_finish_can_be_had(server: ServerProcess, root: Path) -> None:
    with Client(server, "finish") as client:
        client.request("/lateread.sh", method="POST", body=b"x")
        time.sleep(LATE)
        finish(client)
        assert client.response().body.strip() == b"1"


def test_late_but_while_the_response_is_under_way(server: ServerProcess) -> None:
    """Such a client does not wait: its program is not silent."""
    with Client(server) as client:
        client.request("/ticks.sh")
        client.head()
        received = b""
        while b"4\n" not in received:  # which is late, and another one follows
            received += client.take(1)
        finish(client)
        assert b"5\n" in receive_all(client.sock)


def test_half_a_body_is_no_request(server: ServerProcess) -> None:
    for head in (b"Content-Length: 50\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"):
        with Client(server) as client:
            client.send(b"POST /cat.sh HTTP/1.1\r\nHost: a\r\n" + head)
            finish(client)
            with pytest.raises((h11.RemoteProtocolError, ConnectionResetError)):
                client.response()


@pytest.mark.parametrize(("pause", "shut"), [(0.0, False), (0.3, False), (0.0, True)])
def test_tls(server: ServerProcess, pause: float, shut: bool) -> None:
    """The end of the stream is an alert there; with the request, right after it, with or without the socket's end."""
    request = b"GET /slow.sh HTTP/1.1\r\nHost: a\r\n\r\n"

    def is_answered() -> bool:
        with Peer(server, "tls") as peer:
            peer.shake_hands().send(request * 2)
            began = time.monotonic()
            if pause:
                peer.flush()
                time.sleep(pause)
            peer.finish().flush()
            if shut:
                peer.sock.shutdown(socket.SHUT_WR)
            if time.monotonic() - began > IN_TIME:
                return False  # on a busy machine: it has left, then
            assert peer.receive(100_000).count(b"\r\n\r\n4\r\nslow\r\n0\r\n\r\n") == 2
            return True

    wait_until(is_answered, "a client that finishes in time")


def test_tls_of_a_client_that_leaves_later(server: ServerProcess, root: Path) -> None:
    for says_so in (True, False):
        with Peer(server, "tls") as peer:
            name = f"tls.{time.monotonic_ns()}"
            peer.shake_hands().send(b"GET /silent.sh?%b HTTP/1.1\r\nHost: a\r\n\r\n" % name.encode()).flush()
            wait_until((root / name).exists, "the program's start")
            pid = int((root / name).read_text())
            time.sleep(LATE)
            if says_so:
                peer.finish().flush()
            else:
                peer.sock.shutdown(socket.SHUT_WR)
            wait_for_end(pid)
