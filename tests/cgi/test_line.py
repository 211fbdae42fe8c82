"""The cgi plugin's `line` protocol on a running server: one line names a program, its output is the answer."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.http import cgi_listener, pool, write_programs
from tests.helpers.plugins import prompt_program, reset
from tests.helpers.server import (
    ServerProcess,
    descendants_of,
    is_alive,
    receive_all,
    receive_exactly,
    receive_line,
    wait_until,
)

pytestmark = pytest.mark.server

PROGRAMS = {
    "hello.sh": "echo hello",
    "env.sh": "exec env -0",
    "args.sh": 'for a in "$@"; do printf "[%s]" "$a"; done',
    "both.sh": "echo out; echo err >&2",
    "big.sh": "exec head -c 20000000 /dev/zero",
    "stdin.sh": "readlink /proc/self/fd/0; cat",
    "descriptors.sh": "exec ls -l /proc/self/fd",
    "stubborn.sh": "trap '' TERM; sleep 1000 & echo $$ $!; while :; do sleep 0.1; done",
    "terms.sh": "trap 'echo bye; exit 3' TERM; echo $$; while :; do sleep 0.05; done",
    "wait.sh": "echo $$; while [ ! -e go.$$ ]; do sleep 0.02; done; echo end",
    "sub/deep.sh": "pwd",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("base")
    root = write_programs(base / "root", PROGRAMS)
    write_programs(base, {"outside/secret.sh": "echo secret"})
    (root / "plain.txt").write_text("text")
    (root / "directory").mkdir()
    (root / "out.sh").symlink_to(base / "outside" / "secret.sh")
    (root / "outdir").symlink_to(base / "outside")
    (root / "in.sh").symlink_to("hello.sh")
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[ServerProcess]:
    line: dict[str, Any] = {"protocol": "line", "root": root}
    config = pool() + cgi_listener("raw", **line)
    config += cgi_listener("args", **line, arguments=True, stderr="client", environment={"MORE": "1"})
    config += cgi_listener("timed", **line, timeout=1.0)
    config += cgi_listener("short", **line, max_line=100, pass_environment=["HOME"])
    config += cgi_listener("path", bind="unix:raw.sock", **line)
    with ServerProcess(config, tmp_path_factory.mktemp("server")) as running:
        yield running.wait_ready()


def all_gone(pids: list[int]) -> bool:
    return not any(map(is_alive, pids))


def all_new(server: ServerProcess, former: list[int]) -> bool:
    now = server.worker_pids()
    return len(now) == len(former) and not set(now) & set(former)


def environment(output: bytes) -> dict[str, str]:
    """Of a program that prints `env -0`."""
    entries = (entry.decode().partition("=") for entry in output.split(b"\0") if entry)
    return {name: value for name, _, value in entries}


@pytest.mark.parametrize("line", [b"hello.sh\r\n", b"hello.sh\n", b"hello.sh", b"  hello.sh \r\n", b"in.sh\n"])
def test_a_line_runs_a_program(server: ServerProcess, line: bytes) -> None:
    """CRLF, or LF, or the end of the stream, ends it."""
    assert server.exchange("raw", line) == b"hello\n"


def test_a_client_need_not_finish_sending(server: ServerProcess) -> None:
    assert server.exchange("raw", b"hello.sh\r\n", finish=False) == b"hello\n"


def test_a_line_may_come_in_pieces(server: ServerProcess) -> None:
    with server.connect("raw") as sock:
        for byte in b"hello.sh\r\n":
            sock.sendall(bytes([byte]))
        assert receive_all(sock) == b"hello\n"


@pytest.mark.parametrize(
    ("line", "answer"),
    [
        (b"/bin/ls\n", b"no such program"),
        (b"../../bin/ls\n", b"no such program"),
        (b"../outside/secret.sh\n", b"no such program"),
        (b"sub/../hello.sh\n", b"no such program"),
        (b"./hello.sh\n", b"no such program"),
        (b"out.sh\n", b"no such program"),
        (b"outdir/secret.sh\n", b"no such program"),
        (b"directory\n", b"no such program"),
        (b"plain.txt\n", b"no such program"),
        (b"nothing.sh\n", b"no such program"),
        (b"hello.sh/more\n", b"no such program"),
        (b"%2e%2e/outside/secret.sh\n", b"no such program"),
        (b"hello.sh\0\n", b"not a valid request"),
        (b"hello\r.sh\n", b"not a valid request"),
        (b"hello\x1b[2J.sh\n", b"not a valid request"),
        (b"hello.sh\x7f\n", b"not a valid request"),
        (b"\r\n", b"not a valid request"),
        (b" \n", b"not a valid request"),
        (b"args.sh a\n", b"arguments are not allowed"),
        (b"hello.sh; ls\n", b"arguments are not allowed"),
        (b"x" * 5000 + b"\n", b"the line is too long"),
        (b"x" * 5000, b"the line is too long"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_refusals(server: ServerProcess, root: Path, line: bytes, answer: bytes) -> None:
    """One line that says that it is one, and nothing about the file system: what is not there and what may not be run
    look the same. The log knows more."""
    after = len(server.lines)
    assert server.exchange("raw", line) == b"refused: " + answer + b"\r\n"
    server.wait_for_line(r"raw #\d+ .*: refused: ", after=after)


def test_the_longest_line(server: ServerProcess) -> None:
    """`max_line` counts the line's end."""
    assert server.exchange("short", b"hello.sh" + b" " * 91 + b"\n") == b"hello\n"
    assert server.exchange("short", b"hello.sh" + b" " * 92 + b"\n") == b"refused: the line is too long\r\n"
    server.wait_for_line(r"refused: the line is over max_line \(100 bytes\)")


def test_arguments_where_the_config_allows_them(server: ServerProcess) -> None:
    """Words between spaces and tabs; no shell ever sees them."""
    assert server.exchange("args", b"args.sh a  b\tc $HOME `ls` ;\r\n") == b"[a][b][c][$HOME][`ls`][;]"


def test_a_clean_environment(server: ServerProcess, root: Path) -> None:
    """PATH, the client and the address; more only if the config says so."""
    with server.connect("raw") as sock:
        port = sock.getsockname()[1]
        sock.sendall(b"env.sh\n")
        variables = environment(receive_all(sock))
    host, _, local = server.addresses("raw")[0].rpartition(":")
    variables.pop("PWD", None)  # of the shell
    assert variables.pop("SERVER_SOFTWARE").startswith("poolsrv/")
    assert variables == {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "REMOTE_ADDR": host,
        "REMOTE_PORT": str(port),
        "SERVER_NAME": host,
        "SERVER_PORT": local,
    }
    assert environment(server.exchange("args", b"env.sh\n"))["MORE"] == "1"
    assert environment(server.exchange("short", b"env.sh\n")).get("HOME") == os.environ.get("HOME")
    assert environment(server.exchange("path", b"env.sh\n"))["REMOTE_ADDR"] == "unix:"


def test_only_the_output_is_on_the_connection(server: ServerProcess) -> None:
    """Its input is the null device; nothing of the server's is among its descriptors."""
    assert server.exchange("raw", b"stdin.sh\nmore than a line\n") == b"/dev/null\n"
    links = dict(re.findall(r"(\d+) -> (\S+)", server.exchange("raw", b"descriptors.sh\n").decode()))
    assert links.pop("3").startswith("/proc/")  # the listing itself
    assert sorted(links) == ["0", "1", "2"]
    assert (links["0"], links["1"][:7], links["2"][:5]) == ("/dev/null", "socket:", "pipe:")


def test_standard_error(server: ServerProcess) -> None:
    """To the log by line, or to the client."""
    after = len(server.lines)
    assert server.exchange("raw", b"both.sh\n") == b"out\n"
    server.wait_for_line(r"raw #\d+ .*: /both.sh\[\d+\]: err$", after=after)
    assert server.exchange("args", b"both.sh\n") == b"out\nerr\n"


def test_the_working_directory_is_the_programs(server: ServerProcess, root: Path) -> None:
    assert server.exchange("raw", b"sub/deep.sh\n").decode() == f"{root}/sub\n"


def test_a_slow_reader_gets_all(server: ServerProcess) -> None:
    """20 MB: the connection is blocking for the program, however the server uses it."""
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 10_000)
        sock.settimeout(30)
        host, _, port = server.addresses("raw")[0].rpartition(":")
        sock.connect((host, int(port)))
        sock.sendall(b"big.sh\n")
        assert len(receive_exactly(sock, 1_000_000)) == 1_000_000
        time.sleep(0.5)  # for the program to meet a full connection, and not to end for it
        assert len(receive_all(sock)) == 19_000_000


def test_a_client_that_sends_more_than_the_line(server: ServerProcess) -> None:
    """No process reads it; and the client still gets all of the output."""
    with server.connect("raw") as sock:
        sock.sendall(b"big.sh\n" + b"x" * 100_000)
        assert len(receive_all(sock)) == 20_000_000


def test_a_timeout_ends_the_group(server: ServerProcess) -> None:
    """TERM, then KILL to the whole group; the client sees a reset, so that no output looks whole."""
    after = len(server.lines)
    (heedful, _), (stubborn, line) = (
        prompt_program(server, "timed", name) for name in (b"terms.sh\n", b"stubborn.sh\n")
    )
    with heedful, stubborn:
        pids = [int(word) for word in line.split()]
        assert all(os.getpgid(pid) == pids[0] for pid in pids)
        assert receive_line(heedful) == b"bye\n"
        wait_until(lambda: not any(map(is_alive, pids)), "the group's end")
        for sock in (heedful, stubborn):
            with pytest.raises(ConnectionResetError):
                receive_all(sock)
    server.wait_for_line(r"/stubborn.sh\[\d+\]: over its timeout of 1 s: ending it", after=after)


def test_a_client_that_is_gone_ends_the_group(server: ServerProcess) -> None:
    """A reset does at once; a client that has only closed is noticed when the program writes."""
    sock = server.connect("raw")
    sock.sendall(b"stubborn.sh\n")
    pids = [int(word) for word in receive_line(sock).split()]
    reset(sock)
    other = server.connect("raw")
    other.sendall(b"big.sh\n")
    receive_exactly(other, 1000)
    other.close()
    wait_until(lambda: not any(map(is_alive, pids)), "the group's end")
    worker = server.worker_pids()[0]
    wait_until(lambda: not any(is_alive(pid) for pid in descendants_of(worker)), "the other's end")


def test_max_programs_over_the_pool(serve: Callable[..., ServerProcess], root: Path) -> None:
    """So many at a time over all workers, then the queue, then a refusal; right again after a worker was killed."""
    raw: dict[str, Any] = {"protocol": "line", "root": root, "max_programs": 2}
    config = pool(2) + cgi_listener("raw", **raw, queue_size=0) + cgi_listener("queue", **raw)
    server = serve(config + cgi_listener("impatient", **raw, queue_timeout=0.3))
    busy = b"refused: too many programs are running\r\n"
    for _ in range(2):
        socks = [server.connect("raw") for _ in range(2)]
        for sock in socks:
            sock.sendall(b"stubborn.sh\n")
        pids = [int(word) for sock in socks for word in receive_line(sock).split()]
        assert server.exchange("raw", b"hello.sh\n") == busy
        workers = server.worker_pids()
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        wait_until(partial(all_gone, pids), "the programs' end")
        wait_until(partial(all_new, server, workers), "new workers")
        for sock in socks:
            sock.close()
    for listener in ("impatient", "queue"):
        socks = [server.connect(listener) for _ in range(2)]
        for sock in socks:
            sock.sendall(b"wait.sh\n")
        pids = [int(receive_line(sock)) for sock in socks]
        with server.connect(listener) as waiting:
            waiting.sendall(b"hello.sh\n")
            if listener == "impatient":
                assert receive_all(waiting) == busy  # after its time in the queue
            (root / f"go.{pids[0]}").touch()
            assert listener == "impatient" or receive_all(waiting) == b"hello\n"
        (root / f"go.{pids[1]}").touch()
        for sock in socks:
            assert receive_all(sock) == b"end\n"
            sock.close()


def test_a_worker_that_stops_lets_programs_finish(serve: Callable[..., ServerProcess], root: Path) -> None:
    server = serve(pool() + cgi_listener("raw", protocol="line", root=root))
    with server.connect("raw") as sock, server.connect("raw") as silent:
        sock.sendall(b"wait.sh\n")
        pid = int(receive_line(sock))
        server.signal(signal.SIGTERM)
        assert receive_all(silent) == b""
        (root / f"go.{pid}").touch()
        assert receive_all(sock) == b"end\n"
    assert server.wait() == 0


@pytest.mark.parametrize("client", [["nc", "-N"], ["socat", "-t10", "-"]], ids=["nc", "socat"])
def test_clients_that_others_wrote(server: ServerProcess, client: list[str]) -> None:
    if shutil.which(client[0]) is None:
        pytest.skip(f"{client[0]} is not installed")
    host, _, port = server.addresses("raw")[0].rpartition(":")
    address = [host, port] if client[0] == "nc" else [f"TCP:{host}:{port}"]
    for line, answer in ((b"hello.sh\n", b"hello\n"), (b"../../bin/ls\n", b"refused: no such program\r\n")):
        done = subprocess.run([*client, *address], input=line, capture_output=True, timeout=30, check=True)
        assert done.stdout == answer
