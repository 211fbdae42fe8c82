"""Connections through a proxy: a header in all its pieces, real HAProxy, and whoever is not to be believed."""

from __future__ import annotations

import re
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.haproxy import HeaderProxy
from tests.helpers.http import cgi_listener, write_programs
from tests.helpers.plugins import ask, listener, nothing_to_read, prompt_client, served, settle, turns
from tests.helpers.server import TIMEOUT, ServerProcess, receive_all, receive_exactly

pytestmark = pytest.mark.server

V1 = b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n"
V2 = bytes.fromhex("0d0a0d0a000d0a515549540a 21 11 0013 c0000207 c6336401 c350 01bb 040004 00000000")
LOCAL = bytes.fromhex("0d0a0d0a000d0a515549540a 20 00 0000")
TOLD = b"192.0.2.7 50000 198.51.100.1 443\n"

MODULE = """
class Who(Tells):
    # Tells the client's address, then echoes.
    @hookimpl
    def on_connection_init(self, conn):
        conn.log.info("here")
        conn.send("{} {} {} {}\\n".format(*conn.peer, *conn.local).encode())

    @hookimpl
    def on_readable(self, conn):
        conn.send(conn.recv())


class Program(Tells):
    # What is behind the header is a program's input.
    @hookimpl
    def on_connection_init(self, conn):
        conn.spawn(["/bin/cat"], stdin=conn, stdout=conn)

    @hookimpl
    def on_child_exit(self, child, conn):
        if conn is not None:
            conn.close("program ended")


class Counts:
    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        conn.send(b"%d" % conn.bytes_in)


class Drained:
    @hookimpl
    def on_drain(self, conn):
        conn.close("drained")

    @hookimpl
    def on_connection_init(self, conn):
        conn.send(b"%d" % conn.draining)
"""

SOON = 0.3  # seconds
TRUSTED: dict[str, Any] = {"proxy_protocol": True, "trusted_proxies": ["127.0.0.1"]}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("certificate") / "server.pem"
    request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -keyout"
    command = f"{request} {file} -out {file.with_suffix('.crt')}"
    subprocess.run(["/bin/sh", "-c", command], check=True, capture_output=True)
    with file.open("ab") as both:
        both.write(file.with_suffix(".crt").read_bytes())
    return file


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificate: Path) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("proxied")
    root = write_programs(folder / "root", {"env.sh": "printf 'Content-Type: text/plain\\n\\n'; exec env"})
    listeners = [
        listener("who", **TRUSTED),
        listener("six", "who", bind="[::1]:0", proxy_protocol=True, trusted_proxies=["::1"]),
        listener("unix", "who", bind="unix:who.sock", proxy_protocol=True),
        listener("elsewhere", "who", proxy_protocol=True, trusted_proxies=["192.0.2.0/24", "2001:db8::/32"]),
        listener("soon", "who", proxy_header_timeout=SOON, **TRUSTED),
        listener("never", "who", proxy_header_timeout=0, **TRUSTED),
        listener("program", **TRUSTED),
        listener("counts", **TRUSTED),
        listener("ping"),
        listener("tls", "who", **TRUSTED) + f'[listeners.tls.tls]\ncertificate = "{certificate}"\n',
        cgi_listener("cgi", keys='proxy_protocol = true\ntrusted_proxies = ["127.0.0.1"]', root=root),
    ]
    with served(folder, MODULE, *listeners) as one:
        yield one


def told(sock: socket.socket, line: bytes = TOLD) -> None:
    assert receive_exactly(sock, len(line)) == line


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
@pytest.mark.parametrize("listener", ["who", "unix"])
def test_the_client_is_the_one_that_the_proxy_names(server: ServerProcess, listener: str, header: bytes) -> None:
    with server.connect(listener) as sock:
        sock.sendall(header)
        told(sock)
        assert ask(sock, b"hello") == b"hello"


def test_over_ipv6(server: ServerProcess) -> None:
    with server.connect("six") as sock:
        sock.sendall(b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 443\r\n")
        told(sock, b"2001:db8::7 50000 2001:db8::1 443\n")


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"], ids=["LOCAL", "UNKNOWN"])
def test_a_proxy_that_speaks_for_itself(server: ServerProcess, header: bytes) -> None:
    with server.connect("who") as sock:
        sock.sendall(header + b"hello")
        told(sock, "{} {} {} {}\n".format(*sock.getsockname(), *sock.getpeername()).encode() + b"hello")


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
def test_a_header_in_two_pieces(server: ServerProcess, header: bytes) -> None:
    with ExitStack() as stack:
        socks = [stack.enter_context(server.connect("who")) for _ in range(1, len(header))]
        for end, sock in enumerate(socks, 1):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.sendall(header[:end])
        turns(server)  # by now they have been read
        assert all(map(nothing_to_read, socks))
        for end, sock in enumerate(socks, 1):
            sock.sendall(header[end:] + b"hello")
        for sock in socks:
            told(sock, TOLD + b"hello")


def test_a_header_that_comes_byte_by_byte_and_is_long(server: ServerProcess) -> None:
    long = V2[:14] + (12 + 60000).to_bytes(2, "big") + V2[16:28] + bytes(60000)
    with server.connect("who") as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in long[:28]:
            sock.sendall(bytes([byte]))
        sock.sendall(long[28:] + b"hello")
        told(sock, TOLD + b"hello")


def test_what_is_behind_the_header_is_not_lost_though_nothing_follows(server: ServerProcess) -> None:
    behind = bytes(range(256)) * 4096
    with server.connect("who") as sock:
        sock.sendall(V1 + behind[:100])
        told(sock, TOLD + behind[:100])
        sock.setblocking(True)
        sock.sendall(behind[100:200_000])
        assert receive_exactly(sock, 199_900) == behind[100:200_000]
    assert server.exchange("who", V2 + behind[:200_000]) == TOLD + behind[:200_000]
    assert server.exchange("program", V1 + behind[:50_000]) == behind[:50_000]


def test_the_header_is_no_byte_of_the_client(server: ServerProcess) -> None:
    with server.connect("counts") as sock:
        sock.sendall(V2 + b"hello")
        assert sock.recv(10) == b"5"


@pytest.mark.parametrize(
    "sent",
    [b"GET / HTTP/1.1\r\n\r\n", b"PROXY TCP4 oops\r\n", V2[:12] + b"\x11", b"\x16\x03\x01\x02\x00", b"\0" * 5000],
)
def test_what_is_no_header_ends_the_connection_and_no_plugin_hears_of_it(server: ServerProcess, sent: bytes) -> None:
    settle(server)  # what was logged before has been read
    after = len(server.lines)
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        server.exchange("who", sent, finish=False)
    quiet(server, after)


def quiet(server: ServerProcess, after: int) -> None:
    """No plugin was called for what came before."""
    with server.connect("who") as sock:
        sock.sendall(V1)
        told(sock)
        server.wait_for_line(r"who #\d+ 192\.0\.2\.7:50000: here", after=after)
    assert len([line for line in server.lines[after:] if " here" in line]) == 1
    assert not [line for line in server.lines[after:] if "closed: no PROXY header" in line]


def test_a_peer_that_is_not_trusted_is_refused(server: ServerProcess) -> None:
    for sent in (b"", V1):
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # as early as in connect(2)
            server.exchange("elsewhere", sent, finish=False)
    server.wait_for_line(
        r"elsewhere: PROXY protocol: connections are refused \(number 1 in this worker, from 127\.0\.0\.1:\d+\): "
        r"it is none of trusted_proxies"
    )
    assert len([line for line in server.lines if "elsewhere: PROXY" in line]) == 1, "told once a minute"


def test_a_silent_client_has_a_time_limit(server: ServerProcess) -> None:
    with (
        prompt_client(server, "soon", V1[:-1], SOON) as slow,
        server.connect("soon") as silent,
        server.connect("never") as patient,
    ):
        for sock in (silent, slow):
            with pytest.raises(ConnectionResetError):
                receive_all(sock)
        server.wait_for_line(r"soon: PROXY protocol: .* no whole header within proxy_header_timeout")
        assert nothing_to_read(patient)
        patient.sendall(V1)
        told(patient)
        assert int(turns(server)) < 100


def test_a_client_that_only_connects_and_closes_is_not_logged(server: ServerProcess) -> None:
    settle(server)
    after = len(server.lines)
    for sent in (b"", V1[:10]):
        assert server.exchange("who", sent) == b""
    quiet(server, after)
    assert not [line for line in server.lines[after:] if "PROXY protocol" in line]


def test_many_that_say_nothing_hold_up_nobody(server: ServerProcess) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            stack.enter_context(server.connect("never")).sendall(V1[:20])
        for _ in range(20):
            assert server.exchange("who", V1 + b"hello") == TOLD + b"hello"
        assert turns(server) < 100


@pytest.mark.parametrize("header", [V1, V2], ids=["v1", "v2"])
def test_first_the_header_then_tls(server: ServerProcess, header: bytes) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with server.connect("tls") as raw:
        raw.sendall(header)
        with context.wrap_socket(raw) as sock:
            told(sock)
            assert ask(sock, b"hello") == b"hello"
    with server.connect("tls") as raw, pytest.raises((ssl.SSLError, ConnectionError)):
        context.wrap_socket(raw)


def test_programs_of_cgi_are_told_of_the_client(server: ServerProcess) -> None:
    request = b"GET /env.sh HTTP/1.0\r\nHost: www.example\r\n\r\n"
    lines = server.exchange("cgi", V2 + request, finish=False).split(b"\n")
    assert {b"REMOTE_ADDR=192.0.2.7", b"REMOTE_PORT=50000", b"SERVER_PORT=443"} <= set(lines)


def test_a_client_known_only_while_the_worker_drains_is_told_so(tmp_path: Path) -> None:
    with served(tmp_path, MODULE, listener("drained", **TRUSTED)) as server, server.connect("drained") as sock:
        sock.sendall(V1[:10])
        with server.connect("drained") as other:
            other.sendall(V1)
            assert other.recv(1) == b"0"
            server.signal(signal.SIGTERM)
            assert receive_all(other) == b""  # the worker drains
        sock.sendall(V1[10:])
        assert receive_all(sock) == b"1"
        assert server.wait() == 0


# -- HAProxy


@pytest.fixture(scope="module")
def haproxy(tmp_path_factory: pytest.TempPathFactory, server: ServerProcess) -> Iterator[HeaderProxy]:
    with closing(HeaderProxy(tmp_path_factory.mktemp("haproxy"), server, ("who", "cgi"))) as one:
        yield one


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_behind_haproxy(haproxy: HeaderProxy, option: str) -> None:
    with socket.create_connection(("127.0.0.1", haproxy.ports["who", option]), TIMEOUT) as sock:
        expected = "{} {} {} {}\n".format(*sock.getsockname(), *sock.getpeername()).encode()
        sock.sendall(b"hello" * 20000)
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == expected + b"hello" * 20000


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_curl_haproxy_and_cgi(haproxy: HeaderProxy, option: str) -> None:
    url = f"http://127.0.0.1:{haproxy.ports['cgi', option]}/env.sh"
    ran = subprocess.run(
        ["curl", "-sS", "--interface", "127.0.0.9", "-w", "port %{local_port}\n", url, url],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    ports = re.findall(r"^port (\d+)", ran.stdout, re.MULTILINE)
    assert re.findall(r"^REMOTE_ADDR=(.*)", ran.stdout, re.MULTILINE) == ["127.0.0.9"] * 2
    assert re.findall(r"^REMOTE_PORT=(.*)", ran.stdout, re.MULTILINE) == ports
