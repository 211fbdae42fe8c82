"""Uncaught exceptions go to the log, and never wait for a reader of standard error."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poolsrv.core import uncaught
from tests.core.test_logs import fill
from tests.helpers.certificates import Certificates
from tests.helpers.plugins import ask, listener, served
from tests.helpers.puppet import wait_listening
from tests.helpers.server import TIMEOUT, ServerProcess, receive_all
from tests.helpers.server_mark import server_starts
from tests.worker.test_tls import tls

RAISES = """
class Raises:
    # The ways in which Python has no caller to raise to.
    @hookimpl
    def on_readable(self, conn):
        import logging, warnings

        word = (conn.recv_line() or b"").strip()
        if word == b"destructor":
            Falls()
        elif word == b"thread":
            thread = threading.Thread(target=lambda: 1 / 0, name="mine")
            thread.start()
            thread.join()
        elif word == b"format":
            logging.getLogger("mine").info("%d", "no number")
        elif word == b"warning":
            warnings.warn("beware", UserWarning)
        conn.send(b"done\\n")


def raises(self):
    raise ValueError("in a destructor")


Falls = type("Falls", (), {"__del__": raises})
"""


Serve = Callable[..., ServerProcess]


@pytest.mark.server
@pytest.mark.parametrize(
    ("word", "line"),
    [
        (b"destructor", r"ERROR +worker 0\[\d+\] exception ignored in <function raises"),
        (b"thread", r"ERROR +worker 0\[\d+\] thread mine has ended by an exception"),
        (b"format", r"WARNING +worker 0\[\d+\] a line of the logger mine can't be formatted: TypeError"),
        (b"warning", r"WARNING +worker 0\[\d+\] .*UserWarning: beware"),
    ],
)
def test_it_is_in_the_log_of_a_worker(tmp_path: Path, word: bytes, line: str) -> None:
    with served(tmp_path, RAISES, listener("raises")) as server:
        with server.connect("raises") as sock:
            assert ask(sock, word) == b"done"
        server.wait_for_line(line)
        assert server.stop() == 0


def in_a_process(script: str) -> subprocess.CompletedProcess[str]:
    setup = "import sys, threading\nfrom poolsrv.core import logs, uncaught\nlogs.set_up()\n"
    return subprocess.run([sys.executable, "-c", setup + script], capture_output=True, text=True, timeout=TIMEOUT)


def test_the_end_of_a_process_is_in_the_log() -> None:
    done = in_a_process("raise ValueError('the end')")
    first, *_, last = done.stderr.splitlines()
    assert "CRITICAL poolsrv[" in first
    assert last == "ValueError: the end"


def test_many_are_counted() -> None:
    done = in_a_process(
        "class Falls:\n    def __del__(self): raise ValueError('falls')\n"
        "for _ in range(1000): Falls()\n"
        "uncaught.SPAN = 0.0\nFalls()\n"
    )
    assert done.stderr.count("ValueError: falls") == uncaught.MOST + 1
    assert f"exceptions that nobody has caught, and that are not shown: {1000 - uncaught.MOST}" in done.stderr


def test_what_can_not_be_shown_ends_nothing() -> None:
    done = in_a_process(
        "class Falls:\n    def __del__(self): raise ValueError('falls')\n    def __repr__(self): raise OSError\n"
        "sys.unraisablehook(type('Args', (), dict(exc_type=ValueError, exc_value=None, exc_traceback=None,"
        " err_msg=None, object=Falls()))())\n"
    )
    assert "exception ignored in a Falls" in done.stderr


def test_a_system_exit_of_a_thread_is_none() -> None:
    assert in_a_process("t = threading.Thread(target=sys.exit)\nt.start()\nt.join()\n").stderr == ""


# --- a standard error that another user has made, without a reader


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have a pipe that it may not open once more")
def test_a_full_pipe_of_another_users_holds_up_nothing() -> None:
    reader, writer = os.pipe()
    script = (
        "import logging, os\nos.setuid(65534)\nlogs.set_up()\n"
        "for _ in range(3000): logging.getLogger('x').info('x' * 100)\n"
        "print('done')\n"
    )
    setup = "from poolsrv.core import logs\n"
    try:
        done = subprocess.run(
            [sys.executable, "-c", setup + script], stdout=subprocess.PIPE, stderr=writer, timeout=TIMEOUT, text=True
        )
        assert done.stdout == "done\n"
        assert os.get_blocking(writer)
    finally:
        os.close(reader)
        os.close(writer)


# --- TLS


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("pki"))


def hello(name: bytes) -> bytes:
    """The first message of a client that asks for this host (SNI)."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    stand_in = ("a" * len(name)).encode()
    client = context.wrap_bio(incoming, outgoing, server_hostname=stand_in.decode())
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    message = outgoing.read()
    head = b"\0" + len(name).to_bytes(2, "big")  # of a host_name, RFC 6066
    assert message.count(head + stand_in) == 1
    return message.replace(head + stand_in, head + name)


NAMES = [
    b"m\xc3\xbcnchen.example",
    b"\xff" * 20,
    b"a\nb.example",
    b"xn--\x80",
    b"\x1b[2J",
    b"a..b",
    b".",
    b"*.wild.example",
]


def speaks(sock: socket.socket) -> bool:
    """Whether a TLS client gets an answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(sock, server_hostname="localhost") as wrapped:
        wrapped.sendall(b"hello")
        return wrapped.recv(5) == b"hello"


@pytest.mark.server
def test_a_server_name_of_any_bytes_ends_at_most_its_handshake(serve: Serve, pki: Certificates) -> None:
    server = serve("[pool]\nworkers = 1\n" + tls(pki.folder, "echo"))
    for name in NAMES:
        with server.connect("echo") as sock:
            sock.sendall(hello(name))
            assert sock.recv(1) in (b"\x15", b"\x16")  # an alert, or the server's part of the handshake
    server.wait_for_line(r"a TLS handshake has failed \(number 1 in this worker, .*: the server name is not in ASCII$")
    with server.connect("echo") as sock:
        assert speaks(sock)
    assert server.stop() == 0
    assert not [line for line in server.lines if "Traceback" in line or "UnicodeDecodeError" in line]


@pytest.mark.server
def test_odd_server_names_hang_nobody_while_nobody_reads_the_log(tmp_path: Path, pki: Certificates) -> None:
    (tmp_path / "a.toml").write_text("[pool]\nworkers = 2\n" + tls(pki.folder, "echo").replace("127.0.0.1:0", "unix:s"))
    reader, writer = os.pipe()
    server_starts()
    process = subprocess.Popen([sys.executable, "-m", "poolsrv", "--config", "a.toml"], cwd=tmp_path, stderr=writer)
    try:
        wait_listening(tmp_path / "s")
        with connect(tmp_path / "s") as sock:
            assert speaks(sock)
        fill(writer, "pipe")
        for _ in range(60):
            with connect(tmp_path / "s") as sock:
                sock.sendall(hello(b"m\xc3\xbcnchen.example"))
                assert receive_all(sock)[:1] == b"\x15"
        with connect(tmp_path / "s") as sock:
            assert speaks(sock)
        process.terminate()
        assert process.wait(TIMEOUT) == 0
    finally:
        process.kill()
        process.wait()
        os.close(reader)
        os.close(writer)


def connect(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(TIMEOUT)
    sock.connect(str(path))
    return sock
