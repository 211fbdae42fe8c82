"""A connection's own members: what it is, what it holds, its programs, streams, timers and blocking calls."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.plugins import ask, closed, listener, nothing_to_read, reset, served, turns
from tests.helpers.server import (
    ServerProcess,
    is_alive,
    process_state,
    receive_all,
    receive_exactly,
    receive_line,
    wait_until,
)

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("settled")]

PLUGINS = r"""
import gc, weakref


class About(Tells):
    # Says of itself what it is asked for, as Python writes it.
    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            conn.send(b"%r\n" % (eval(line.decode(), {"conn": conn, "time": time}),))


class Late(Tells):
    # The first connection tells where it was when it is closed, and the next one has its descriptor.
    former = None

    @hookimpl
    def on_readable(self, conn):
        if conn.recv():
            former, Late.former = self.former, conn
            conn.send(b"%r\n" % (former and former.local,))


class Freed(Tells):
    # Tells how many of its connections are still objects, itself included, without a garbage collection.
    @hookimpl
    def on_worker_start(self, worker):
        gc.disable()
        self.seen = weakref.WeakSet()

    @hookimpl
    def on_readable(self, conn):
        self.seen.add(conn)
        if conn.recv():
            conn.send(b"%d\n" % len(self.seen))


class Further:
    @hookimpl
    def on_connection_init(self, conn):
        assert conn.extra == {} and conn.state is None
        conn.extra["further"] = 7


class Holds(Tells):
    @hookimpl
    def on_readable(self, conn):
        for letter in conn.recv().decode():
            if letter == "h":
                conn.hold()
            else:
                conn.release()
            conn.send(letter.encode())
        if conn.eof:
            conn.send(b"eof")
            conn.call_later(0.02, conn.release)
            conn.call_later(0.04, lambda: conn.send(b"held"))
            conn.call_later(0.06, conn.release)


class Timers(Tells):
    @hookimpl
    def on_connection_init(self, conn):
        conn.call_later(0, lambda: conn.send(b"1"))
        conn.call_later(0.02, lambda: conn.send(b"3"))
        conn.call_later(0.01, lambda: conn.send(b"2"))
        conn.call_later(0.01, lambda: conn.send(b"x")).cancel()
        for _ in range(100):
            conn.call_later(60, lambda: None).cancel()
        assert len(conn._timers) < 70
        conn.call_later(0.3, lambda: conn.state and conn.log.info("a timer of a closed connection"))

    @hookimpl
    def on_readable(self, conn):
        conn.send(conn.recv())

    @hookimpl
    def on_connection_close(self, conn, reason):
        conn.state = "closed"
        super().on_connection_close(conn, reason)


class Soon(Tells):
    # Answers one byte in a turn; all that it has answered, of whatever connection, is in its memory.
    order = []

    @hookimpl
    def on_connection_init(self, conn):
        conn.state = False

    @hookimpl
    def on_readable(self, conn):
        if not conn.state:
            self.answer(conn)

    def answer(self, conn):
        conn.state = False
        byte = conn.recv(1)
        if byte == b"?":
            conn.send(b"".join(self.order) + b"\n")
        elif byte == b"!":
            1 / 0
        elif byte:
            self.order.append(byte)
            conn.send(byte)
        if byte:
            conn.state = True
            conn.call_soon(lambda: self.answer(conn))


class Blocks(Tells):
    @hookimpl
    def on_readable(self, conn):
        data = conn.recv().decode()
        if data == "raise":
            conn.run_blocking(int, "x", done=lambda future: conn.send(repr(future.exception()).encode()))
        elif data == "unasked":
            conn.run_blocking(int, "x")
        elif data == "fault":
            conn.run_blocking(int, "1", done=lambda future: 1 / 0)
        elif data == "gone":
            Blocks.release = threading.Event()
            conn.run_blocking(self.release.wait, 30, done=lambda future: conn.log.info("done of a closed connection"))
        elif data == "release":
            self.release.set()
            conn.run_blocking(time.sleep, 0, done=lambda future: conn.send(b"released"))
        elif data:
            thread = threading.current_thread().name
            conn.run_blocking(
                lambda a, b: (a + b, threading.current_thread().name), 1, 2,
                done=lambda future: conn.send(b"%r" % (
                    (future.result()[0], future.result()[1] != thread, threading.current_thread().name == thread),)),
            )


class Spawns(Tells):
    # A line: where each of the three descriptors goes (null, pipe or conn), and a shell command.
    @hookimpl
    def on_readable(self, conn):
        line = conn.recv_line()
        if line is None or conn.state is not None:
            return
        *kinds, command = line.decode().split(None, 3)
        where = [{"null": None, "pipe": PIPE, "conn": conn}[kind] for kind in kinds]
        child = conn.spawn(["sh", "-c", command], stdin=where[0], stdout=where[1], stderr=where[2],
                           env={"PATH": os.environ["PATH"], "WHO": "me"}, cwd="/")
        conn.state = child
        conn.log.info("pid %d role %s returncode %r rusage %r pipes %r", child.pid, child.role, child.returncode,
                      child.rusage, [stream is not None for stream in (child.stdin, child.stdout, child.stderr)])
        # Its end and the ends of its output come in any order.
        conn.extra["parts"] = 1 + (child.stdout is not None) + (child.stderr is not None)
        for name in ("stdout", "stderr"):
            stream = getattr(child, name)
            if stream is not None:
                stream.on_readable = lambda stream, name=name: self.output(conn, name, stream)
                stream.on_close = lambda stream, error: self.part_done(conn)
        if child.stdin is not None:
            child.stdin.on_close = lambda stream, error: conn.log.info("stdin closed: %r", error)
            child.stdin.send(b"to the program\n")
            child.stdin.send_eof()

    def output(self, conn, name, stream):
        while (line := stream.recv_line()) is not None:
            conn.send(b"%s:%s" % (name.encode(), line))
        if stream.eof:
            conn.send(b"%s eof\n" % name.encode())

    @hookimpl
    def on_child_exit(self, child, conn):
        if conn is not None:
            conn.log.info("exited: %r %s %r", child.returncode, type(child.rusage).__name__, child is conn.state)
            self.part_done(conn)

    def part_done(self, conn):
        conn.extra["parts"] -= 1
        if not conn.extra["parts"]:
            conn.close("program ended")


class Output(Tells):
    # 20 MB from a program, as the line says: to the connection, or to a pipe that is relayed.
    @hookimpl
    def on_readable(self, conn):
        line = conn.recv_line()
        if line is None:
            return
        argv = [sys.executable, "-c", "import os\nn = 20_000_000\nwhile n: n -= os.write(1, bytes(n))"]
        if line == b"conn\n":
            conn.spawn(argv, stdout=conn)
        else:
            conn.spawn(argv, stdout=PIPE).stdout.relay_to(conn, done=lambda moved: conn.close("relayed %d" % moved))

    @hookimpl
    def on_child_exit(self, child, conn):
        if conn is not None and conn._shared:
            conn.close("exited %d" % child.returncode)


class Stubborn(Tells):
    # Programs that don't want to end, and what ends them.
    @hookimpl
    def on_readable(self, conn):
        for word in conn.recv().decode().split():
            if word == "start":
                # The second one of the group ignores TERM.
                script = "sh -c 'trap \"\" TERM; echo $$; while :; do sleep 1; done' & echo $$; wait"
                conn.state = child = conn.spawn(["sh", "-c", script], stdout=PIPE)
                child.stdout.on_readable = lambda stream: conn.send(stream.recv())
            elif word == "share":
                conn.state = conn.spawn(["sh", "-c", "echo $$; echo $$; exec sleep 1000"], stdout=conn)
            elif word == "terminate":
                conn.state.terminate()
                conn.state.terminate(grace=0)
            elif word == "abort":
                conn.abort("aborted")
            elif word == "close":
                conn.close("closed")
            elif word == "raise":
                raise RuntimeError

    @hookimpl
    def on_child_exit(self, child, conn):
        log = conn.log.info if conn is not None else lambda *a: print("child gone:", *a, file=sys.stderr, flush=True)
        log("exited %d", child.returncode)


class Missing(Tells):
    @hookimpl
    def on_connection_init(self, conn):
        for argv, options in ((["/nowhere/program"], {}), (["not-in-the-path"], {}), (["true"], {"cwd": "/nowhere"}),
                              (["/etc/passwd"], {})):
            try:
                conn.spawn(argv, stdin=PIPE, stdout=PIPE, stderr=PIPE, **options)
            except OSError as error:
                conn.send(error.strerror.encode() + b"\n")
        targets = [os.path.realpath(file) for file in Path("/proc/self/fd").iterdir()]
        conn.send(b"%d pipes\n" % sum("pipe:" in target for target in targets))
        conn.close()


class Descriptors(Tells):
    # What a program finds open, and its signals.
    @hookimpl
    def on_readable(self, conn):
        conn.recv()
        os.set_inheritable(os.open("/dev/zero", os.O_RDONLY), True)  # as a careless library would
        if not conn.eof:
            script = "ls -l /proc/self/fd/; grep Sig /proc/self/status; exec ps -o pgid= -p $$"
            conn.spawn(["sh", "-c", script], stdout=conn)

    @hookimpl
    def on_child_exit(self, child, conn):
        conn.send(b"pid %d\n" % child.pid)
        conn.close()


class Dials(Tells):
    # Connects to the address of the line, and says what becomes of it.
    @hookimpl
    def on_readable(self, conn):
        line = conn.recv_line()
        if line is None:
            return
        address, _, timeout = line.decode().strip().partition(" ")
        returned = []

        def ended(stream, error):
            conn.send(b"%r %s %r\n" % (type(error).__name__, str(error).encode(), stream is returned[0]))
            conn.close("dialled")

        stream = conn.connect(address, on_readable=self.answer, on_close=ended, timeout=float(timeout or 10))
        returned.append(stream)
        stream.send(b"early ")
        stream.send(b"bytes\n")
        conn.state = stream

    def answer(self, stream):
        line = stream.recv_line()
        if line is not None:
            stream._owner.send(b"answer: " + line)
            stream.close()


class Firesandforgets(Tells):
    # close() while connecting: what was sent is still written.
    @hookimpl
    def on_readable(self, conn):
        address = conn.recv().decode()
        if not address:
            return
        stream = conn.connect(address, on_readable=print, on_close=lambda stream, error: conn.send(b"%r" % error))
        stream.send(b"a record\n")
        stream.close("said")
        stream.send(b"too late\n")


class Drains(Tells):
    @hookimpl
    def on_readable(self, conn):
        conn.send(conn.recv() + b"%r" % conn.draining)

    @hookimpl
    def on_drain(self, conn):
        conn.send(b"draining: %r" % conn.draining)
        conn.close("drained")


class Draintwo(Tells):
    # One of its connections raises, one stays.
    @hookimpl
    def on_readable(self, conn):
        conn.state = conn.recv()
        conn.send(conn.state)

    @hookimpl
    def on_drain(self, conn):
        if conn.state == b"raise":
            raise RuntimeError("in on_drain")
        conn.send(b"draining")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("connection")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    plain = "soon ping about holds timers blocks spawns output stubborn missing descriptors dials firesandforgets freed"
    with served(
        folder,
        PLUGINS,
        *map(listener, [*plain.split(), "late"]),
        listener("local", "about", "unix:about.sock"),
        listener("both", "about", ":0"),
        listener("six", "about", "[::1]:0"),
        listener("extra", "about", plugins=["further"]),
        listener("spawnsabort", "spawns", half_close="abort"),
        listener("echo", bind="unix:echo.sock"),
    ) as running:
        yield running


# -- what it is


def test_addresses_of_ipv4(server: ServerProcess) -> None:
    with server.connect("about") as sock:
        assert ask(sock, b"conn.peer") == b"%r" % (sock.getsockname(),)
        assert ask(sock, b"conn.local") == b"%r" % (sock.getpeername(),)
        assert ask(sock, b"conn.listener") == b"'about'"


def test_addresses_of_ipv6_are_host_and_port_alone(server: ServerProcess) -> None:
    with server.connect("six") as sock:
        assert ask(sock, b"conn.peer") == b"%r" % (sock.getsockname()[:2],)
        assert ask(sock, b"conn.local") == b"%r" % (sock.getpeername()[:2],)


def test_an_ipv4_client_of_a_socket_for_both_families_is_shown_as_one(server: ServerProcess) -> None:
    port = int(server.addresses("both")[0].rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), 30) as sock:
        assert ask(sock, b"conn.peer") == b"%r" % (sock.getsockname(),)
        assert ask(sock, b"conn.local") == b"%r" % (sock.getpeername(),)
    with socket.create_connection(("::1", port), 30) as sock:
        assert ask(sock, b"conn.peer[0]") == b"'::1'"


def test_addresses_of_a_unix_socket_are_its_paths(server: ServerProcess, folder: Path) -> None:
    with server.connect("local") as sock:
        assert ask(sock, b"conn.peer") == b"('unix:', 0)"
        assert ask(sock, b"conn.local") == b"%r" % ((f"unix:{folder}/about.sock", 0),)


def test_numbers_times_and_counts(server: ServerProcess) -> None:
    before = time.time()
    with server.connect("about") as sock, server.connect("about") as other:
        first, second = int(ask(sock, b"conn.id")), int(ask(other, b"conn.id"))
        assert first < second
        assert before <= float(ask(sock, b"conn.opened_at")) <= time.time()
        received = len("conn.id\nconn.opened_at\nconn.bytes_in\n")
        assert int(ask(sock, b"conn.bytes_in")) == received
        sent = int(ask(sock, b"conn.bytes_out"))
        assert int(ask(sock, b"conn.bytes_out")) == sent + len(f"{sent}\n")


def test_a_closed_connection_does_not_take_anothers_descriptor_for_its_own(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("late") as sock:
        assert ask(sock, b"?") == b"None"
    assert closed(server, "late", after) == "eof"
    with server.connect("late") as sock:
        assert ask(sock, b"?") == b"('', 0)"
        assert ask(sock, b"?") == b"%r" % (sock.getpeername(),)


def test_a_closed_connection_is_freed_at_once(server: ServerProcess) -> None:
    for _ in range(3):
        after = len(server.lines)
        with server.connect("freed") as sock:
            assert ask(sock, b"?") == b"1"
        assert closed(server, "freed", after) == "eof"


def test_state_and_extra_are_the_plugins_own(server: ServerProcess) -> None:
    with server.connect("extra") as sock:
        assert ask(sock, b"conn.state") == b"None"
        assert ask(sock, b"conn.extra") == b"{'further': 7}"
        assert ask(sock, b"setattr(conn, 'state', [1])") == b"None"
        assert ask(sock, b"conn.state") == b"[1]"


def test_the_log_names_the_connection(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("about") as sock:
        number = ask(sock, b"conn.id").decode()
        ask(sock, b"conn.log.warning('hello %d', 5)")
        port = sock.getsockname()[1]
        server.wait_for_line(rf"WARNING.* about #{number} 127\.0\.0\.1:{port}: hello 5$", after=after)
        assert ask(sock, b"conn") == f"<Connection {number} on about from 127.0.0.1:{port}>".encode()


def test_it_knows_its_worker(server: ServerProcess) -> None:
    with server.connect("about") as sock:
        assert ask(sock, b"(conn.worker.slot, conn.worker.draining, conn.draining)") == b"(0, False, False)"


# -- staying open


def test_hold_keeps_it_open_until_released_as_often(server: ServerProcess) -> None:
    assert server.exchange("holds", b"hh") == b"hheofheld"


def test_release_without_hold_is_an_error_of_the_plugin(server: ServerProcess) -> None:
    after = len(server.lines)
    assert server.exchange("holds", b"hrr") == b"hr"
    server.wait_for_line(r"RuntimeError: release\(\) without hold\(\)", after=after)


def test_timers_come_in_order_and_are_gone_with_the_connection(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("timers") as sock:
        assert receive_exactly(sock, 3) == b"123"
    assert closed(server, "timers", after) == "eof"
    turns(server)
    turns(server)  # 0.4 seconds
    assert not any("a timer of a closed" in line for line in server.lines[after:])


def test_call_soon_holds_the_connection_until_all_is_done(server: ServerProcess) -> None:
    """At end of stream nothing is lost, however many turns it takes."""
    data = b"abc" * 100
    assert server.exchange("soon", data) == data


def test_call_soon_comes_after_the_others_had_their_turn(server: ServerProcess) -> None:
    """Two connections whose bytes are there at the same time are served by turns."""
    with server.connect("soon") as one, server.connect("soon") as two:
        for sock in (one, two):
            sock.sendall(b"0")
            assert receive_exactly(sock, 1) == b"0"
        worker = server.worker_pids()[0]
        os.kill(worker, signal.SIGSTOP)
        wait_until(lambda: process_state(worker) == "T", "the stop")
        one.sendall(b"x" * 50)
        two.sendall(b"y" * 50)
        os.kill(worker, signal.SIGCONT)
        for sock in (one, two):
            receive_exactly(sock, 50)
        one.sendall(b"?")
        order = receive_line(one).split(b"0")[-1]
        assert order.count(b"x") == order.count(b"y") == 50
        assert b"xxx" not in order
        assert b"yyy" not in order


def test_call_soon_is_dropped_with_the_connection(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("soon") as sock:
        sock.sendall(b"a" * 50_000)
        receive_exactly(sock, 1)
        reset(sock)
    assert closed(server, "soon", after) == "reset"
    with server.connect("soon") as sock:
        sock.sendall(b"a!a")
        assert receive_all(sock) == b"a"  # a fault of it closes the connection
    server.wait_for_line(r"ZeroDivisionError", after=after)


# -- blocking calls


def test_a_blocking_call_is_made_in_a_thread_and_answered_in_the_loop(server: ServerProcess) -> None:
    assert server.exchange("blocks", b"add") == b"(3, True, True)"  # and it holds the connection


def test_a_blocking_call_that_raises(server: ServerProcess) -> None:
    assert server.exchange("blocks", b"raise").startswith(b"ValueError(")


@pytest.mark.parametrize(("what", "error"), [("unasked", "ValueError"), ("fault", "ZeroDivisionError")])
def test_a_fault_of_a_blocking_call_closes_the_connection(server: ServerProcess, what: str, error: str) -> None:
    after = len(server.lines)
    assert server.exchange("blocks", what.encode(), finish=False) == b""
    server.wait_for_line("plugin 'blocks' failed in (run_blocking|done)", after=after)
    server.wait_for_line(error, after=after)


def test_a_blocking_call_of_a_connection_that_is_gone_is_dropped(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("blocks") as sock:
        sock.sendall(b"gone")
        with server.connect("blocks") as other:
            other.sendall(b"add")
            receive_exactly(other, 5)
        reset(sock)
        server.wait_for_line(r"blocks #\d+ \S+ closed: reset", after=after)
    assert server.exchange("blocks", b"release") == b"released"
    assert not any("done of a closed" in line for line in server.lines[after:])


# -- programs


@pytest.mark.parametrize("stdin", ["null", "pipe", "conn"])
@pytest.mark.parametrize("stdout", ["null", "pipe", "conn"])
@pytest.mark.parametrize("stderr", ["null", "pipe", "conn"])
def test_each_descriptor_of_a_program(server: ServerProcess, stdin: str, stdout: str, stderr: str) -> None:
    after = len(server.lines)
    with server.connect("spawns") as sock:
        sock.sendall(f"{stdin} {stdout} {stderr} read x; echo out $x $WHO; pwd; echo err >&2; exit 3\n".encode())
        if stdin == "conn":
            server.wait_for_line("spawns #.*pid", after=after)
            sock.sendall(b"from the client\n")
        answer = receive_all(sock).splitlines(keepends=True)
    said = {"null": "", "pipe": "to the program ", "conn": "from the client "}[stdin]
    expected = []
    for kind, name, lines in (("out", stdout, [f"out {said}me\n", "/\n"]), ("err", stderr, ["err\n"])):
        if name == "conn":
            expected += lines
        elif name == "pipe":
            expected += [*(f"std{kind}:{line}" for line in lines), f"std{kind} eof\n"]
    assert sorted(line.decode() for line in answer) == sorted(expected)
    pipes = [kind == "pipe" for kind in (stdin, stdout, stderr)]
    server.wait_for_line(
        rf"pid \d+ role program returncode None rusage None pipes {re.escape(str(pipes))}", after=after
    )
    server.wait_for_line("exited: 3 struct_rusage True", after=after)
    assert closed(server, "spawns", after) == "program ended"


def test_a_program_that_does_not_read_its_input_is_no_fault(server: ServerProcess) -> None:
    after = len(server.lines)
    assert server.exchange("spawns", b"pipe conn null exec <&-; echo done\n") == b"done\n"
    server.wait_for_line(r"stdin closed: (None|BrokenPipeError)", after=after)
    assert not any("failed in" in line for line in server.lines[after:])


@pytest.mark.parametrize("way", ["conn", "relayed"])
def test_output_is_complete_for_a_slow_reader(server: ServerProcess, way: str) -> None:
    after = len(server.lines)
    host, _, port = server.addresses("output")[0].rpartition(":")
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(30)
        sock.connect((host, int(port)))
        sock.sendall(way.encode() + b"\n")
        received = 0
        while piece := sock.recv(65536):
            received += len(piece)
    assert received == 20_000_000
    assert closed(server, "output", after) == ("exited 0" if way == "conn" else "relayed 20000000")


def start_stubborn(sock: socket.socket) -> list[int]:
    sock.sendall(b"start")
    return [int(receive_line(sock)), int(receive_line(sock))]


def all_gone(pids: list[int]) -> bool:
    return not any(map(is_alive, pids))


@pytest.mark.parametrize("what", ["reset", "abort", "raise", "terminate"])
def test_programs_are_ended_with_all_of_their_group(server: ServerProcess, what: str) -> None:
    after = len(server.lines)
    with server.connect("stubborn") as sock:
        pids = start_stubborn(sock)
        assert not all_gone(pids)
        if what == "reset":
            reset(sock)
        else:
            sock.sendall(what.encode())
        wait_until(lambda: all_gone(pids), "the end of the program's group")
    server.wait_for_line(r"child gone: exited %d -15|exited -15", after=after)


def test_a_program_outlives_a_plain_close(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("stubborn") as sock:
        pids = start_stubborn(sock)
        sock.sendall(b"close")
        assert receive_all(sock) == b""
    assert closed(server, "stubborn", after) == "closed"
    assert all(map(is_alive, pids))
    os.killpg(os.getpgid(pids[0]), signal.SIGKILL)
    wait_until(lambda: all_gone(pids), "killed")


def test_abort_is_a_reset_although_a_program_has_the_connection_too(server: ServerProcess) -> None:
    with server.connect("stubborn") as sock:
        sock.sendall(b"share")
        pid = int(receive_line(sock))
        assert int(receive_line(sock)) == pid
        sock.sendall(b"abort")
        with pytest.raises(ConnectionResetError):
            receive_all(sock)
        wait_until(lambda: not is_alive(pid), "terminated")


def test_a_program_that_reads_from_the_connection_holds_it(server: ServerProcess) -> None:
    with server.connect("spawns") as sock:
        sock.sendall(b"conn conn null echo ready; exec cat\n")
        assert receive_line(sock) == b"ready\n"
        assert ask(sock, b"one") == b"one"
        sock.sendall(b"two")
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b"two"


def test_half_close_abort_ends_a_program_while_it_runs(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("spawnsabort") as sock:
        sock.sendall(b"conn conn null echo $$; exec sleep 1000\n")
        pid = int(receive_line(sock))
        sock.shutdown(socket.SHUT_WR)
        assert closed(server, "spawnsabort", after) == "client closed"
        wait_until(lambda: not is_alive(pid), "terminated")


def test_what_cant_be_started_is_an_error_at_once_and_leaves_nothing(server: ServerProcess) -> None:
    first = server.exchange("missing", b"").decode().splitlines()
    assert first[:4] == ["No such file or directory"] * 3 + ["Permission denied"]
    assert server.exchange("missing", b"").decode().splitlines() == first


def test_a_program_has_three_descriptors_default_signals_and_a_group_of_its_own(server: ServerProcess) -> None:
    text = server.exchange("descriptors", b"x", finish=False).decode()
    numbers = re.findall(r" (\d+) -> (\S+)", text)
    assert [number for number, target in numbers if not target.startswith("/proc/")] == ["0", "1", "2"]
    masks = dict(re.findall(r"(SigBlk|SigIgn):\s*(\w+)", text))
    ignored = int(masks["SigIgn"], 16) & ~(3 << 31)  # without 32 and 33, which are the C library's own
    assert (int(masks["SigBlk"], 16), ignored) == (0, 0)
    group, pid = re.findall(r"^\s*(\d+)\npid (\d+)\n", text, re.MULTILINE)[0]
    assert group == pid


def test_dead_programs_leave_no_zombie(server: ServerProcess) -> None:
    after = len(server.lines)
    with server.connect("spawns") as sock:
        sock.sendall(b"null conn null echo $$\n")
        pid = int(receive_line(sock))
        assert receive_all(sock) == b""
    assert closed(server, "spawns", after) == "program ended"
    assert process_state(pid) == ""


# -- outgoing connections


def test_what_is_sent_while_connecting_is_kept(server: ServerProcess, folder: Path) -> None:
    assert server.exchange("dials", b"unix:echo.sock\n") == b"answer: early bytes\n'NoneType' None True\n"
    with socket.create_server(("127.0.0.1", 0)) as upstream, server.connect("dials") as sock:
        sock.sendall(b"127.0.0.1:%d\n" % upstream.getsockname()[1])
        peer, _ = upstream.accept()
        with peer:
            assert receive_line(peer) == b"early bytes\n"
            peer.sendall(b"pong\n")
            assert receive_line(sock) == b"answer: pong\n"


@pytest.mark.parametrize(
    ("address", "error"),
    [
        ("127.0.0.1:{port}", b"'ConnectionRefusedError' [Errno 111] Connection refused"),
        ("unix:nothing.sock", b"'FileNotFoundError' [Errno 2] No such file or directory"),
        ("unix:" + "x" * 200, b"'ValueError' the path of"),
        ("localhost:80", b"'ValueError' \"localhost:80\" has a host name"),
        ("nonsense", b"'ValueError' "),
    ],
)
def test_every_failure_to_connect_arrives_at_on_close(server: ServerProcess, address: str, error: bytes) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # so nobody listens at this port, and no other process can get it
        answer = server.exchange("dials", address.format(port=silent.getsockname()[1]).encode() + b"\n")
    assert answer.startswith(error)
    assert answer.endswith(b" True\n")


def test_connecting_takes_no_longer_than_its_timeout(server: ServerProcess) -> None:
    # A queue that is full: the kernel drops what would make it longer.
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for sock in (first, second):
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        assert server.exchange("dials", b"127.0.0.1:%d 0.2\n" % full.getsockname()[1]) == (
            b"'TimeoutError' [Errno 110] Connection timed out True\n"
        )


def test_an_upstream_that_resets(server: ServerProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as upstream, server.connect("dials") as sock:
        sock.sendall(b"127.0.0.1:%d\n" % upstream.getsockname()[1])
        peer, _ = upstream.accept()
        receive_line(peer)
        reset(peer)
        assert receive_all(sock) == b"'ConnectionResetError' [Errno 104] Connection reset by peer True\n"


def test_close_while_connecting_still_sends_what_was_sent(server: ServerProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as upstream, server.connect("firesandforgets") as sock:
        sock.sendall(b"127.0.0.1:%d" % upstream.getsockname()[1])
        peer, _ = upstream.accept()
        with peer:
            assert receive_all(peer) == b"a record\n"
        assert receive_exactly(sock, 4) == b"None"


def test_streams_end_with_their_connection(server: ServerProcess) -> None:
    with socket.create_server(("127.0.0.1", 0)) as upstream, server.connect("dials") as sock:
        sock.sendall(b"127.0.0.1:%d\n" % upstream.getsockname()[1])
        peer, _ = upstream.accept()
        with peer:
            assert receive_line(peer) == b"early bytes\n"
            assert nothing_to_read(peer)
            reset(sock)
            with pytest.raises(ConnectionResetError):
                receive_all(peer)


# -- the end of the worker


def test_on_drain_is_told_and_may_close(tmp_path: Path) -> None:
    with served(tmp_path, PLUGINS, listener("drains")) as server, server.connect("drains") as sock:
        sock.sendall(b"before:")
        assert receive_exactly(sock, 12) == b"before:False"
        server.signal(signal.SIGTERM)
        assert receive_all(sock) == b"draining: True"
        sock.close()
        assert server.wait() == 0


def test_a_fault_in_on_drain_loses_that_connection_alone(tmp_path: Path) -> None:
    with (
        served(tmp_path, PLUGINS, listener("draintwo")) as server,
        server.connect("draintwo") as faulty,
        server.connect("draintwo") as sound,
    ):
        faulty.sendall(b"raise")
        assert receive_exactly(faulty, 5) == b"raise"
        sound.sendall(b"sound")
        assert receive_exactly(sound, 5) == b"sound"
        server.signal(signal.SIGTERM)
        assert receive_all(faulty) == b""
        assert receive_exactly(sound, 8) == b"draining"
        sound.sendall(b"goes on")
        assert receive_exactly(sound, 7) == b"goes on"
        server.wait_for_line("plugin 'draintwo' failed in on_drain, connection #1 ")
        sound.close()
        faulty.close()
        assert server.wait() == 0


def test_programs_do_not_outlive_the_worker(tmp_path: Path) -> None:
    with served(tmp_path, PLUGINS, listener("stubborn"), pool="workers = 1\ngraceful_timeout = 0") as server:
        with server.connect("stubborn") as sock:
            pids = start_stubborn(sock)
            server.signal(signal.SIGTERM)
            assert server.wait() == 0
        assert all_gone(pids)
