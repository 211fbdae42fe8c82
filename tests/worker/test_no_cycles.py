"""A connection that has ended is freed at once, whatever a plugin has done with it: nothing of the engine keeps it, and
there is no reference cycle that would have to wait for the garbage collector."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.helpers.certificates import NEW_KEY
from tests.helpers.plugins import listener, reset, served
from tests.helpers.server import ServerProcess, receive_all, wait_until

pytestmark = pytest.mark.server

MODULE = """
import gc, weakref


class Leaves:
    @hookimpl
    def on_worker_start(self, worker):
        gc.disable()
        self.worker = worker
        self.ways = weakref.WeakKeyDictionary()

    @hookimpl
    def on_readable(self, conn):
        line = conn.recv_line()
        if line == b"left\\n":
            conn.send(" ".join(sorted(self.ways.values())).encode())
            conn.close()
        elif line is not None:
            self.ways[conn] = way = line.decode().strip()
            getattr(self, way)(conn)
        elif conn.eof:
            conn.close()

    def plain(self, conn):
        conn.send(b"x")
        conn.close()

    def reset(self, conn):
        conn.abort()

    def client_leaves(self, conn):
        conn.send(b"leave")

    client_resets = client_leaves

    def pipe_aborted(self, conn):
        ours, theirs = os.pipe()
        os.close(theirs)
        conn.open_stream(ours).abort()
        conn.close()

    def pipe_with_its_connection(self, conn):
        ours, theirs = os.pipe()
        conn.open_stream(ours)
        conn.close()
        os.close(theirs)

    def pipe_read(self, conn):
        ours, theirs = os.pipe()
        os.write(theirs, b"x")
        os.close(theirs)
        self.read(conn, conn.open_stream(ours))

    def read(self, conn, stream):
        stream.on_readable = self.reader(conn)

    def reader(self, conn):
        def on_readable(stream):
            stream.recv()
            if stream.eof:
                conn.close()
        return on_readable

    def pipe_written(self, conn):
        ours, theirs = os.pipe()
        stream = conn.open_stream(theirs)
        stream.send(b"x")
        stream.send_eof()
        os.close(ours)
        conn.close()

    def socket_read(self, conn):
        ours, theirs = socket.socketpair()
        theirs.close()
        self.read(conn, conn.open_stream(ours.detach()))

    def relayed(self, conn):
        ours, theirs = os.pipe()
        os.write(theirs, b"x")
        os.close(theirs)
        stream = conn.open_stream(ours)
        stream.relay_to(conn, done=lambda count: conn.close())

    def connected(self, conn):
        self.connect(conn).send(b"plain\\n")

    def reset_by_the_other_side(self, conn):
        self.connect(conn).send(b"reset\\n")

    def connect(self, conn):
        host, port = conn.local
        ended = lambda stream, error: conn.close()
        return conn.connect(f"{host}:{port}", on_readable=self.reader(conn), on_close=ended)

    def refused(self, conn):
        conn.connect("127.0.0.1:1", on_readable=lambda stream: None, on_close=lambda stream, error: conn.close())

    def program(self, conn):
        child = conn.spawn([sys.executable, "-c", "print(1)"], stdin=PIPE, stdout=PIPE)
        child.stdin.close()
        self.read(conn, child.stdout)

    def program_at_the_connection(self, conn):
        conn.spawn(["/bin/echo", "x"], stdout=conn)

    @hookimpl
    def on_child_exit(self, child, conn):
        if conn is not None:
            conn.close()

    def file(self, conn):
        fd = os.open(__file__, os.O_RDONLY)
        conn.send_file(fd, 0, 10, lambda count: (os.close(fd), conn.close()))

    def later(self, conn):
        conn.call_later(0.001, conn.close)

    def never(self, conn):
        conn.call_later(600.0, conn.close)
        conn.close()

    def soon(self, conn):
        conn.call_soon(conn.close)

    def blocking(self, conn):
        conn.run_blocking(sum, (1, 2), done=lambda result: conn.close())

    def held(self, conn):
        conn.hold()
        conn.close()
        conn.release()

    def raises(self, conn):
        raise RuntimeError("on purpose")

    def kept(self, conn):
        self.one = conn
        conn.close()
"""
WAYS = (
    *("plain", "reset", "client_leaves", "client_resets", "pipe_aborted", "pipe_with_its_connection", "pipe_read"),
    *("pipe_written", "socket_read", "relayed", "connected", "reset_by_the_other_side", "refused", "program"),
    *("program_at_the_connection", "file", "later", "never", "soon", "blocking", "held", "raises"),
)
ANSWERS = {"plain": b"x", "relayed": b"x", "program_at_the_connection": b"x\n", "file": b"\nimport er"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    at = tmp_path_factory.mktemp("server")
    command = ["openssl", "req", "-x509", *NEW_KEY]
    files = ["-subj", "/CN=localhost", "-keyout", f"{at}/key.pem", "-out", f"{at}/certificate.pem"]
    subprocess.run([*command, *files], check=True, capture_output=True)
    tls = f'[listeners.tls.tls]\ncertificate = "{at}/certificate.pem"\nkey = "{at}/key.pem"\n'
    with served(at, MODULE, listener("tcp", "leaves") + listener("tls", "leaves") + tls) as running:
        yield running


def ask(server: ServerProcess, name: str, way: str) -> bytes:
    with server.connect(name) as sock, suppress(ConnectionResetError):
        peer = _over_tls(sock) if name == "tls" else sock
        with peer:
            peer.sendall(f"{way}\n".encode())
            if not way.startswith("client"):
                return receive_all(peer)
            assert peer.recv(100) == b"leave"
            if way == "client_resets":
                reset(peer)
    return b""


def _over_tls(sock: socket.socket) -> ssl.SSLSocket:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(sock)


@pytest.mark.parametrize("name", ["tcp", "tls"])
def test_nothing_of_a_connection_is_left(server: ServerProcess, name: str) -> None:
    answers = {way: ask(server, name, way) for way in (*WAYS, "kept")}
    assert {way: answer for way, answer in answers.items() if answer} == ANSWERS
    wait_until(
        lambda: server.log.count("Traceback") == server.log.count("RuntimeError: on purpose") > 0, "one fault, no more"
    )
    left: list[str] = []

    def only_one_is_left() -> bool:
        left[:] = ask(server, name, "left").decode().split()
        return left == ["kept"]

    try:
        wait_until(only_one_is_left, "the end of connections")
    except AssertionError:
        raise AssertionError(f"left: {left}") from None
