"""The cgi plugin's programs, on a running server: what they may do wrong, and how they end."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import h11
import pytest

from tests.helpers.http import PROGRAMS, Client, cgi_listener, pool, resident, write_programs
from tests.helpers.plugins import reset
from tests.helpers.server import ServerProcess, descendants_of, is_alive, receive_all, wait_until

pytestmark = pytest.mark.server

PLAIN = "printf 'Content-Type: text/plain\\n\\n'"
MORE = {
    "exits.sh": f"{PLAIN}; echo early",
    "big.sh": f"{PLAIN}; head -c ${{QUERY_STRING}} /dev/zero",
    "biglength.sh": "printf 'Content-Type: x/y\\nContent-Length: %s\\n\\n' $QUERY_STRING; "
    "head -c ${QUERY_STRING} /dev/zero",
    "never.sh": "sleep 1000",
    "quiet.sh": f"{PLAIN}; echo begun; sleep 1000",
    "heedless.sh": "trap 'exit 0' TERM; printf 'Content-Type: text/plain\\n\\nbegun'; while :; do sleep 0.05; done",
    "closes.sh": f"{PLAIN}; echo all; exec 1>&-; sleep 1.5; touch closed.late",
    "daemon.sh": f"{PLAIN}; echo parent; sleep 1000 & echo $!",
    "chatty.sh": f"{PLAIN}; echo out; head -c 10000000 /dev/zero | tr '\\0' 'x' | fold -w 99 >&2; echo end",
    "stderrlate.sh": "printf 'Content-Type: text/plain\\nContent-Length: 2\\n\\nok'; sleep 0.3; echo said late >&2; "
    "touch stderr.late",
    "lines.sh": f"printf 'one\\ntwo' >&2; {PLAIN}; printf '\\303\\050\\n' >&2; head -c 5000 /dev/zero | tr '\\0' y >&2",
    "count.sh": f"sleep 0.3; {PLAIN}; wc -c",
    "limits.sh": f"{PLAIN}; for x in Sn Sv St; do ulimit -$x; done; read go; for x in Hn Hv Ht; do ulimit -$x; done; "
    "grep processes /proc/self/limits",
    "cpu.sh": f"{PLAIN}; while :; do :; done",
    "pid.sh": f"{PLAIN}; echo $$",
    "signals.sh": f"{PLAIN}; grep -E 'Sig(Blk|Ign)' /proc/self/status",
    "descriptors.sh": f"{PLAIN}; exec ls -l /proc/self/fd",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_programs(tmp_path_factory.mktemp("root"), PROGRAMS | MORE)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[ServerProcess]:
    config = pool() + cgi_listener(root=root)
    config += cgi_listener("timed", root=root, timeout=1.0)
    config += cgi_listener("silent", root=root, output_timeout=1.0)
    limits = {"address_space": 400_000_000, "cpu_seconds": 1, "open_files": 200, "processes": 5000}
    config += cgi_listener("limited", root=root, limits=limits)
    config += cgi_listener("two", root=root, max_programs=2, queue_size=2)
    config += cgi_listener("impatient", root=root, max_programs=1, queue_timeout=0.2)
    config += cgi_listener("one", keys='half_close = "abort"', root=root, max_programs=1, queue_size=1)
    with ServerProcess(config, tmp_path_factory.mktemp("server")) as running:
        yield running.wait_ready()


def first_line(client: Client, target: str) -> list[int]:
    """Ask for a program that prints numbers in its first line, and leave it running."""
    client.request(target)
    assert client.head().startswith(b"HTTP/1.1 200")
    return numbers(client)


def prompt_numbers(server: ServerProcess, listener: str, target: str) -> tuple[Client, list[int]]:
    """A client whose program has begun before its listener's timeout, and its numbers. If the machine was too slow,
    another client tries again."""
    for _ in range(30):
        client = Client(server, listener)
        client.request(target)
        head = client.head()
        if head.startswith(b"HTTP/1.1 200"):
            return client, numbers(client)
        assert head.startswith(b"HTTP/1.1 504")
        client.sock.close()
    raise AssertionError("the program was too late thirty times")


def numbers(client: Client) -> list[int]:
    while client.take(1) != b"\n":
        pass  # the chunk's size
    line = b""
    while not line.endswith(b"\n"):
        line += client.take(1)
    return [int(word) for word in line.split()]


def all_gone(pids: list[int]) -> Callable[[], bool]:
    return lambda: not any(is_alive(pid) for pid in pids)


def all_new(server: ServerProcess, former: list[int]) -> bool:
    now = server.worker_pids()
    return len(now) == len(former) and not set(now) & set(former)


def nothing_runs(*workers: int) -> Callable[[], bool]:
    """Whether no program is alive that these workers have started."""
    return lambda: not any(is_alive(pid) for worker in workers for pid in descendants_of(worker))


# -- what a program starts with


def test_a_program_has_three_descriptors(client: Client) -> None:
    """RFC 3875 section 4: nothing of the server's, and no other client's connection."""
    listing = client.get("/descriptors.sh").body.decode().splitlines()[1:]
    links = dict(re.findall(r"(\d+) -> (\S+)", "\n".join(listing)))
    assert links.pop("3").startswith("/proc/")  # the listing itself
    assert links.pop("0") == "/dev/null"
    assert sorted(links) == ["1", "2"]
    assert all(target.startswith("pipe:") for target in links.values())


def test_signals_are_at_their_defaults(client: Client) -> None:
    """RFC 3875 section 7: SIGPIPE and the like end a program that does not know them."""
    for line in client.get("/signals.sh").body.decode().splitlines():
        name, value = line.split()
        known = sum(1 << (number - 1) for number in signal.valid_signals())  # the C library keeps some to itself
        assert int(value, 16) & known == 0, name


# -- programs that misbehave


def test_programs_that_exit_before_reading(client: Client) -> None:
    """RFC 3875 section 4.2: a program need not read its input."""
    for _ in range(5):
        assert client.get("/exits.sh", method="POST", body=bytes(500_000)).body == b"early\n"


def test_a_program_that_never_exits(server: ServerProcess, root: Path) -> None:
    """RFC 9110 section 15.6.5: 504 where nothing was sent yet; the connection may go on."""
    with Client(server, "timed") as client:
        answer = client.get("/never.sh")
        assert (answer.status, answer.body) == (504, b"504 Gateway Timeout\n")
        wait_until(lambda: client.get("/hello.sh").body == b"hello", "a program that starts in time")
    server.wait_for_line(r"timed .*/never.sh\[\d+\]: over its timeout of 1 s: ending it")
    with Client(server, "silent") as client:
        assert client.get("/never.sh").status == 504
    server.wait_for_line(r"silent .*/never.sh\[\d+\]: over its output_timeout of 1 s")
    wait_until(nothing_runs(*server.worker_pids()), "the programs' end")


@pytest.mark.parametrize("listener", ["timed", "silent"])
@pytest.mark.parametrize("program", ["quiet", "heedless"])
def test_a_timeout_in_mid_body(server: ServerProcess, listener: str, program: str) -> None:
    """RFC 9112 section 8: the client can tell that it is incomplete, also where the program exits with 0 on TERM."""

    def is_incomplete() -> bool:
        with Client(server, listener) as client:
            try:
                answer = client.get(f"/{program}.sh")
            except h11.RemoteProtocolError:
                return True
            assert answer.status == 504  # a busy machine: it had not begun
            return False

    wait_until(is_incomplete, "a program that begins in time")


def test_the_whole_group_is_ended(server: ServerProcess) -> None:
    """On `timeout`, on `output_timeout`, when the client closes and when it resets (RFC 9112 section 9.6): TERM first,
    and to these programs, which do not heed it, KILL."""
    clients, started = [], []
    for listener in ("timed", "silent", "www", "www"):
        client, pids = prompt_numbers(server, listener, "/stubborn.sh")
        clients.append(client)
        assert all(os.getpgid(pid) == pids[0] for pid in pids)
        started += pids
    clients.pop().sock.close()
    reset(clients.pop().sock)
    wait_until(all_gone(started), "the groups' end")
    for client in clients:
        client.sock.close()


def test_a_program_that_closes_its_output_early(client: Client, root: Path, server: ServerProcess) -> None:
    """RFC 3875 section 6.2.1: the response is whole then; the program may go on, also when the client has left."""
    assert client.get("/closes.sh").body == b"all\n"
    client.sock.close()
    wait_until((root / "closed.late").exists, "the program that goes on")


def test_standard_error_is_logged_after_the_client_has_left(server: ServerProcess, root: Path) -> None:
    """A program that has said all to its client, and then something to the log, is not killed for it."""
    with Client(server) as client:
        client.send(b"GET /stderrlate.sh HTTP/1.0\r\n\r\n")
        assert receive_all(client.sock).endswith(b"\r\n\r\nok")
    server.wait_for_line(r"/stderrlate.sh\[\d+\]: said late")
    wait_until((root / "stderr.late").exists, "the program that goes on")


def test_a_grandchild_that_keeps_the_pipe(client: Client) -> None:
    """The response ends soon after the program, whoever else has a copy of its descriptors."""
    began = time.monotonic()
    lines = client.get("/daemon.sh").body.split()
    assert lines[0] == b"parent"
    assert time.monotonic() - began < 20
    assert is_alive(int(lines[1]))  # it is its program's business
    os.kill(int(lines[1]), signal.SIGKILL)
    assert client.get("/hello.sh").body == b"hello"


def test_a_client_that_leaves_ends_a_grandchild_that_prints(server: ServerProcess, root: Path) -> None:
    """The program has ended, its output has not: that is ended with the client."""
    write_programs(root, {"orphan.sh": f"{PLAIN}; sh -c 'echo $$; while :; do echo x; sleep 0.02; done' &"})
    with Client(server) as client:
        pid = first_line(client, "/orphan.sh")[0]
    wait_until(all_gone([pid]), "the grandchild's end")


def test_10_megabytes_of_standard_error(client: Client, server: ServerProcess) -> None:
    """Standard error is moved at the same time as the output, and goes to the log by line; not all of so much."""
    before = len(server.lines)
    assert client.get("/chatty.sh").body == b"out\nend\n"
    server.wait_for_line(r"/chatty.sh\[\d+\]: x{99}", after=before)
    server.wait_for_line(r"/chatty.sh\[\d+\]: \d+ lines dropped", after=before)


def test_standard_error_goes_to_the_log_by_line(client: Client, server: ServerProcess) -> None:
    """With the program's name and number; bytes that are no text, lines without an end, lines too long."""
    assert client.get("/lines.sh").status == 200
    server.wait_for_line(r"www #\d+ 127.0.0.1:\d+: /lines.sh\[\d+\]: one$")
    server.wait_for_line(r"/lines.sh\[\d+\]: two\\xc3\($")
    server.wait_for_line(r"/lines.sh\[\d+\]: y{4096}$")
    server.wait_for_line(r"/lines.sh\[\d+\]: y{904}$")


# -- large outputs


@pytest.mark.parametrize("program", ["big", "biglength"])
def test_a_slow_client_fills_no_memory(server: ServerProcess, program: str) -> None:
    """A gigabyte of output, of which the client reads a little and then leaves: the program waits meanwhile."""
    worker = server.worker_pids()[0]
    with Client(server, receive_buffer=65536) as client:
        client.request(f"/{program}.sh?1000000000")
        client.head()
        for _ in range(100):
            client.take(100_000)
        time.sleep(0.3)  # for the server to read more than it should, if it did
        assert resident(worker) < 64 << 20
    wait_until(nothing_runs(worker), "the program's end")


@pytest.mark.parametrize("coding", ["length", "chunked"])
def test_a_large_upload_fills_no_memory(server: ServerProcess, coding: str) -> None:
    """RFC 3875 section 4.2: to a program that reads late, from the socket to its pipe, or by way of a file."""
    size, piece = 200_000_000, bytes(1_000_000)
    with Client(server) as client:
        client.send(b"POST /count.sh HTTP/1.1\r\nHost: a\r\n")
        if coding == "length":
            client.send(b"Content-Length: %d\r\n\r\n" % size)
            for _ in range(size // len(piece)):
                client.send(piece)
        else:
            client.send(b"Transfer-Encoding: chunked\r\n\r\n")
            for _ in range(size // len(piece)):
                client.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            client.send(b"0\r\n\r\n")
        assert int(client.response().body) == size
    assert resident(server.worker_pids()[0]) < 64 << 20


@pytest.mark.parametrize("version", ["1.0", "1.1"])
@pytest.mark.parametrize("program", ["big", "biglength"])
def test_300_megabytes(server: ServerProcess, program: str, version: str) -> None:
    """All of it arrives, in each framing, and the worker stays small."""
    size = 300_000_000
    with Client(server) as client:
        client.send(f"GET /{program}.sh?{size} HTTP/{version}\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
        head = client.head()
        buffer = bytearray(1 << 20)
        got, first = 0, b""
        while count := client.sock.recv_into(buffer):
            first = first or bytes(buffer[:20])
            got += count
    if b"chunked" in head:
        assert first.partition(b"\r\n")[0].strip(b"0123456789abcdef") == b""
        assert got > size
    else:
        assert got == size
    assert resident(server.worker_pids()[0]) < 64 << 20


def test_a_slow_client_is_not_the_programs_silence(server: ServerProcess) -> None:
    """`output_timeout` is about the program: it has printed all it could."""

    def gets_all(program: str) -> bool:
        with Client(server, "silent", receive_buffer=65536) as client:
            client.send(f"GET /{program}.sh?20000000 HTTP/1.0\r\n\r\n".encode())
            if client.head().startswith(b"HTTP/1.1 504"):
                return False  # a busy machine: it had not begun
            time.sleep(1.5)
            assert len(receive_all(client.sock)) == 20_000_000
            return True

    for program in ("big", "biglength"):
        wait_until(partial(gets_all, program), "a program that begins in time")


# -- limits


def test_limits_are_there_when_the_program_runs(server: ServerProcess) -> None:
    """setrlimit(2): the soft ones from its first moment, the hard ones before its input."""
    with Client(server, "limited") as client:
        values = client.get("/limits.sh", method="POST", body=b"go\n").body.decode().split()
    memory = str(400_000_000 // 1024)
    # Until the hard limit follows, that of CPU time may be a second more (see children.py).
    assert values[:6] in (["200", memory, soft, "200", memory, "2"] for soft in "12")
    assert values[8:10] == ["5000", "5000"]


def test_a_program_over_its_cpu_time(server: ServerProcess) -> None:
    """RFC 9112 section 8: killed by SIGXCPU in mid-body."""
    with Client(server, "limited") as client, pytest.raises(h11.RemoteProtocolError):
        client.get("/cpu.sh")


# -- how many at a time


def waiting(server: ServerProcess, root: Path, listener: str = "www") -> tuple[Client, int]:
    """A client whose program runs until `let_end` is called with its number."""
    client = Client(server, listener)
    return client, first_line(client, "/wait.sh")[0]


def let_end(root: Path, *pids: int) -> None:
    for pid in pids:
        (root / f"go.{pid}").touch()


def test_max_programs_queue_and_503(server: ServerProcess, root: Path) -> None:
    """RFC 9110 section 15.6.4: up to the limit at a time, then a bounded queue, then 503 with Retry-After."""
    running = [waiting(server, root, "two") for _ in range(2)]
    queued = [Client(server, "two") for _ in range(2)]
    for client in queued:
        client.request("/hello.sh")
    for _ in range(4):  # one worker serves them in their order
        with Client(server, "two") as client:
            answer = client.get("/hello.sh")
            assert answer.status == 503
            assert int(answer.headers[b"retry-after"]) > 0
    let_end(root, running[0][1])
    assert [client.response().body for client in queued] == [b"hello"] * 2
    for client in queued:
        assert client.get("/hello.sh").body == b"hello"
        client.sock.close()
    let_end(root, running[1][1])
    for client, _ in running:
        client.sock.close()


def test_queue_timeout(server: ServerProcess, root: Path) -> None:
    """RFC 9110 section 15.6.4; and the connection may go on."""
    client, pid = waiting(server, root, "impatient")
    with Client(server, "impatient") as other:
        assert other.get("/hello.sh", method="POST", body=b"unread").status == 503
        let_end(root, pid)
        client.sock.close()
        wait_until(lambda: other.get("/hello.sh").status == 200, "a free place")


def test_a_client_that_leaves_the_queue_takes_no_place(server: ServerProcess, root: Path) -> None:
    """RFC 9112 section 9.6: whoever is behind it gets its turn."""
    client, pid = waiting(server, root, "one")
    other = Client(server, "one")
    other.request("/hello.sh")
    with Client(server, "one") as refused:
        wait_until(lambda: refused.get("/hello.sh").status == 503, "a full queue")
    other.sock.close()
    third = Client(server, "one")
    third.request("/hello.sh")
    let_end(root, pid)
    assert third.response().status in (200, 503)
    assert third.get("/hello.sh").status == 200
    for one in (client, third):
        one.sock.close()


def test_places_are_right_after_a_worker_was_killed(serve: Callable[..., ServerProcess], root: Path) -> None:
    """What a killed worker held comes back, and its programs are gone, grandchildren too."""
    server = serve(pool(2) + cgi_listener(root=root, max_programs=3, queue_size=0))
    for _ in range(3):
        clients = [Client(server) for _ in range(3)]
        pids = [pid for client in clients for pid in first_line(client, "/stubborn.sh")]
        with Client(server) as client:
            assert client.get("/hello.sh", "Connection: close").status == 503
        workers = server.worker_pids()
        for worker in workers:
            os.kill(worker, signal.SIGKILL)
        wait_until(all_gone(pids), "the programs' end")
        for client in clients:
            client.sock.close()
        wait_until(partial(all_new, server, workers), "new workers")
        running = [waiting(server, root) for _ in range(3)]
        with Client(server) as client:
            assert client.get("/hello.sh", "Connection: close").status == 503
        let_end(root, *(pid for _, pid in running))
        for client, _ in running:  # its place is free before the response ends
            assert client.take(16).endswith(b"4\r\nend\n\r\n0\r\n\r\n")
            client.sock.close()
        wait_until(nothing_runs(*server.worker_pids()), "the programs' end")


# -- the worker's end


def test_a_worker_that_stops_lets_responses_finish(serve: Callable[..., ServerProcess], root: Path) -> None:
    """RFC 9112 section 9.6: what is being served is finished, with Connection: close where that can still be said."""
    server = serve(pool() + cgi_listener(root=root))
    client, pid = waiting(server, root)
    idle, fresh = Client(server), Client(server)
    assert idle.get("/hello.sh").status == 200
    fresh.send(b"GET /hello.sh HTTP/1.1\r\n")
    worker = server.worker_pids()[0]
    os.kill(worker, signal.SIGTERM)
    answer = fresh.send(b"Host: a\r\n\r\n").response()
    assert (answer.body, answer.headers[b"connection"]) == (b"hello", b"close")
    assert fresh.is_closed()
    assert idle.is_closed()  # after a while: it might have been sending a request
    let_end(root, pid)
    rest = receive_all(client.sock)
    assert rest.endswith(b"4\r\nend\n\r\n0\r\n\r\n")
    wait_until(lambda: not is_alive(worker), "the worker's end")
    for one in (client, idle, fresh):
        one.sock.close()
    assert server.stop() == 0


def test_nothing_is_left_when_the_server_stops(serve: Callable[..., ServerProcess], root: Path) -> None:
    """TERM to the group when the time for a graceful end is over, then KILL."""
    server = serve(pool(graceful_timeout=0.2) + cgi_listener(root=root))
    with Client(server) as client:
        pids = first_line(client, "/stubborn.sh")
        assert server.stop() in (0, 1)
    assert all_gone(pids)()


def test_no_descriptor_is_left(serve: Callable[..., ServerProcess], root: Path) -> None:
    """Whatever has been served, in whatever way it ended."""
    server = serve(pool() + cgi_listener(root=root))
    with Client(server) as client:
        whatever_has_been_served(server, client)


def whatever_has_been_served(server: ServerProcess, client: Client) -> None:
    worker = server.worker_pids()[0]
    client.get("/hello.sh")
    wait_until(nothing_runs(worker), "the programs' end")
    for _ in range(2):
        client.get("/no.sh")  # by its answer the worker has reaped what was dead, by the second it has closed all
    before = len(os.listdir(f"/proc/{worker}/fd"))
    for target in ("/hello.sh", "/no.sh", "/exits.sh", "/cat.sh", "/pid.sh") * 4:
        client.get(target, method="POST", body=b"x" * 1000)
        with Client(server) as other:
            other.request(target)
    with Client(server) as other:
        other.request("/wait.sh")
        other.head()
    wait_until(nothing_runs(worker), "the programs' end")
    wait_until(lambda: len(os.listdir(f"/proc/{worker}/fd")) == before, "the descriptors' end")
