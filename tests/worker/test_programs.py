"""Programs with resource limits, those that outlive their connection, what they leave behind; a plugin's own pipes."""

from __future__ import annotations

import resource
import socket
from collections.abc import Iterator

import pytest

from tests.helpers.plugins import listener, reset, served
from tests.helpers.server import ServerProcess, is_alive, receive_all, receive_exactly, receive_line, wait_until

pytestmark = pytest.mark.server

PLUGINS = """
import resource


class Pipes(Tells):
    # Brings what the client sends through a pipe of its own and back.
    half_close = "finish"

    @hookimpl
    def on_connection_init(self, conn):
        reader, writer = os.pipe()
        self.start(conn, conn.open_stream(reader), conn.open_stream(writer))

    def start(self, conn, reader, writer):
        conn.state = writer
        reader.on_readable = lambda stream: conn.send(stream.recv() or b"eof")

    @hookimpl
    def on_readable(self, conn):
        if data := conn.recv():
            conn.state.send(data)
        if conn.eof:
            conn.state.close()


class Pairs(Pipes):
    # The same with a pair of sockets.
    @hookimpl
    def on_connection_init(self, conn):
        left, right = socket.socketpair()
        self.start(conn, conn.open_stream(left.detach()), conn.open_stream(right.detach()))


class Refused(Tells):
    # What can't be a stream is an OSError, and no descriptor is left.
    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        for what in ("file", "none", "closed"):
            fd = 9999 if what == "none" else os.open("/etc/passwd", os.O_RDONLY)
            if what == "closed":
                conn.send(b"so far")
                conn.close()
            try:
                conn.open_stream(fd)
            except OSError as error:
                still_open = os.path.exists(f"/proc/self/fd/{fd}")
                conn.log.info("%s: %s, open: %s", what, errno.errorcode[error.errno], still_open)


class Waits(Tells):
    # Says which side of a relay is slow: the client, then the program, which reads after a signal.
    half_close = "finish"

    @hookimpl
    def on_connection_init(self, conn):
        child = conn.spawn(["/bin/sh", "-c", "trap 'exec cat' USR1; while :; do sleep 0.05; done"],
                           stdin=PIPE, stdout=PIPE)
        child.stdout.on_readable = lambda stream: stream.recv()
        conn.relay_to(child.stdin)
        self.say(conn, child, None)

    def say(self, conn, child, before):
        now = conn.relay_waits
        if now != before:
            conn.log.info("relay_waits %s", now)
            if now:
                child_of = child.pid
                os.kill(child_of, 10)
        conn.call_later(0.02, lambda: self.say(conn, child, now))


class Limited(Tells):
    @hookimpl
    def on_readable(self, conn):
        if (kind := conn.recv_line()) is None:
            return
        limits = {"files": {resource.RLIMIT_NOFILE: 20}, "memory": {resource.RLIMIT_AS: 300 << 20},
                  "little": {resource.RLIMIT_AS: 12 << 20}, "cpu": {resource.RLIMIT_CPU: 7},
                  "processes": {resource.RLIMIT_NPROC: 5000}, "none": {}}[kind.decode().strip()]
        spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(40)] if kind == b"files\\n" else []
        before = {number: resource.getrlimit(number) for number in limits}
        # The soft limits are there from the first moment, the hard ones once spawn has returned.
        script = "ulimit -Sn; ulimit -Sv; ulimit -St; grep processes /proc/self/limits; read line;"
        script += "ulimit -Hn; ulimit -Hv; ulimit -Ht; grep processes /proc/self/limits"
        child = conn.spawn(["/bin/sh", "-c", script], stdin=PIPE, stdout=conn, stderr=PIPE, cwd="/", limits=limits)
        child.stdin.send(b"go\\n")
        assert before == {number: resource.getrlimit(number) for number in limits}
        for fd in spare:
            os.close(fd)

    @hookimpl
    def on_child_exit(self, child, conn):
        if conn is not None:
            conn.close()


class Outlives(Tells):
    # The first line says whether the program outlives its connection; it says its number.
    @hookimpl
    def on_readable(self, conn):
        if (line := conn.recv_line()) is None:
            return
        child = conn.spawn(["sleep", "1000"])
        child.outlives = line == b"outlives\\n"
        conn.send(b"%d\\n" % child.pid)


class Leaves(Tells):
    # A program that ends at once and leaves a child of its own behind, in its group, which heeds no TERM.
    @hookimpl
    def on_readable(self, conn):
        if conn.recv_line() == b"start\\n":
            conn.state = conn.spawn(["/bin/sh", "-c", "trap '' TERM; sleep 1000 & echo $!"], stdout=conn)
        else:
            conn.state.terminate(0.1)
            conn.state.terminate(0.1)

    @hookimpl
    def on_child_exit(self, child, conn):
        if child.role == "program" and conn is not None:
            conn.resume_reading()
            conn.log.info("ended")
"""

NAMES = ["pipes", "pairs", "refused", "waits", "limited", "outlives", "leaves"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with served(tmp_path_factory.mktemp("pipes"), PLUGINS, *map(listener, NAMES)) as running:
        yield running


@pytest.mark.parametrize("name", ["pipes", "pairs"])
def test_a_plugin_gets_streams_over_descriptors_of_its_own(server: ServerProcess, name: str) -> None:
    data = bytes(range(256)) * 1000
    with server.connect(name) as sock:
        sock.sendall(data)
        assert receive_exactly(sock, len(data)) == data
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b"eof"


def test_what_can_not_be_a_stream_is_an_error_and_is_closed(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("refused") as sock:
        sock.sendall(b"x")
        assert receive_all(sock) == b"so far"
    server.wait_for_line(r"refused .*file: EPERM, open: False", after=after)
    server.wait_for_line(r"refused .*none: EBADF, open: False", after=after)
    server.wait_for_line(r"refused .*closed: ENOTCONN, open: False", after=after)


def test_a_relay_tells_which_side_is_slow(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("waits") as sock:
        server.wait_for_line(r"relay_waits False", after=after)
        sock.sendall(bytes(3_000_000))
        server.wait_for_line(r"relay_waits True", after=after)
        server.wait_for_line(r"relay_waits False", count=2, after=after)


UNLIMITED = {
    number: "unlimited" if value == resource.RLIM_INFINITY else str(value)
    for number, value in (
        (number, resource.getrlimit(number)[0]) for number in (resource.RLIMIT_NOFILE, resource.RLIMIT_AS)
    )
}


@pytest.mark.parametrize(
    ("kind", "line", "values"),
    [
        ("files", 0, ["", "20"]),  # more descriptors are open in the worker
        ("memory", 1, ["307200", "307200"]),
        ("little", 1, ["", "12288"]),  # too little for the worker itself to start anything in
        ("cpu", 2, ["7", "8"]),
        ("processes", 3, ["5000", "5000"]),
        ("none", 0, [UNLIMITED[resource.RLIMIT_NOFILE]] * 2),
    ],
)
def test_a_program_has_its_limits_and_the_worker_keeps_its_own(
    server: ServerProcess, kind: str, line: int, values: list[str]
) -> None:
    """Also where the worker itself has more descriptors open than the program may have."""
    said = server.exchange("limited", kind.encode() + b"\n").decode().splitlines()
    if kind == "processes":
        assert said[line].split()[2] == values[0]
        assert said[line + 4].split()[2:4] == values
    else:
        assert values[0] in (said[line], "")
        assert said[line + 4] == values[1]


def test_a_program_may_outlive_its_connection(server: ServerProcess) -> None:
    pids = {}
    for line in (b"outlives\n", b"ends\n"):
        sock = server.connect("outlives")
        sock.sendall(line)
        pids[line] = int(receive_line(sock))
        reset(sock)
    wait_until(lambda: not is_alive(pids[b"ends\n"]), "the program that ends with its connection")
    assert is_alive(pids[b"outlives\n"])


def test_what_a_program_has_left_in_its_group_is_ended(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("leaves") as sock:
        sock.sendall(b"start\n")
        left = int(receive_line(sock))
        server.wait_for_line(r"leaves .*ended", after=after)
        assert is_alive(left)
        sock.sendall(b"end\n")
        wait_until(lambda: not is_alive(left), "what the program has left behind")
