"""Programs of the cgi plugin that hand their connection to another process and end: it goes on until the last copy is
closed, as with inetd and tcpserver."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.certificates import Certificates
from tests.helpers.http import Client, cgi_listener, pool, write_programs
from tests.helpers.plugins import prompt_program, reset
from tests.helpers.server import ServerProcess, is_alive, receive_all, receive_line, wait_until
from tests.worker.test_tls import Peer, tls

pytestmark = pytest.mark.server

ANSWER = 'read line; echo "$$ got $line"'
PROGRAMS = {
    "child.sh": f"exec 3<&0; ({ANSWER}) <&3 3<&- & echo first",
    "session.sh": f"exec 3<&0; setsid sh -c '{ANSWER}' <&3 3<&- & echo first",
    "twice.sh": f"exec 3<&0; ( ( sleep 0.2; {ANSWER} ) <&3 & ) & echo first",
    "chain.sh": "exec 3<&0; echo first; (sleep 0.2; echo second; (sleep 0.2; echo third; cat) <&3 &) &",
    # One that closes the connection and lives on.
    "closes.py": "#!/usr/bin/env python3\n"
    "import os, time\nos.write(1, b'first\\n')\n"
    "if os.fork():\n    os._exit(0)\n"
    "os.setsid(); line = os.read(0, 100); os.write(1, b'%d got ' % os.getpid() + line)\n"
    "for fd in (0, 1, 2): os.close(fd)\ntime.sleep(60)\n",
    # The copy has another number.
    "other.py": "#!/usr/bin/env python3\n"
    "import os\nos.write(1, b'first\\n'); fd = os.dup(0)\n"
    "if os.fork():\n    os._exit(0)\n"
    "for one in (0, 1): os.close(one)\n"
    "line = os.read(fd, 100); os.write(fd, b'%d got ' % os.getpid() + line)\n",
    # Tells its number and stays.
    "stays.sh": "(echo $(exec sh -c 'echo $PPID'); exec sleep 60) & exec sleep 0.1",
    "stayssession.sh": "setsid sh -c 'echo $$; exec sleep 60' & exec sleep 0.1",
    "line.sh": "echo first; (sleep 0.3; echo second) &",
    "nph-line.sh": "printf 'HTTP/1.0 200 OK\\r\\n\\r\\nfirst\\n'; (sleep 0.3; echo second) &",
    "file.sh": "(exec >&- <&-; sleep 60) & echo first",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_programs(tmp_path_factory.mktemp("root"), PROGRAMS)


def inetd(root: Path, program: str, name: str = "", bind: str = "127.0.0.1:0", **options: Any) -> str:
    name = name or program.partition(".")[0]
    return cgi_listener(name, bind=bind, protocol="inetd", program=[str(root / program)], **options)


CONVERSE = ["child.sh", "session.sh", "twice.sh", "closes.py", "other.py"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[ServerProcess]:
    config = pool() + "".join(inetd(root, program) for program in (*CONVERSE, "chain.sh", "stays.sh", "file.sh"))
    config += inetd(root, "child.sh", "path", bind="unix:path.sock")
    config += inetd(root, "stays.sh", "timed", timeout=1.0) + inetd(
        root, "stayssession.sh", "timedsession", timeout=1.0
    )
    config += inetd(root, "child.sh", "one", max_programs=1)
    config += cgi_listener("line", protocol="line", root=root)
    config += cgi_listener("nph", root=root, nph=["*/nph-*"])
    certificates = Certificates(tmp_path_factory.mktemp("certificates")).folder
    for program in ("child.sh", "stays.sh"):
        name = "tls" + program.partition(".")[0]
        config += tls(certificates, "cgi", name)
        config += f'[listeners.{name}.cgi]\nprotocol = "inetd"\nprogram = ["{root / program}"]\n'
    with ServerProcess(config, tmp_path_factory.mktemp("server")) as running:
        yield running.wait_ready()


def wait_for_end(pid: int) -> None:
    wait_until(lambda: not is_alive(pid), "the process's end")


@pytest.mark.parametrize("listener", [*(program.partition(".")[0] for program in CONVERSE), "path"])
def test_the_other_process_goes_on(server: ServerProcess, listener: str) -> None:
    with server.connect(listener) as sock:
        assert receive_line(sock) == b"first\n"
        time.sleep(0.5)  # the program itself has ended long since
        sock.sendall(b"hello\n")
        pid, _, rest = receive_all(sock).partition(b" ")
        assert rest == b"got hello\n"
    if listener == "closes":
        os.kill(int(pid), signal.SIGKILL)


def test_from_one_to_the_next(server: ServerProcess) -> None:
    with server.connect("chain") as sock:
        sock.sendall(b"hello\n")
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b"first\nsecond\nthird\nhello\n"


def test_what_has_not_the_connection_holds_nothing(server: ServerProcess) -> None:
    with server.connect("file") as sock:
        assert receive_all(sock) == b"first\n"


def test_line_and_nph(server: ServerProcess) -> None:
    assert server.exchange("line", b"line.sh\n") == b"first\nsecond\n"
    with Client(server, "nph") as client:
        client.request("/nph-line.sh")
        assert receive_all(client.sock).endswith(b"first\nsecond\n")


def test_tls(server: ServerProcess) -> None:
    with Peer(server, "tlschild").shake_hands() as peer:
        assert peer.receive(6) == b"first\n"
        time.sleep(1.5)
        peer.send(b"hello\n").flush()
        assert peer.receive(1000).endswith(b" got hello\n")


@pytest.mark.parametrize("listener", ["stays", "tlsstays"])
def test_a_reset_ends_it(server: ServerProcess, listener: str) -> None:
    """It is in the program's group."""
    if listener == "stays":
        sock = server.connect(listener)
        pid = int(receive_line(sock))
    else:
        peer = Peer(server, listener).shake_hands()
        pid, sock = int(_line(peer)), peer.sock
    time.sleep(0.3)
    assert is_alive(pid)
    reset(sock)
    wait_for_end(pid)


def _line(peer: Peer) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += peer.receive(1)
    return line


@pytest.mark.parametrize("listener", ["timed", "timedsession"])
def test_a_timeout_ends_the_connection(server: ServerProcess, listener: str) -> None:
    """Whatever group the other process is in."""
    sock, line = prompt_program(server, listener)
    with sock:
        pid = int(line)
        with pytest.raises(ConnectionResetError):
            receive_all(sock)
    if listener == "timed":
        wait_for_end(pid)
    else:
        os.kill(pid, signal.SIGKILL)


def test_it_counts_among_max_programs(server: ServerProcess) -> None:
    with server.connect("one") as first, server.connect("one") as second:
        assert receive_line(first) == b"first\n"
        time.sleep(0.5)
        second.settimeout(0.2)
        with pytest.raises(TimeoutError):
            second.recv(1)
        second.settimeout(30)
        first.sendall(b"hello\n")
        assert receive_all(first).endswith(b"got hello\n")
        assert receive_line(second) == b"first\n"
        second.sendall(b"hello\n")
        assert receive_all(second).endswith(b"got hello\n")


def test_a_stop_waits_for_it(serve: Callable[..., ServerProcess], root: Path) -> None:
    server = serve(pool() + inetd(root, "child.sh"))
    with server.connect("child") as sock:
        assert receive_line(sock) == b"first\n"
        time.sleep(0.3)
        server.signal(signal.SIGTERM)
        time.sleep(0.3)
        sock.sendall(b"hello\n")
        assert receive_all(sock).endswith(b"got hello\n")
    assert server.wait() == 0


@pytest.mark.parametrize("program", ["stays", "stayssession"])
def test_a_stop_leaves_nothing_behind(serve: Callable[..., ServerProcess], root: Path, program: str) -> None:
    server = serve(pool(graceful_timeout=0.5) + inetd(root, f"{program}.sh"))
    with server.connect(program) as sock:
        pid = int(receive_line(sock))
        time.sleep(0.3)
        assert server.stop() == 0
        assert not is_alive(pid)
        with pytest.raises(ConnectionResetError):
            receive_all(sock)
