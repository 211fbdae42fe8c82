"""TLS, with openssl, curl, and a client that has every byte in its own hands."""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.helpers.certificates import Certificates
from tests.helpers.http import write_programs
from tests.helpers.plugins import closed, served, settle
from tests.helpers.server import TIMEOUT, ServerProcess, receive_all

pytestmark = pytest.mark.server

Serve = Callable[..., ServerProcess]

MODULE = """
class Agreed(Tells):
    # Says what was agreed on, then echoes.
    @hookimpl
    def on_connection_init(self, conn):
        tls = conn.tls
        conn.send(f"{tls.version} {tls.cipher} {tls.server_name} {tls.alpn} {tls.client_subject}\\n".encode())

    @hookimpl
    def on_readable(self, conn):
        conn.send(conn.recv())


class Back(Tells):
    # Echoes.
    @hookimpl
    def on_readable(self, conn):
        conn.send(conn.recv())


class Proxy(Tells):
    # To a server without TLS, and back.
    @hookimpl
    def on_connection_init(self, conn):
        conn.state = conn.connect("unix:plain.sock", on_readable=lambda stream: None)
        conn.relay_to(conn.state)
        conn.state.relay_to(conn)


class Cat(Tells):
    @hookimpl
    def on_connection_init(self, conn):
        conn.spawn(["/bin/sh", "-c", "cat; echo end; echo error >&2"], stdin=conn, stdout=conn, stderr=conn)

    @hookimpl
    def on_child_exit(self, child, conn):
        if conn is not None:
            conn.close("program ended")


class Bits(Tells):
    # Takes a byte at a time, in turns of the loop.
    @hookimpl
    def on_readable(self, conn):
        if conn.eof:
            conn.send(conn.recv())
        else:
            conn.pause_reading()
            conn.send(conn.recv(1))
            conn.call_later(0.0, conn.resume_reading)


class Big(Tells):
    # As many bytes as the line says.
    @hookimpl
    def on_readable(self, conn):
        line = conn.recv_line()
        if line is not None:
            conn.send(b"x" * int(line))
            conn.close("all said")
"""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def tls(folder: Path, handler: str, name: str = "", extra: str = "") -> str:
    """A listener with TLS."""
    name = name or handler
    return (
        f'[listeners.{name}]\nbind = "127.0.0.1:0"\nhandler = "{handler}"\n[listeners.{name}.tls]\n'
        f'certificate = "{folder}/server.pem"\nkey = "{folder}/server.key"\n{extra}\n'
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> Iterator[ServerProcess]:
    at = certificates.folder
    sni = f"""
alpn = ["h2", "http/1.1"]
[[listeners.agreed.tls.sni]]
names = ["one.example"]
certificate = "{at}/one.pem"
key = "{at}/one.key"
[[listeners.agreed.tls.sni]]
names = ["*.wild.example"]
certificate = "{at}/wild.pem"
key = "{at}/wild.key"
"""
    listeners = [
        tls(at, "agreed", extra=sni),
        tls(at, "agreed", "required", f'client_ca = "{at}/ca.pem"'),
        tls(at, "agreed", "optional", f'client_ca = "{at}/ca.pem"\nclient_certificate = "optional"'),
        tls(at, "agreed", "new", 'minimum_version = "1.3"'),
        tls(at, "back", "soon", "handshake_timeout = 0.3"),
        *(tls(at, handler) for handler in ("back", "proxy", "cat", "bits", "big")),
        '[listeners.plain]\nbind = "unix:plain.sock"\nhandler = "back"\n',
        '[listeners.ping]\nbind = "127.0.0.1:0"\nhandler = "ping"\n',
    ]
    with served(tmp_path_factory.mktemp("tls"), MODULE, *listeners) as one:
        yield one


@pytest.fixture(autouse=True)
def quiet(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "server" in request.fixturenames:
        settle(request.getfixturevalue("server"))


class Peer:
    """A client that has its own hands on every record."""

    def __init__(self, server: ServerProcess, listener: str, name: str | None = None) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        self.sock = server.connect(listener)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.object = context.wrap_bio(self._in, self._out, server_hostname=name)

    def shake_hands(self, flush: bool = True) -> Peer:
        """Without ``flush`` what ends the handshake is not sent yet."""
        while True:
            try:
                self.object.do_handshake()
                break
            except ssl.SSLWantReadError:
                self.flush()
                self._receive()
        if flush:
            self.flush()
        return self

    def flush(self) -> None:
        self.sock.sendall(self._out.read())

    def send(self, data: bytes) -> Peer:
        """Sealed, and not sent before ``flush``."""
        self.object.write(data)
        return self

    def finish(self) -> Peer:
        """close_notify, sealed; without an end of the socket's stream."""
        with pytest.raises(ssl.SSLWantReadError):
            self.object.unwrap()
        return self

    def _receive(self) -> None:
        raw = self.sock.recv(65536)
        if raw:
            self._in.write(raw)
        else:
            self._in.write_eof()

    def receive(self, size: int) -> bytes:
        """So many bytes, or those before the end of the stream, which has to be a proper one."""
        data = b""
        while len(data) < size:
            try:
                piece = self.object.read(size - len(data))
            except ssl.SSLWantReadError:
                self._receive()
                continue
            except ssl.SSLZeroReturnError:
                break
            if not piece:
                break
            data += piece
        return data

    def exchange(self, data: bytes) -> bytes:
        """Send all, and receive as much, at the same time."""
        received, sealed, rest = [], b"", memoryview(data)
        missing = len(data)
        while missing:
            if not sealed and rest:
                self.object.write(rest[:65536])
                sealed, rest = self._out.read(), rest[65536:]
            readable, writable, _ = select.select([self.sock], [self.sock] if sealed else [], [], TIMEOUT)
            assert readable or writable, f"{missing} bytes do not come"
            if writable:
                sealed = sealed[self.sock.send(sealed, socket.MSG_DONTWAIT) :]
            if readable:
                self._receive()
                try:
                    while piece := self.object.read(65536):
                        received.append(piece)
                        missing -= len(piece)
                except ssl.SSLWantReadError:
                    pass
        return b"".join(received)

    def close(self) -> None:
        self.sock.close()

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def prompt_peer(server: ServerProcess, listener: str) -> Peer:
    """A client whose handshake was in time, as an echo shows. On a slow machine, another client tries again."""
    for _ in range(100):
        peer = Peer(server, listener)
        try:
            peer.shake_hands().send(b"hello").flush()
            if peer.receive(5) == b"hello":
                return peer
        except OSError:
            pass
        peer.close()
    raise AssertionError("a hundred handshakes have failed")


def s_client(server: ServerProcess, listener: str, *arguments: str, data: bytes = b"") -> tuple[bytes, str]:
    """What ``openssl s_client`` prints, and what it complains of."""
    address = server.addresses(listener)[0]
    done = subprocess.run(
        ["openssl", "s_client", "-connect", address, "-quiet", "-no_ign_eof", *arguments],
        input=data,
        capture_output=True,
        timeout=TIMEOUT,
    )
    return done.stdout, done.stderr.decode()


def first_line(server: ServerProcess, listener: str, *arguments: str) -> str:
    """What the server says has been agreed on, to ``openssl s_client``."""
    address = server.addresses(listener)[0]
    with subprocess.Popen(
        ["openssl", "s_client", "-connect", address, "-quiet", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        line = process.stdout.readline().decode().rstrip("\n")
        process.kill()
    return line


# --- what is agreed on


@pytest.mark.parametrize(("version", "name"), [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")])
def test_the_plugin_is_told_what_was_agreed_on(server: ServerProcess, version: str, name: str) -> None:
    line = first_line(server, "agreed", version, "-servername", "localhost", "-alpn", "http/1.1")
    assert re.fullmatch(rf"{name} [A-Z0-9_-]+ localhost http/1\.1 None", line)


def test_nothing_is_agreed_on_that_was_not_asked_for(server: ServerProcess) -> None:
    assert re.fullmatch(r"TLSv1\.3 \S+ None None None", first_line(server, "agreed", "-noservername"))


@pytest.mark.parametrize(
    ("listener", "arguments"),
    [
        ("agreed", ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]),
        ("agreed", ["-tls1", "-cipher", "ALL:@SECLEVEL=0"]),
        ("new", ["-tls1_2"]),
        ("agreed", ["-tls1_2", "-cipher", "AES128-SHA"]),  # no forward secrecy
        ("agreed", ["-tls1_2", "-cipher", "NULL:@SECLEVEL=0"]),
        ("agreed", ["-tls1_2", "-cipher", "aNULL:@SECLEVEL=0"]),
    ],
)
def test_what_is_too_old_or_too_weak_is_refused(server: ServerProcess, listener: str, arguments: list[str]) -> None:
    output, complaint = s_client(server, listener, *arguments)
    assert output == b""
    assert "alert" in complaint or "no cipher match" in complaint or "no protocols available" in complaint


@pytest.mark.parametrize(
    ("name", "subject"),
    [
        ("one.example", "one.example"),
        ("ONE.example", "one.example"),
        ("a.wild.example", "*.wild.example"),
        ("a.b.wild.example", "localhost"),
        ("wild.example", "localhost"),
        ("unknown.example", "localhost"),
    ],
)
def test_the_certificate_goes_by_the_name_that_is_asked_for(server: ServerProcess, name: str, subject: str) -> None:
    with Peer(server, "agreed", name).shake_hands() as peer:
        certificate = peer.object.getpeercert(binary_form=True)
    text = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-subject"], input=certificate, capture_output=True, check=True
    ).stdout.decode()
    assert text.strip().replace(" ", "").endswith(f"CN={subject}")


# --- clients' certificates


def client(at: Path, name: str) -> list[str]:
    return ["-cert", f"{at}/{name}.pem", "-key", f"{at}/{name}.key"]


@pytest.mark.parametrize("listener", ["required", "optional"])
def test_a_clients_certificate_is_verified_and_told(
    server: ServerProcess, certificates: Certificates, listener: str
) -> None:
    line = first_line(server, listener, *client(certificates.folder, "alice"))
    assert line.endswith(r" CN=alice,O=Example\, Inc.")


@pytest.mark.parametrize("name", ["mallory", "late", None])
@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_without_a_good_certificate_nobody_gets_in(
    server: ServerProcess, certificates: Certificates, name: str | None, version: str
) -> None:
    after = len(server.lines)
    shown = client(certificates.folder, name) if name else []
    output, complaint = s_client(server, "required", version, *shown, data=b"hello\n")
    assert output == b""
    assert "alert" in complaint or version == "-tls1_3"  # there the client is done before the alert comes
    assert not any("required #" in line for line in server.lines[after:])  # no plugin was called for it


def test_where_it_is_optional_none_will_do_but_no_bad_one(server: ServerProcess, certificates: Certificates) -> None:
    assert first_line(server, "optional").endswith(" None")
    output, _ = s_client(server, "optional", *client(certificates.folder, "mallory"), data=b"hello\n")
    assert output == b""


# --- what is no handshake


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
        b"\x16\x03\x01\xff\xff" + bytes(70000),
        b"\x80\x2e\x01\x00\x02" + bytes(44),  # SSL 2
        bytes(range(256)),
        b"\x15\x03\x03\x00\x02\x02\x28",
    ],
    ids=["http", "truncated", "too long", "sslv2", "garbage", "alert"],
)
def test_what_is_no_handshake_is_closed_and_hurts_nobody(server: ServerProcess, data: bytes) -> None:
    with server.connect("soon") as sock:
        try:
            sock.sendall(data)
            receive_all(sock)
        except ConnectionError:
            pass
    with Peer(server, "back").shake_hands() as peer:
        peer.send(b"hello").flush()
        assert peer.receive(5) == b"hello"


def test_a_client_that_never_shakes_hands_is_closed_and_others_are_served_meanwhile(server: ServerProcess) -> None:
    slow = [server.connect("soon") for _ in range(20)]
    with suppress(ConnectionError):  # on a busy machine it is too late even for that
        slow[0].sendall(b"\x16\x03\x01")
    with prompt_peer(server, "soon") as peer:
        for sock in slow:
            with sock:
                try:
                    assert receive_all(sock) == b""
                except ConnectionResetError:
                    pass
        peer.send(b"still").flush()
        assert peer.receive(5) == b"still"


def test_failed_handshakes_are_told_once_in_a_while(server: ServerProcess) -> None:
    for _ in range(3):
        with server.connect("big") as sock:
            sock.sendall(b"GET / HTTP/1.1\r\n\r\n")
            try:
                receive_all(sock)
            except ConnectionResetError:
                pass
    server.wait_for_line(
        r"big: a TLS handshake has failed \(number 1 in this worker, with 127\.0\.0\.1:\d+\): http request"
    )
    assert server.log.count("big: a TLS handshake has failed") == 1


# --- bytes


def test_bytes_that_come_with_the_end_of_the_handshake_are_not_forgotten(server: ServerProcess) -> None:
    """They are in OpenSSL's buffer, and the kernel has nothing more to tell."""
    with Peer(server, "back").shake_hands(flush=False) as peer:
        peer.send(b"hello").send(b" and more").flush()
        assert peer.receive(14) == b"hello and more"


def test_an_end_of_stream_that_comes_with_the_bytes_is_not_forgotten(server: ServerProcess) -> None:
    with Peer(server, "back").shake_hands(flush=False) as peer:
        peer.send(b"hello").finish().flush()
        assert peer.receive(100) == b"hello"
    settle(server)
    after = len(server.lines)
    with Peer(server, "back").shake_hands() as peer:
        peer.send(b"hello").finish().flush()
        assert peer.receive(100) == b"hello"
        assert peer.sock.recv(1) == b""
    assert closed(server, "back", after) == "eof"


def test_many_records_in_one_segment_are_taken_bit_by_bit(server: ServerProcess) -> None:
    data = bytes(range(256)) * 2
    with Peer(server, "bits").shake_hands() as peer:
        for at in range(0, len(data), 64):
            peer.send(data[at : at + 64])
        peer.finish().flush()
        assert peer.receive(len(data) + 1) == data


def test_a_client_that_closes_without_saying_so_is_a_reset(server: ServerProcess) -> None:
    """An attacker who cuts the stream short must not make it look whole."""
    after = len(server.lines)
    with Peer(server, "back").shake_hands() as peer:
        peer.send(b"hello").flush()
        assert peer.receive(5) == b"hello"
        peer.sock.shutdown(socket.SHUT_WR)
        assert closed(server, "back", after) == "reset"


def test_a_record_that_was_tampered_with_ends_the_connection(server: ServerProcess) -> None:
    after = len(server.lines)
    with Peer(server, "back").shake_hands() as peer:
        peer.sock.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
        assert closed(server, "back", after) == "reset"


@pytest.mark.parametrize("listener", ["back", "proxy", "cat"])
def test_megabytes_go_both_ways(server: ServerProcess, listener: str) -> None:
    data = bytes(range(256)) * 4 * 4096  # 4 MiB
    with Peer(server, listener).shake_hands() as peer:
        received = peer.exchange(data)
    assert len(received) == len(data)
    assert received == data


def test_a_client_that_reads_late_gets_all(server: ServerProcess) -> None:
    size = 5_000_000
    with Peer(server, "big").shake_hands() as peer:
        peer.send(b"%d\n" % size).flush()
        server.wait_for_line("ready")  # nothing is read meanwhile
        assert peer.receive(size + 1) == b"x" * size


def test_a_program_may_have_the_connection(server: ServerProcess) -> None:
    """As with inetd: its standard input, output and error are the client."""
    after = len(server.lines)
    with Peer(server, "cat").shake_hands() as peer:
        peer.send(b"hello\n").finish().flush()
        assert peer.receive(1000) == b"hello\nend\nerror\n"
    assert closed(server, "cat", after) == "program ended"


def test_what_programs_leave_running_goes_on_with_the_connection(
    serve: Serve, certificates: Certificates, tmp_path: Path
) -> None:
    root = write_programs(tmp_path / "bin", {"leaves.sh": "{ sleep 1.5; echo bye; } & echo hello"})
    text = tls(certificates.folder, "cgi", "line") + (f'[listeners.line.cgi]\nprotocol = "line"\nroot = "{root}"\n')
    server = serve(text)
    with Peer(server, "line").shake_hands() as peer:
        peer.send(b"leaves.sh\n").flush()
        assert peer.receive(100) == b"hello\nbye\n"
    assert server.stop() == 0


# --- the whole


def test_https_with_curl_and_a_reload_that_renews_the_certificate(
    serve: Serve, certificates: Certificates, tmp_path: Path
) -> None:
    root = write_programs(tmp_path / "bin", {"env.sh": "printf 'Content-Type: text/plain\\n\\n'; env"})
    for name in ("server.pem", "server.key"):
        shutil.copy(certificates.folder / name, tmp_path)
    server = serve(tls(tmp_path, "cgi", "www", 'alpn = ["http/1.1"]') + f'[listeners.www.cgi]\nroot = "{root}"\n')
    port = server.addresses("www")[0].rpartition(":")[2]

    def curl(authority: str) -> subprocess.CompletedProcess[str]:
        ca = certificates.folder / f"{authority}.pem"
        url = f"https://localhost:{port}/env.sh"
        command = ["curl", "-sS", "--ipv4", "--cacert", str(ca), url, url]
        return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)

    answer = curl("ca")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.count("HTTPS=on\n") == 2
    certificates.make("renewed", "localhost", authority="otherca")
    shutil.copy(certificates.folder / "renewed.pem", tmp_path / "server.pem")
    server.signal(signal.SIGHUP)
    server.wait_for_line("reload: .*tls.key: .* is not the key of the certificate in")  # its key has not come yet
    assert curl("ca").returncode == 0
    shutil.copy(certificates.folder / "renewed.key", tmp_path / "server.key")
    server.reload()
    assert curl("ca").returncode == 60
    assert curl("otherca").returncode == 0
    assert server.stop() == 0


def test_a_stop_in_the_middle_of_handshakes(serve: Serve, certificates: Certificates) -> None:
    server = serve("[pool]\nworkers = 1\ngraceful_timeout = 0.3\n" + tls(certificates.folder, "echo"))
    with server.connect("echo") as sock, Peer(server, "echo").shake_hands() as peer:
        sock.sendall(b"\x16\x03\x01")
        peer.send(b"hello").flush()
        assert peer.receive(5) == b"hello"
        assert server.stop() == 0
    assert "Traceback" not in server.log


def test_a_handshake_that_ends_while_the_worker_drains(certificates: Certificates, tmp_path: Path) -> None:
    """Its connection is told too that it is to finish."""
    module = """
class Drains:
    @hookimpl
    def on_connection_init(self, conn):
        conn.send(b"%d\\n" % conn.draining)

    @hookimpl
    def on_readable(self, conn):
        conn.recv()

    @hookimpl
    def on_drain(self, conn):
        conn.send(b"told\\n")
        conn.close()
"""
    with served(tmp_path, module, tls(certificates.folder, "drains")) as server:
        (worker,) = server.worker_pids()
        with Peer(server, "drains").shake_hands() as one, Peer(server, "drains").shake_hands(flush=False) as other:
            assert one.receive(2) == b"0\n"
            os.kill(worker, signal.SIGTERM)
            assert one.receive(5) == b"told\n"
            other.flush()
            assert other.receive(7) == b"1\ntold\n"
        assert server.stop() == 0


def test_without_tls_openssl_is_not_loaded(serve: Serve, certificates: Certificates) -> None:
    """It takes a while to import, and memory."""
    plain = '[listeners.echo]\nbind = "127.0.0.1:0"\nhandler = "echo"\n'
    loaded = []
    for text in (plain, tls(certificates.folder, "echo")):
        server = serve(text)
        loaded.append("libssl" in Path(f"/proc/{server.worker_pids()[0]}/maps").read_text())
        assert server.stop() == 0
    assert loaded == [False, True]


# --- the config

BOTH = 'certificate = "both.pem"\n'
MISTAKES = [  # each a table, and what is said of it
    ("", r"certificate: missing, expected"),
    ('certificate = "none.pem"', r'certificate: ".*none\.pem" can\'t be read: No such file or directory'),
    ('certificate = "server.pem"', r'certificate: no usable key in ".*server\.pem" .*, expected the private'),
    ('certificate = "server.pem"\nkey = "one.key"', r'key: ".*one\.key" is not the key of the certificate'),
    ('certificate = "server.pem"\nkey = "locked.key"', r'key: the key in ".*" is encrypted, expected one'),
    ('certificate = "server.key"\nkey = "server.key"', r'certificate: no certificate in ".*server\.key"'),
    (
        f'{BOTH}minimum_version = "1.1"',
        r'minimum_version: got "1\.1", expected "1\.2" or "1\.3"',
    ),
    (f'{BOTH}client_ca = "server.key"', r"client_ca: no certificates in PEM in"),
    (f'{BOTH}client_certificate = "optional"', r"client_certificate: nothing to verify it with"),
    (f'{BOTH}alpn = [""]', r'alpn\[0\]: got "", expected a name'),
    (f'{BOTH}alpm = ["x"]', r"alpm: unknown key \(did you mean \"alpn\"\?\), expected certificate, key"),
    (
        f'{BOTH}sni = [{{names = ["a.*"], certificate = "both.pem"}}]',
        r'sni\[0\]\.names\[0\]: got "a\.\*", expected a host name',
    ),
    (
        f'{BOTH}sni = [{{names = ["a.b", "A.b"], certificate = "both.pem"}}]',
        r'sni\[0\]\.names\[1\]: "A\.b" a second time',
    ),
]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, certificates: Certificates) -> str:
    """The log of a server whose config has them all, each at a listener of its own."""
    at = certificates.folder
    (at / "both.pem").write_text((at / "server.pem").read_text() + (at / "server.key").read_text())
    locked = ["openssl", "ec", "-in", "server.key", "-aes128", "-passout", "pass:secret", "-out", "locked.key"]
    subprocess.run(locked, cwd=at, capture_output=True, check=True)
    text = ""
    for number, (table, _) in enumerate(MISTAKES):
        table = re.sub(r'"(\w+\.(?:pem|key))"', rf'"{at}/\1"', table)
        text += f'[listeners.a{number}]\nbind = ":0"\nhandler = "echo"\n[listeners.a{number}.tls]\n{table}\n'
    with ServerProcess(text, tmp_path_factory.mktemp("mistakes")) as server:
        assert server.wait() == 2
        assert "Traceback" not in server.log
        return server.log


@pytest.mark.parametrize("number", range(len(MISTAKES)), ids=[table for table, _ in MISTAKES])
def test_mistakes_in_the_table(told: str, number: int) -> None:
    (line,) = [line for line in told.splitlines() if f": listeners.a{number}.tls." in line]
    assert re.search(rf"poolsrv\.toml: listeners\.a{number}\.tls\.{MISTAKES[number][1]}", line)


def test_a_plugin_can_not_be_called_tls(serve: Serve) -> None:
    server = serve('[listeners.a]\nbind = ":0"\nhandler = "tls"\n', ready=False)
    assert server.wait() == 2
    assert "a plugin can't be named \"tls\": that is one of a listener's own keys" in server.log
