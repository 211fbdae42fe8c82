"""The cgi plugin over HTTP, on a running server: requests, responses, framing, connections."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import h11
import pytest

from tests.helpers.http import PROGRAMS, Client, cgi_listener, chunked, pool, prompt, write_programs
from tests.helpers.server import ServerProcess, receive_all, wait_until

pytestmark = pytest.mark.server

MORE = {
    "status.sh": "printf 'Status: 404 Not Here\\nContent-Type: text/plain\\n\\ngone'",
    "statusonly.sh": "printf 'Status: 202\\n\\n'",
    "redirect.sh": "printf 'Location: http://elsewhere.example/x\\n\\n'",
    "redirectdoc.sh": "printf 'Status: 303 See Other\\nLocation: http://e/\\nContent-Type: text/plain\\n\\nsee'",
    "local.sh": "printf 'Location: /env.sh/more?%s\\n\\n' \"$QUERY_STRING\"",
    "localcookie.sh": "printf 'Set-Cookie: a=b\\nLocation: /env.sh?%s\\nSet-Cookie: c=d\\n\\n' \"$QUERY_STRING\"",
    "localfragment.sh": "printf 'Location: /a b/\\303\\244#x\\n\\n'",
    "localslow.sh": "printf 'Location: /slow.sh\\n\\n'",
    "locallate.sh": "printf 'Location: /hello.sh\\n\\n'; exec 1>&-; sleep 0.2; touch late",
    "slow.sh": "sleep 1.5; printf 'Content-Type: text/plain\\n\\nslow'",
    "loop.sh": "printf 'Location: /loop.sh\\n\\n'",
    "nowhere.sh": "printf 'Location: /no/such\\n\\n'",
    "crlf.sh": "printf 'Content-Type: text/plain\\r\\nX-A: 1\\n\\r\\nbody'",
    "silent.sh": ":",
    # Has time for its last words on a busy machine, too.
    "garbage.sh": "trap '' TERM; echo this is no header; echo; echo text; sleep 0.3; echo 'what was wrong' >&2",
    "half.sh": "printf 'Content-Type: text/plain\\nX-More: '",
    "hop.sh": "printf 'Content-Type: text/plain\\nConnection: close, X-Mine\\nX-Mine: 1\\nKeep-Alive: 5\\n"
    "Transfer-Encoding: chunked\\nTrailer: X\\nUpgrade: h2c\\nX-Yours: 2\\n\\nbody'",
    "split.sh": "printf 'Content-Type: text/plain\\nX-A: 1\\rSet-Cookie: x\\n\\n'",
    "nul.sh": "printf 'Content-Type: text/plain\\nX-A: 1\\0\\n\\n'",
    "hugeheader.sh": "printf 'Content-Type: text/plain\\nX: '; head -c 3000 /dev/zero | tr '\\0' x; printf '\\n\\n'",
    "nocontent.sh": "printf 'Status: 204\\n\\nthis is cut off'",
    "notmodified.sh": "printf 'Status: 304\\nETag: \"x\"\\nContent-Length: 5\\n\\nhello'",
    "toolong.sh": "printf 'Content-Type: text/plain\\nContent-Length: 5\\n\\nhello, and this is too much'",
    "tooshort.sh": "printf 'Content-Type: text/plain\\nContent-Length: 50\\n\\nhello'",
    "dies.sh": "printf 'Content-Type: text/plain\\n\\nhello'; kill -9 $$",
    "dieswhole.sh": "printf 'Content-Type: text/plain\\nContent-Length: 5\\n\\nhello'; kill -9 $$",
    "nph-raw.sh": "printf 'HTTP/1.1 299 Raw\\r\\nX-Raw: 1\\r\\n\\r\\nraw'",
    "twolines.sh": "printf 'Content-Type: text/plain\\n\\none'; sleep 0.3; printf two",
    "unread.sh": "printf 'Content-Type: text/plain\\n\\nunread'",
    "closed.sh": "exec 0<&-; printf 'Content-Type: text/plain\\n\\nclosed'",
    "early.sh": "printf 'Content-Type: text/plain\\nContent-Length: 2\\n\\nok'; wc -c >early.$$; mv early.$$ early",
    "swallow.sh": "cat >/dev/null; printf 'Content-Type: text/plain\\n\\n'",
    "lateread.sh": "sleep 1.5; printf 'Content-Type: text/plain\\n\\n'; wc -c",
    "date.sh": "printf 'Content-Type: text/plain\\nDate: Thu, 01 Jan 1970 00:00:00 GMT\\nServer: mine\\n\\n'",
    "dir/index.sh": "printf 'Content-Type: text/plain\\n\\nindex %s' \"$SCRIPT_NAME\"",
    "plain.txt": "not a program",
}
PROMPT = 0.3  # seconds: well within the time that the listener `quick` gives a client


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_programs(tmp_path_factory.mktemp("root"), PROGRAMS | MORE)
    (root / "plain.txt").chmod(0o644)
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[ServerProcess]:
    config = pool() + cgi_listener(root=root)
    config += cgi_listener("nph", root=root, nph=["*/nph-*"])
    config += cgi_listener(
        "small", root=root, max_header_size=1024, max_body_size=1000, spool_memory=100, index="index.sh"
    )
    config += cgi_listener("quick", root=root, header_timeout=0.7, body_timeout=0.7, keepalive_timeout=0.7)
    config += cgi_listener("one", root=root, keepalive_timeout=0)
    config += cgi_listener("finish", keys='half_close = "finish"', root=root)
    config += cgi_listener("auth", root=root, pass_authorization=True, environment={"HTTPS": "on"})
    config += cgi_listener("path", bind="unix:www.sock", root=root)
    config += cgi_listener("six", bind="[::1]:0", root=root, prefix="/cgi-bin/")
    with ServerProcess(config, tmp_path_factory.mktemp("server")) as running:
        yield running.wait_ready()


# -- environment and paths (their functions have tests of their own)


def test_the_environment_of_a_program(client: Client, root: Path, server: ServerProcess) -> None:
    """RFC 3875 section 4.1: these variables, and of the server's own environment nothing but a PATH."""
    answer = client.get("/env.sh/a%20b/c?x=%20&y", "Accept: */*", "X-Two: 1", "X-Two: 2", "Proxy: evil", "A_B: 1")
    host, _, port = server.addresses("www")[0].rpartition(":")
    environment = answer.environment
    assert re.fullmatch(r"\d+", environment.pop("REMOTE_PORT"))
    assert environment.pop("SERVER_SOFTWARE").startswith("poolsrv/")
    environment.pop("PWD", None)  # of the shell
    assert environment == {
        "DOCUMENT_ROOT": str(root),
        "GATEWAY_INTERFACE": "CGI/1.1",
        "HTTP_ACCEPT": "*/*",
        "HTTP_HOST": "test",
        "HTTP_X_TWO": "1, 2",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "PATH_INFO": "/a b/c",
        "PATH_TRANSLATED": f"{root}/a b/c",
        "QUERY_STRING": "x=%20&y",
        "REMOTE_ADDR": host,
        "REQUEST_METHOD": "GET",
        "REQUEST_URI": "/env.sh/a%20b/c?x=%20&y",
        "SCRIPT_FILENAME": f"{root}/env.sh",
        "SCRIPT_NAME": "/env.sh",
        "SERVER_NAME": "test",
        "SERVER_PORT": port,
        "SERVER_PROTOCOL": "HTTP/1.1",
    }


def test_content_length_is_there_if_and_only_if_there_is_a_body(client: Client) -> None:
    """RFC 3875 sections 4.1.2 and 4.1.3."""
    environment = client.get("/env.sh", "Content-Type: a/b", method="POST", body=b"12345").environment
    assert (environment["CONTENT_LENGTH"], environment["CONTENT_TYPE"]) == ("5", "a/b")
    assert client.get("/env.sh", method="POST", body=b"").environment["CONTENT_LENGTH"] == "0"
    client.send(b"POST /env.sh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"123", b"4567"))
    environment = client.response().environment
    assert environment["CONTENT_LENGTH"] == "7"
    assert "CONTENT_TYPE" not in environment
    assert "HTTP_TRANSFER_ENCODING" not in environment
    assert "CONTENT_LENGTH" not in client.get("/env.sh").environment


def test_authorization_is_hidden_unless_the_config_passes_it(server: ServerProcess, client: Client) -> None:
    """RFC 3875 sections 4.1.1, 4.1.11 and 4.1.18; the server does not authenticate users."""
    environment = client.get("/env.sh", "Authorization: Basic eA==").environment
    assert not {"HTTP_AUTHORIZATION", "AUTH_TYPE", "REMOTE_USER"} & set(environment)
    with Client(server, "auth") as other:
        environment = other.get("/env.sh", "Authorization: Basic eA==").environment
    assert environment["HTTP_AUTHORIZATION"] == "Basic eA=="
    assert environment["HTTPS"] == "on"
    assert not {"AUTH_TYPE", "REMOTE_USER"} & set(environment)


def test_a_unix_socket_and_ipv6(server: ServerProcess) -> None:
    """RFC 3875 sections 4.1.8 and 4.1.14: an address, or what says that there is none."""
    with Client(server, "path") as client:
        environment = client.get("/env.sh").environment
        assert (environment["REMOTE_ADDR"], environment["SERVER_PORT"]) == ("unix:", "80")
    with Client(server, "six") as client:
        client.send(b"GET /cgi-bin/env.sh HTTP/1.0\r\n\r\n")
        environment = client.response().environment
        assert (environment["REMOTE_ADDR"], environment["SERVER_NAME"]) == ("::1", "[::1]")
        assert environment["SCRIPT_NAME"] == "/cgi-bin/env.sh"


def test_the_working_directory_is_the_programs_own(client: Client, root: Path) -> None:
    """RFC 3875 section 7.2."""
    assert client.get("/sub/deep.sh").body.decode().strip() == str(root / "sub")


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("/no.sh", 404),
        ("/plain.txt", 403),  # its source is never sent
        ("/sub", 403),
        ("/sub/", 403),
        ("/%00", 400),
        ("/sub%2fdeep.sh", 400),
        ("/../hello.sh", 400),
        ("/sub/../hello.sh", 200),
        ("/%2e%2e/hello.sh", 400),
        ("/%zz", 400),
        ("*", 400),
    ],
)
def test_paths(client: Client, target: str, status: int) -> None:
    """RFC 3875 section 4.1.13, RFC 3986 section 5.2.4; only programs answer."""
    assert client.get(target).status == status


def test_a_directory_has_an_index_program(server: ServerProcess) -> None:
    """RFC 9110 section 15.4.2: relative links need the slash, so the client is sent to it."""
    with Client(server, "small") as client:
        answer = client.get("/dir?q=1")
        assert (answer.status, answer.headers[b"location"]) == (301, b"/dir/?q=1")
        assert client.get("/dir/").body == b"index /dir/index.sh"


# -- the four shapes


def test_a_document(client: Client) -> None:
    """RFC 3875 section 6.2.1; the default status is 200, and Date is the server's (RFC 9110 section 6.6.1)."""
    answer = client.get("/hello.sh")
    assert (answer.status, answer.reason, answer.body) == (200, b"OK", b"hello")
    assert answer.headers[b"content-type"] == b"text/plain"
    assert answer.headers[b"server"] == b"poolsrv"
    assert re.fullmatch(rb"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer.headers[b"date"])


def test_the_status_is_the_programs(client: Client) -> None:
    """RFC 3875 section 6.3.3."""
    answer = client.get("/status.sh")
    assert (answer.status, answer.reason, answer.body) == (404, b"Not Here", b"gone")
    assert b"status" not in answer.headers
    assert (client.get("/statusonly.sh").status, client.get("/date.sh").headers[b"server"]) == (202, b"mine")


def test_a_client_redirect(client: Client) -> None:
    """RFC 3875 section 6.2.3."""
    answer = client.get("/redirect.sh")
    assert (answer.status, answer.headers[b"location"]) == (302, b"http://elsewhere.example/x")


def test_a_client_redirect_with_a_document(client: Client) -> None:
    """RFC 3875 section 6.2.4."""
    answer = client.get("/redirectdoc.sh")
    assert (answer.status, answer.reason, answer.body) == (303, b"See Other", b"see")


def test_a_local_redirect(client: Client) -> None:
    """RFC 3875 section 6.2.2: as if the client had asked for it, by GET and without the body."""
    environment = client.get("/local.sh?q=1", "X-Kept: 1", method="POST", body=b"unread").environment
    assert environment["REQUEST_METHOD"] == "GET"
    assert (environment["SCRIPT_NAME"], environment["PATH_INFO"]) == ("/env.sh", "/more")
    assert (environment["QUERY_STRING"], environment["HTTP_X_KEPT"]) == ("q=1", "1")
    assert "CONTENT_LENGTH" not in environment
    assert client.get("/hello.sh").body == b"hello"
    client.send(b"POST /local.sh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(b"x" * 999))
    assert "CONTENT_LENGTH" not in client.response().environment


def test_what_is_more_than_a_local_redirect_is_for_the_client(client: Client) -> None:
    """RFC 3875 section 6.2.2: cookies beside a path reach the client; so does a fragment, in a Location that is one."""
    answer = client.get("/localcookie.sh?q", method="POST", body=b"x")
    assert (answer.status, answer.body) == (302, b"")
    assert (b"location", b"/env.sh?q") in answer.fields
    assert [value for name, value in answer.fields if name == b"set-cookie"] == [b"a=b", b"c=d"]
    answer = client.get("/localfragment.sh")
    assert (answer.status, answer.headers[b"location"]) == (302, b"/a%20b/%C3%A4#x")


def test_a_local_redirect_to_a_slow_program_waits_for_it(client: Client) -> None:
    """RFC 3875 section 6.2.2: what the first program does after its header no longer matters."""
    assert client.get("/localslow.sh").body == b"slow"


def test_a_program_may_go_on_after_its_local_redirect(client: Client, root: Path) -> None:
    """RFC 3875 section 6.2.2: it is not ended for it."""
    assert client.get("/locallate.sh").body == b"hello"
    wait_until((root / "late").exists, "the program that goes on")


def test_local_redirects_in_a_circle(client: Client, server: ServerProcess) -> None:
    """RFC 3875 section 6.2.2: there is a cap."""
    assert client.get("/loop.sh").status == 502
    server.wait_for_line(r"more local redirects than max_local_redirects \(10\)")
    assert client.get("/nowhere.sh").status == 404
    assert client.get("/hello.sh").body == b"hello"


# -- the header


def test_header_lines_end_with_lf_or_crlf(client: Client) -> None:
    """RFC 3875 section 6.3."""
    answer = client.get("/crlf.sh")
    assert (answer.headers[b"x-a"], answer.body) == (b"1", b"body")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("silent.sh", "printed nothing"),
        ("garbage.sh", "not a header field.*last words: what was wrong"),
        ("half.sh", "ended within its header"),
        ("split.sh", "bare CR"),
        ("nul.sh", "a byte"),
    ],
)
def test_what_is_no_header_is_502(client: Client, server: ServerProcess, program: str, message: str) -> None:
    """RFC 9110 section 15.6.3, RFC 3875 section 6.2; the log has the reason and the last lines of standard error."""
    answer = client.get(f"/{program}")
    assert (answer.status, answer.body) == (502, b"502 Bad Gateway\n")
    server.wait_for_line(rf"/{program}\[\d+\]: 502: .*{message}")
    assert client.get("/hello.sh").body == b"hello"


def test_the_size_of_a_header_is_limited(server: ServerProcess) -> None:
    """RFC 9110 section 15.6.3."""
    with Client(server, "small") as client:
        assert client.get("/hugeheader.sh").status == 502


def test_hop_by_hop_fields_are_not_passed_on(client: Client) -> None:
    """RFC 9110 section 7.6.1: they are about a connection that the program does not know."""
    answer = client.get("/hop.sh")
    assert answer.headers[b"x-yours"] == b"2"
    assert not {b"x-mine", b"keep-alive", b"trailer", b"upgrade", b"connection"} & set(answer.headers)
    assert [value for name, value in answer.fields if name == b"transfer-encoding"] == [b"chunked"]
    assert client.get("/hello.sh").status == 200


# -- framing


def test_without_content_length_it_is_chunked(client: Client) -> None:
    """RFC 9112 sections 6.3 and 7.1."""
    answer = client.get("/twolines.sh")
    assert (answer.headers[b"transfer-encoding"], answer.body) == (b"chunked", b"onetwo")


def test_output_goes_out_as_it_comes(client: Client, root: Path) -> None:
    """RFC 9112 section 7.1: the first chunk is there before the program has ended."""
    client.request("/wait.sh")
    client.head()
    pid = client.take(_chunk_size(client)).decode().strip()
    (root / f"go.{pid}").touch()
    assert client.take(2) == b"\r\n"
    assert client.take(_chunk_size(client)) == b"end\n"
    assert client.take(7) == b"\r\n0\r\n\r\n"


def _chunk_size(client: Client) -> int:
    line = b""
    while not line.endswith(b"\r\n"):
        line += client.take(1)
    return int(line, 16)


def test_http_1_0_is_closed_at_the_end(client: Client) -> None:
    """RFC 9112 sections 6.3 and 9.3."""
    client.send(b"GET /hello.sh HTTP/1.0\r\n\r\n")
    head, _, body = receive_all(client.sock).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Transfer-Encoding" not in head
    assert b"Connection: close" in head
    assert body == b"hello"


def test_http_1_0_with_keep_alive(client: Client) -> None:
    """RFC 9112 section 9.3: only a response whose length is known leaves the connection open."""
    request = b"GET /length.sh HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
    for _ in range(2):
        answer = client.send(request).response()
        assert (answer.body, answer.headers[b"connection"]) == (b"hello", b"keep-alive")
    client.send(request.replace(b"length", b"hello"))
    assert receive_all(client.sock).endswith(b"\r\n\r\nhello")


def test_content_length_is_the_programs(client: Client) -> None:
    """RFC 9110 section 8.6."""
    answer = client.get("/length.sh")
    assert (answer.headers[b"content-length"], answer.body) == (b"5", b"hello")


def test_what_exceeds_the_content_length_is_cut_off(client: Client) -> None:
    """RFC 9112 section 6.3: it would be taken for the next response."""
    assert client.get("/toolong.sh").body == b"hello"
    assert client.get("/hello.sh").body == b"hello"


def test_less_than_the_content_length_closes_the_connection(client: Client) -> None:
    """RFC 9112 section 8: an incomplete message, and the client can tell."""
    with pytest.raises(h11.RemoteProtocolError, match="without sending complete message body"):
        client.get("/tooshort.sh")


def test_a_program_that_dies_in_mid_body(client: Client, server: ServerProcess) -> None:
    """RFC 9112 sections 7.1 and 8: no last chunk. With Content-Length, nothing is missing."""
    assert client.get("/dieswhole.sh").body == b"hello"
    with pytest.raises(h11.RemoteProtocolError):
        client.get("/dies.sh")
    with Client(server) as other:
        other.send(b"GET /dies.sh HTTP/1.0\r\n\r\n")
        with pytest.raises(ConnectionResetError):  # its end alone would look like the body's
            receive_all(other.sock)


def test_head_has_no_body(client: Client) -> None:
    """RFC 9110 section 9.3.2: the program runs, and knows."""
    answer = client.get("/length.sh", method="HEAD")
    assert (answer.headers[b"content-length"], answer.body) == (b"5", b"")
    answer = client.get("/hello.sh", method="HEAD")
    assert (answer.status, answer.body) == (200, b"")
    assert client.get("/no.sh", method="HEAD").body == b""
    assert client.get("/hello.sh").body == b"hello"


@pytest.mark.parametrize(("program", "status"), [("nocontent.sh", 204), ("notmodified.sh", 304)])
def test_no_body_for_204_and_304(client: Client, program: str, status: int) -> None:
    """RFC 9110 sections 8.6, 15.3.5 and 15.4.5."""
    answer = client.get(f"/{program}")
    assert (answer.status, answer.body) == (status, b"")
    assert (b"content-length" in answer.headers) == (status == 304)
    assert client.get("/hello.sh").body == b"hello"


def test_nph_only_where_the_config_says_so(server: ServerProcess, client: Client) -> None:
    """RFC 3875 section 5."""
    assert client.get("/nph-raw.sh").status == 502
    with Client(server, "nph") as other:
        other.send(b"GET /nph-raw.sh HTTP/1.1\r\nHost: a\r\n\r\n")
        assert receive_all(other.sock) == b"HTTP/1.1 299 Raw\r\nX-Raw: 1\r\n\r\nraw"
    with Client(server, "nph") as other:
        assert other.get("/hello.sh").body == b"hello"


# -- request bodies


@pytest.mark.parametrize("size", [1, 1000, 300_000, 5_000_000])
def test_a_body_comes_back(client: Client, size: int) -> None:
    """RFC 3875 section 4.2: input and output are moved at the same time, or this would never end."""
    body = bytes(range(256)) * (size // 256 + 1)
    for _ in range(2):
        assert client.get("/cat.sh", method="POST", body=body).body == body


@pytest.mark.parametrize("size", [1, 99, 101, 1000])
def test_a_chunked_body_is_spooled(server: ServerProcess, size: int) -> None:
    """RFC 9112 section 7.1, RFC 3875 section 4.2: in memory up to 100 bytes here, above it in a file."""
    body = b"abcdefghij" * 100
    with Client(server, "small") as client:
        for _ in range(2):
            client.send(b"POST /cat.sh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n")
            client.send(chunked(*(body[at : at + 7] for at in range(0, size, 7)))[:-5] + b"0\r\nX-T: 1\r\n\r\n")
            assert client.response().body[:size] == body[:size]


def test_a_body_of_the_greatest_size(server: ServerProcess) -> None:
    """RFC 9110 section 15.5.14: 413 above it, as soon as that is known."""
    with Client(server, "small") as client:
        assert len(client.get("/cat.sh", method="POST", body=bytes(1000)).body) == 1000
        answer = client.get("/cat.sh", method="POST", body=bytes(1001))
        assert (answer.status, answer.headers[b"connection"]) == (413, b"close")
        assert client.is_closed()
    with Client(server, "small") as client:
        client.send(b"POST /cat.sh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3e8\r\n" + bytes(1000))
        assert client.send(b"\r\n1\r\n").response().status == 413
        assert client.is_closed()


def test_expect_100_continue(client: Client) -> None:
    """RFC 9110 section 10.1.1: 100 only when the body is wanted."""
    head = "POST %s HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n"
    client.send((head % "/cat.sh").encode() + b"Content-Length: 5\r\n\r\n")
    assert client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert client.send(b"hello").response().body == b"hello"
    client.send((head % "/cat.sh").encode() + b"Transfer-Encoding: chunked\r\n\r\n")
    assert client.head() == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert client.send(chunked(b"hello")).response().body == b"hello"
    client.send((head % "/cat.sh").encode() + b"Content-Length: 5\r\n\r\nhello")  # a client that does not wait
    assert client.response().body == b"hello"
    client.send((head % "/no.sh").encode() + b"Content-Length: 5\r\n\r\n")
    answer = client.response()
    assert (answer.status, answer.headers[b"connection"]) == (404, b"close")
    assert client.is_closed()


def test_expect_of_something_else(client: Client) -> None:
    """RFC 9110 section 15.5.18."""
    assert client.get("/hello.sh", "Expect: wonders").status == 417
    assert client.is_closed()


def test_a_body_that_is_not_read(client: Client) -> None:
    """RFC 9112 section 9.3: where it comes at once, the connection can go on behind it."""
    for program in ("unread", "closed"):
        assert client.get(f"/{program}.sh", method="POST", body=bytes(900_000)).body == program.encode()
        assert client.get("/hello.sh").body == b"hello"
    assert client.get("/no.sh", method="POST", body=bytes(900_000)).status == 404
    assert client.get("/hello.sh").body == b"hello"


def test_a_large_body_that_is_not_read_closes_the_connection(server: ServerProcess) -> None:
    """RFC 9112 section 9.3: beyond the cap."""
    with Client(server) as client:
        client.send(b"POST /unread.sh HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n")
        client.send(b"x" * 100_000)
        assert client.response().body == b"unread"
        assert client.is_closed()


def test_a_response_before_the_body_was_taken(client: Client, root: Path) -> None:
    """RFC 9112 section 9.6: the program gets the whole body; the client is told that this was the last response."""
    body = bytes(400_000)
    client.send(b"POST /early.sh HTTP/1.1\r\nHost: a\r\nContent-Length: 400000\r\n\r\n" + body[:100_000])
    answer = client.response()
    assert (answer.body, answer.headers[b"connection"]) == (b"ok", b"close")
    client.send(body[100_000:])
    assert client.is_closed()
    wait_until((root / "early").exists, "the program's count")
    assert (root / "early").read_text().strip() == "400000"


# -- connections


def test_keep_alive(client: Client) -> None:
    """RFC 9112 section 9.3."""
    for _ in range(20):
        assert client.get("/hello.sh").body == b"hello"
    answer = client.get("/hello.sh", "Connection: close")
    assert answer.headers[b"connection"] == b"close"
    assert client.is_closed()


def test_keep_alive_can_be_switched_off(server: ServerProcess) -> None:
    """RFC 9112 section 9.6."""
    with Client(server, "one") as client:
        assert client.get("/hello.sh").headers[b"connection"] == b"close"
        assert client.is_closed()
    with Client(server, "one") as client:
        assert client.get("/no.sh").headers[b"connection"] == b"close"
        assert client.is_closed()


def test_pipelining(client: Client) -> None:
    """RFC 9112 section 9.3.2: answered in order, bodies and all."""
    requests, expected = b"", []
    for number in range(30):
        body = b"%d" % number * (number * 20)
        if number % 3 == 0:
            requests += b"POST /cat.sh HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            expected.append(body)
        elif number % 3 == 1:
            requests += b"POST /cat.sh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(
                body or b"x"
            )
            expected.append(body or b"x")
        else:
            requests += b"POST /unread.sh HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
            expected.append(b"unread")
    client.send(requests)
    assert [client.response().body for _ in expected] == expected


def test_pipelined_errors(client: Client) -> None:
    """RFC 9112 section 9.3.2: errors of the server's own are in the row too."""
    client.send(b"GET /no.sh HTTP/1.1\r\nHost: a\r\n\r\n" * 50 + b"GET /hello.sh HTTP/1.1\r\nHost: a\r\n\r\n")
    assert [client.response().status for _ in range(51)] == [404] * 50 + [200]


def test_half_close_can_be_had(server: ServerProcess) -> None:
    """RFC 9112 section 9.6: where the config says so, everything is answered."""
    with Client(server, "finish") as client:
        client.send(b"GET /twolines.sh HTTP/1.1\r\nHost: a\r\n\r\n" * 2 + b"POST /cat.sh HTTP/1.1\r\nHost: a\r\n")
        client.send(b"Content-Length: 5\r\n\r\nhello")
        client.sock.shutdown(socket.SHUT_WR)
        assert [client.response().body for _ in range(3)] == [b"onetwo", b"onetwo", b"hello"]
        assert client.is_closed()
    for head in (b"Content-Length: 50\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"):
        with Client(server, "finish") as client:
            client.send(b"POST /cat.sh HTTP/1.1\r\nHost: a\r\n" + head)
            client.sock.shutdown(socket.SHUT_WR)
            with pytest.raises((h11.RemoteProtocolError, ConnectionResetError)):
                client.response()


# -- timeouts


def test_a_slow_header_is_408(server: ServerProcess) -> None:
    """RFC 9110 section 15.5.9."""
    with prompt(server, "quick", b"GET /hello.sh HT", PROMPT) as client:
        answer = client.response()
        assert (answer.status, answer.headers[b"connection"]) == (408, b"close")
        assert client.is_closed()


def test_a_client_that_says_nothing_is_let_go(server: ServerProcess) -> None:
    """RFC 9112 section 9.5: without an answer, for nothing was asked."""
    with Client(server, "quick") as client:
        assert client.is_closed()
    with prompt(server, "quick", b"GET /hello.sh HTTP/1.1\r\nHost: a\r\n\r\n", PROMPT) as client:
        assert client.response().body == b"hello"
        assert client.is_closed()


def test_a_slow_body_is_408(server: ServerProcess) -> None:
    """RFC 9110 section 15.5.9: also of a chunked body, and where the program waits for it."""
    for head in (b"Content-Length: 50\r\n\r\nhello", b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"):
        with prompt(server, "quick", b"POST /swallow.sh HTTP/1.1\r\nHost: a\r\n" + head, PROMPT) as client:
            assert client.response().status == 408
            assert client.is_closed()

    def is_cut_off() -> bool:
        """A response that has begun can't be turned into an error. It may begin too late on a busy machine."""
        head = b"POST /cat.sh HTTP/1.1\r\nHost: a\r\nContent-Length: 500000\r\n\r\n"
        with prompt(server, "quick", head + b"x" * 100_000, PROMPT) as client:
            try:
                answer = client.response()
            except (h11.RemoteProtocolError, ConnectionResetError):
                return True
        assert answer.status == 408
        return False

    wait_until(is_cut_off, "a response that begins in time")


def test_a_program_that_reads_slowly_is_not_the_clients_fault(server: ServerProcess) -> None:
    """RFC 9110 section 15.5.9: the time is the client's alone."""
    request = b"POST /lateread.sh HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n" + bytes(1_000_000)
    with prompt(server, "quick", request, PROMPT) as client:
        assert client.response().body == b"1000000\n"


# -- refusals


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /hello.sh HTTP/1.1\r\n\r\n", 400),
        (b"GET /hello.sh HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        (b"GET /hello.sh HTTP/1.1\r\nHost: a\r\nX : 1\r\n\r\n", 400),
        (b"GET /hello.sh HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n", 400),
        (b"GET /hello.sh HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
        (b"GET /hello.sh HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET /hello.sh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked, gzip\r\n\r\n", 400),
        (b"GET /hello.sh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"POST /cat.sh HTTP/1.0\r\n\r\n", 411),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET /hello.sh HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 33000 + b"\r\n\r\n", 431),
        (b"TRACE / HTTP/1.1\r\nHost: a\r\n\r\n", 501),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"\x16\x03\x01\x02\x00", 400),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_is_refused(server: ServerProcess, request_: bytes, status: int) -> None:
    """RFC 9110 section 15.5 and 15.6, RFC 9112 sections 3.2, 5.1, 5.2, 6.1, 6.3: answered, then closed."""
    with Client(server) as client:
        answer = client.send(request_).response()
        assert (answer.status, answer.headers[b"connection"]) == (status, b"close")
        assert client.is_closed()


def test_errors_are_html_for_browsers_and_text_for_others(client: Client, root: Path) -> None:
    """RFC 9110 section 12.5.1; and no error says anything about the file system."""
    answer = client.get("/plain.txt", "Accept: text/html,*/*;q=0.8")
    assert answer.headers[b"content-type"] == b"text/html; charset=utf-8"
    assert b"<h1>403 Forbidden</h1>" in answer.body
    answer = client.get("/plain.txt", "Accept: */*")
    assert answer.headers[b"content-type"] == b"text/plain; charset=utf-8"
    assert answer.body == b"403 Forbidden\n"
    assert str(root).encode() not in answer.body


def test_a_program_that_can_not_be_started(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """RFC 9110 section 15.6.1."""
    root = write_programs(tmp_path / "root", {"bad.sh": "#!/no/such/interpreter\n", "hello.sh": PROGRAMS["hello.sh"]})
    server = serve(pool() + cgi_listener(root=root, max_programs=1))
    with Client(server) as client:
        for _ in range(3):  # the place is given back
            assert client.get("/bad.sh").status == 500
        assert client.get("/hello.sh").body == b"hello"
    server.wait_for_line(r"can't start .*/bad.sh: its interpreter /no/such/interpreter .line 1, .+#!.+ does not exist")
