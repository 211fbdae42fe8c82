"""The cgi plugin's `inetd` protocol on a running server: one program per connection, which is its input and output."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.dispatcher.test_ledger import series
from tests.helpers.http import cgi_listener, pool, write_programs
from tests.helpers.plugins import prompt_program, reset
from tests.helpers.server import ServerProcess, is_alive, receive_all, receive_exactly, receive_line, wait_until

pytestmark = pytest.mark.server

PROGRAMS = {
    "env.sh": "exec env -0",
    "greet.sh": 'echo "your name?"; read name; echo "hello, $name"; echo logged >&2',
    "sum.sh": "exec md5sum",
    "stubborn.sh": "trap '' TERM; sleep 1000 & echo $$ $!; while :; do sleep 0.1; done",
    "wait.sh": "echo $$; read line; echo end",
    "manners.sh": "read line; umask; nice",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_programs(tmp_path_factory.mktemp("root"), PROGRAMS)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[ServerProcess]:
    def inetd(name: str, *program: str, bind: str = "127.0.0.1:0", **options: Any) -> str:
        return cgi_listener(name, bind=bind, protocol="inetd", program=program, **options)

    config = (
        pool() + inetd("cat", "cat") + inetd("env", str(root / "env.sh")) + inetd("six", "env", "-0", bind="[::1]:0")
    )
    config += inetd("unix", "env", "-0", bind="unix:env.sock", environment={"MORE": "1"})
    config += inetd("greet", str(root / "greet.sh")) + inetd("sum", str(root / "sum.sh"))
    config += inetd("client", str(root / "greet.sh"), stderr="client")
    config += inetd("timed", str(root / "stubborn.sh"), timeout=1.0) + inetd("stubborn", str(root / "stubborn.sh"))
    config += inetd("manners", str(root / "manners.sh"), umask="0137", nice=7)
    config += inetd("usual", str(root / "manners.sh"))
    config += inetd("gone", "/bin/sh", "-c", "exec /no/such/program")
    with ServerProcess(config, tmp_path_factory.mktemp("server")) as running:
        yield running.wait_ready()


def environment(output: bytes) -> dict[str, str]:
    """Of a program that prints `env -0`."""
    entries = (entry.decode().partition("=") for entry in output.split(b"\0") if entry)
    return {name: value for name, _, value in entries}


def test_the_connection_is_input_and_output(server: ServerProcess) -> None:
    """Only the program reads and writes; its input ends where the client's output does."""
    data = os.urandom(3_000_000)
    with server.connect("cat") as sock:
        for at in range(0, len(data), 100_000):
            sock.sendall(data[at : at + 100_000])
            assert receive_exactly(sock, 100_000) == data[at : at + 100_000]
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""


def test_half_close(server: ServerProcess) -> None:
    """A program that answers only at the end of its input."""
    assert server.exchange("sum", b"hello\n") == b"b1946ac92492d2347c6235b4d2611184  -\n"


def test_a_conversation(server: ServerProcess) -> None:
    """The program speaks first, and its standard error goes to the log by line, or to the client."""
    after = len(server.lines)
    for listener, more in (("greet", b""), ("client", b"logged\n")):
        with server.connect(listener) as sock:
            assert receive_line(sock) == b"your name?\n"
            sock.sendall(b"Jo\n")
            assert receive_all(sock) == b"hello, Jo\n" + more
    server.wait_for_line(r"greet #\d+ .*/greet.sh\[\d+\]: logged$", after=after)


def test_the_variables_of_ucspi(server: ServerProcess) -> None:
    """https://cr.yp.to/proto/ucspi.txt and tcp-environ(5)."""
    for listener in ("env", "six"):
        with server.connect(listener) as sock:
            (host, port), (local, local_port) = sock.getsockname()[:2], sock.getpeername()[:2]
            variables = environment(receive_all(sock))
        variables.pop("PWD", None)  # of the shell
        assert variables == {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "PROTO": "TCP",
            "TCPLOCALIP": local,
            "TCPLOCALPORT": str(local_port),
            "TCPREMOTEIP": host,
            "TCPREMOTEPORT": str(port),
            "REMOTE_ADDR": host,
            "REMOTE_PORT": str(port),
        }
    variables = environment(server.exchange("unix", b"", finish=False))
    path = server.addresses("unix")[0].removeprefix("unix:")
    assert variables.pop("UNIXLOCALPATH").endswith(path)
    assert variables == {"PATH": "/usr/local/bin:/usr/bin:/bin", "PROTO": "UNIX", "MORE": "1"}


def test_a_timeout_and_a_reset_end_the_group(server: ServerProcess) -> None:
    """TERM, then KILL."""
    timed, line = prompt_program(server, "timed")
    with timed:
        pids = line.split()
        sock = server.connect("stubborn")
        pids += receive_line(sock).split()
        reset(sock)
        wait_until(lambda: not any(is_alive(int(pid)) for pid in pids), "the groups' end")
        with pytest.raises(ConnectionResetError):
            receive_all(timed)


def test_a_program_that_ends_at_once(server: ServerProcess) -> None:
    assert server.exchange("gone", b"", finish=False) == b""
    server.wait_for_line(r"/bin/sh\[\d+\]: .*not found")


def test_umask_and_priority(server: ServerProcess) -> None:
    """They are the program's alone: the next program of another listener, in the same worker, has the usual ones."""
    own = os.umask(0)
    os.umask(own)
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    expected = [b"0137", b"%d" % min(usual + 7, 19)]
    # The priority is set right after the start, so a program may ask for it too early.
    wait_until(lambda: server.exchange("manners", b"\n").split() == expected, "a program that asks late enough")
    assert server.exchange("usual", b"\n").split() == [b"%04o" % own, b"%d" % usual]


def test_max_programs(serve: Callable[..., ServerProcess], root: Path) -> None:
    """The limit over the pool, then the queue; when that is full the connection is closed."""
    options: dict[str, Any] = {
        "protocol": "inetd",
        "program": [str(root / "wait.sh")],
        "max_programs": 1,
        "queue_size": 1,
    }
    server = serve(pool() + cgi_listener("wait", **options))
    with server.connect("wait") as first, server.connect("wait") as second:
        receive_line(first)
        with server.connect("wait") as third:
            assert receive_all(third) == b""
        first.sendall(b"\n")
        assert receive_all(first) == b"end\n"
        pid = int(receive_line(second))
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "the program's end")
    with server.connect("wait") as sock:
        sock.sendall(b"\n")
        receive_line(sock)
        assert receive_all(sock) == b"end\n"


def test_a_worker_that_stops_lets_programs_finish(serve: Callable[..., ServerProcess], root: Path) -> None:
    options: dict[str, Any] = {"protocol": "inetd", "program": [str(root / "wait.sh")], "max_programs": 1}
    server = serve(pool(control="run/ctl") + cgi_listener("wait", **options))
    with server.connect("wait") as sock, server.connect("wait") as waiting:
        receive_line(sock)
        wait_until(lambda: series(server, "cgi_programs_waiting", listener="wait") == 1, "the one that waits")
        server.signal(signal.SIGTERM)
        server.wait_for_line(r"stopping")
        for client in (sock, waiting):
            client.sendall(b"\n")
            assert receive_all(client).endswith(b"end\n")
    assert server.wait() == 0


@pytest.mark.parametrize("client", [["nc", "-N"], ["socat", "-t10", "-"]], ids=["nc", "socat"])
def test_clients_that_others_wrote(server: ServerProcess, client: list[str]) -> None:
    if shutil.which(client[0]) is None:
        pytest.skip(f"{client[0]} is not installed")
    host, _, port = server.addresses("cat")[0].rpartition(":")
    address = [host, port] if client[0] == "nc" else [f"TCP:{host}:{port}"]
    done = subprocess.run([*client, *address], input=b"hello\n", capture_output=True, timeout=30, check=True)
    assert done.stdout == b"hello\n"
