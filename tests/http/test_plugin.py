"""The HTTP library as a plugin sees it, on a running server."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import h11
import pytest

from tests.helpers.http import Client, chunked, prompt
from tests.helpers.plugins import listener, served
from tests.helpers.server import ServerProcess, receive_all, wait_until
from tests.http.web import WEB

pytestmark = pytest.mark.server
PROMPT = 0.2  # seconds: well within the time that the listener `quick` gives a client


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("web")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    options = "[listeners.web.web]\n" + f'access_log = "{folder}/access.log"\naccess_log_format = "json"\n'
    quick = "[listeners.quick.web]\nbody_timeout = 0.5\nheader_timeout = 0.5\nkeepalive_timeout = 0.5\n"
    small = '[listeners.small.web]\nmax_body_size = 1000\ngreeting = "small"\nspool_memory = 100\nmax_spooled = 500\n'
    proxied = '[listeners.proxied.web]\nclient_field = "X-Forwarded-For"\nuser_field = "X-User"\n'
    with served(
        folder,
        WEB,
        listener("web") + options,
        listener("quick", "web") + quick,
        listener("small", "web") + small,
        listener("proxied", "web", trusted_proxies=["127.0.0.1"]) + proxied,
    ) as running:
        yield running


@pytest.fixture
def client(server: ServerProcess) -> Iterator[Client]:
    with Client(server, "web") as client:
        yield client


def lines(folder: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (folder / "access.log").read_text().splitlines()]


def test_a_whole_response(client: Client, server: ServerProcess) -> None:
    answer = client.get("/hello?a=b", "User-Agent: me")
    assert (answer.status, answer.body, answer.headers[b"content-length"]) == (200, b"hello", b"5")
    assert (answer.headers[b"x-query"], answer.headers[b"x-agent"]) == (b"a=b", b"me")
    answer = client.get("/hello", method="HEAD")
    assert (answer.body, answer.headers[b"content-length"]) == (b"", b"5")
    assert client.get("/no").status == 404
    with Client(server, "small") as other:
        assert other.get("/hello").body == b"small"


def test_error_pages_are_as_the_client_prefers(client: Client) -> None:
    assert client.get("/no").body == b"404 Not Found\n"
    assert client.get("/no", "Accept: text/html").headers[b"content-type"] == b"text/html; charset=utf-8"


def test_what_is_known_of_a_request(client: Client, server: ServerProcess) -> None:
    assert client.get("/head?q").body == b"GET\n/head?q\ntest\n(1, 1)\n\n127.0.0.1"
    with Client(server, "proxied") as other:
        fields = ("X-Forwarded-For: 192.0.2.7", "X-User: jo")
        assert other.get("/head", *fields).body.endswith(b"\njo\n192.0.2.7")


def test_pipelined_requests_are_answered_in_order(client: Client) -> None:
    """RFC 9112 section 9.3.2; one of them is answered late."""
    paths = ["late", "hello", "no", "pieces", "hello"] * 5
    client.send(b"".join(f"GET /{path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for path in paths))
    bodies = {"late": b"late", "hello": b"hello", "no": b"404 Not Found\n", "pieces": b"one two three"}
    assert [client.response().body for _ in paths] == [bodies[path] for path in paths]


def test_a_body_in_pieces(client: Client) -> None:
    answer = client.get("/pieces")
    assert (answer.body, answer.headers[b"transfer-encoding"]) == (b"one two three", b"chunked")
    assert [value for name, value in answer.fields if name == b"x-two"] == [b"1", b"2"]
    client.send(b"GET /pieces HTTP/1.0\r\n\r\n")
    assert receive_all(client.sock).endswith(b"\r\n\r\none two three")


def test_the_length_that_was_given_is_kept_to(server: ServerProcess) -> None:
    """RFC 9112 section 6.3: nothing goes beyond it, and what falls short does not look whole."""
    with Client(server, "web") as client:
        assert client.get("/length").body == b"hello"
        assert client.get("/hello").body == b"hello"
        for path in ("/short", "/cut"):
            with Client(server, "web") as other, pytest.raises(h11.RemoteProtocolError):
                other.get(path)


@pytest.mark.parametrize("size", [0, 1, 5, 70_000, 3_000_000])
def test_a_body_as_it_comes(client: Client, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    for _ in range(2):
        assert client.get("/echo", method="POST", body=body).body == body
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(*[body][:size]))
        assert client.response().body == body


def test_a_client_that_waits_to_be_asked(client: Client) -> None:
    """RFC 9110 section 10.1.1."""
    for path in ("/echo", "/whole"):
        client.send(f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n".encode())
        assert client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert client.send(b"abc").response().body == b"abc"
    # A body that is not wanted is not asked for; and where the next request begins, is not known.
    client.send(b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
    answer = client.response()
    assert (answer.body, answer.headers[b"connection"]) == (b"unread", b"close")
    assert client.is_closed()


def test_a_reader_that_is_slow_slows_its_client_down(server: ServerProcess) -> None:
    """Also where its patience with the client is shorter than its own time."""
    # As much as the kernel takes at once: the client itself is never slow.
    request = b"POST /slowly HTTP/1.1\r\nHost: a\r\nContent-Length: 2000000\r\n\r\n" + bytes(2_000_000)
    with prompt(server, "quick", request, PROMPT) as client:
        count, size = map(int, client.response().body.split())
        assert size == 2_000_000
        assert count >= size / 65536


def test_a_client_that_does_not_read_is_not_read_from(server: ServerProcess) -> None:
    with Client(server, "web", receive_buffer=4096) as client:
        size = 60_000_000
        client.send(f"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: {size}\r\n\r\n".encode())
        client.sock.settimeout(0.5)
        sent = 0
        while sent < size:
            try:
                sent += client.sock.send(bytes(min(65536, size - sent)))
            except TimeoutError:
                break
        assert sent < size / 2
        client.sock.settimeout(30)
        assert client.head().startswith(b"HTTP/1.1 200 ")
        assert client.take(sent - 1_000) == bytes(sent - 1_000)


def test_a_response_without_end_stays_small_and_is_cancelled(server: ServerProcess) -> None:
    with Client(server, "web", receive_buffer=4096) as client:
        client.request("/endless")
        client.take(1_000_000)
    sent = int(server.wait_for_line(r"cancelled after (\d+)").group(1))
    assert 1_000_000 <= sent < 20_000_000


def test_a_body_as_a_whole(client: Client, server: ServerProcess) -> None:
    for _ in range(2):
        assert client.get("/whole", method="POST", body=b"abc").body == b"abc"
        client.send(b"POST /whole HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"ab", b"c"))
        assert client.response().body == b"abc"
        assert client.get("/whole").body == b""
        assert client.get("/large", method="POST", body=bytes(2_000_000)).body == b"2000000"
    for head in (b"Content-Length: 100001\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n186a1\r\n"):
        with Client(server, "web") as other:
            other.send(b"POST /whole HTTP/1.1\r\nHost: a\r\n" + head)
            assert other.response().status == 413
            assert other.is_closed()
    with Client(server, "small") as other:
        assert other.get("/whole", method="POST", body=bytes(300)).body == bytes(300)
        assert other.get("/whole", method="POST", body=bytes(600)).status == 503
    with Client(server, "small") as other:
        assert other.get("/whole", method="POST", body=bytes(1001)).status == 413


def test_a_body_that_stalls(server: ServerProcess) -> None:
    """408 where no response has begun; where one has, the connection ends."""
    with prompt(server, "quick", b"POST /never HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx", PROMPT) as client:
        assert client.response().status == 408
        assert client.is_closed()
    server.wait_for_line("never: cancelled, ended=False")
    with prompt(server, "quick", b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx", PROMPT) as client:
        assert client.head().startswith(b"HTTP/1.1 200 ")
        assert client.take(1) == b"x"
        assert client.is_closed()


def test_heads_and_idle_connections_have_their_time(server: ServerProcess) -> None:
    with prompt(server, "quick", b"GET / HTTP/1.1\r\nHost:", PROMPT) as client:
        assert client.response().status == 408
    with prompt(server, "quick", b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n", PROMPT) as client:
        assert client.response().status == 200
        assert client.is_closed()


def test_a_client_that_goes_away_cancels(server: ServerProcess) -> None:
    before = len(server.lines)
    with Client(server, "web") as client:
        client.send(b"POST /never HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nx")
        client.sock.shutdown(socket.SHUT_WR)
        assert client.is_closed()
    server.wait_for_line("never: cancelled, ended=True", after=before)


def test_the_kernel_moves_a_body(client: Client) -> None:
    assert client.get("/file").body == bytes(300_000)
    assert client.get("/hello").status == 200


def test_what_a_handler_may_not_send(client: Client) -> None:
    """RFC 9110 section 5.5: nothing ends a line early, and the framing is the library's."""
    assert b"can't be a header field" in client.get("/split").body
    assert client.get("/framing").body == b"Transfer-Encoding is the library's to send"
    answer = client.get("/redirect?a")
    assert (answer.status, answer.headers[b"location"]) == (301, b"/hello?a")
    assert b"set-cookie" not in answer.headers


def test_a_response_that_says_nothing_of_its_length(client: Client) -> None:
    """RFC 9110 section 8.6: that of a 304 would be the length of the 200 in its place."""
    answer = client.get("/unchanged")
    assert (answer.status, answer.headers[b"etag"]) == (304, b'"x"')
    assert b"content-length" not in answer.headers
    assert client.get("/hello").body == b"hello"


def test_after_the_end_nothing_has_an_effect(client: Client) -> None:
    assert client.get("/twice").body == b"once"
    assert client.get("/hello").body == b"hello"


def test_a_fault_of_the_handler_costs_its_connection(server: ServerProcess) -> None:
    for path, message in (("/raises", "a fault of the handler"), ("/restart", "the response has been started")):
        before = len(server.lines)
        with Client(server, "web") as client:
            client.request(path)
            assert client.is_closed() or path == "/restart"
        server.wait_for_line(message, after=before)
    with Client(server, "web") as client:
        assert client.get("/hello").status == 200


def test_an_answer_before_the_body(server: ServerProcess) -> None:
    """The rest is waited for, and thrown away: the connection goes on. A busy machine may take too long to send it."""

    def goes_on() -> bool:
        with Client(server, "web") as client:
            client.send(b"POST /unread HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n")
            began = time.monotonic()
            client.send(bytes(100_000))
            if time.monotonic() - began > 0.2:
                return False
            assert b"connection" not in client.response().headers
            assert client.get("/hello").body == b"hello"
            return True

    wait_until(goes_on, "a client that is fast enough")


def test_the_connection_in_the_handlers_hands(client: Client) -> None:
    client.request("/raw")
    assert receive_all(client.sock) == b"HTTP/1.1 299 Raw\r\n\r\nraw"


def test_one_line_in_the_access_log(client: Client, folder: Path) -> None:
    """For each request, when the work for it is done."""
    client.get("/hello?logged", "User-Agent: me", "Referer: there")
    assert client.get("/work?logged").body == b"begun"

    def found() -> list[dict[str, object]]:
        return [line for line in lines(folder) if "?logged" in str(line["request"])]

    wait_until(lambda: len(found()) == 2, "both lines")
    hello, work = found()
    assert (hello["status"], hello["bytes"], hello["agent"], hello["referer"]) == (200, 5, "me", "there")
    assert (work["program"], work["exit"], work["bytes"]) == ("worker", 3, 5)
    assert re.fullmatch(r"GET /work\?logged HTTP/1.1", str(work["request"]))


def test_options_that_are_wrong(server: ServerProcess, folder: Path) -> None:
    """The plugin has the library's checks."""
    from poolsrv_http import HttpOptions, http_problems

    assert list(http_problems(HttpOptions(user_field="Cookie"))) == [
        ("user_field", '"Cookie" is a field of clients, expected one that only proxies set, such as "X-Remote-User"')
    ]
    assert [key for key, _ in http_problems(HttpOptions(access_log=folder / "no" / "log"))] == ["access_log"]


def test_a_worker_that_ends_lets_requests_finish(folder: Path, tmp_path: Path) -> None:
    with served(tmp_path, WEB, listener("web")) as server, Client(server, "web") as client:
        client.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 6\r\n\r\nabc")
        assert client.head().startswith(b"HTTP/1.1 200 ")
        server.signal(signal.SIGTERM)
        server.wait_for_line("graceful|drain|stopping")
        client.send(b"def")
        assert client.take(6) == b"abcdef"
        assert client.is_closed()
