"""A worker as plugins see it, each member with a small real plugin; and what it tells the dispatcher."""

from __future__ import annotations

import os
import re
import signal
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolsrv.config.model import ListenerConfig
from poolsrv.core.event_loop import EventLoop
from poolsrv.dispatcher.dispatcher import Dispatcher
from poolsrv.dispatcher.listener import Listener
from poolsrv.dispatcher.worker_slot import STARTING, WorkerSlot
from poolsrv.ipc.worker_channel import FULL, SERVING, AcceptedConnection, DispatcherEnd, Report, WorkerEnd
from tests.helpers.distributions import install
from tests.helpers.server import ServerProcess, cpu_ticks, receive_line, wait_until

Serve = Callable[..., ServerProcess]


def plugin(tmp_path: Path, body: str, name: str = "p") -> Path:
    """A plugin whose class has this body."""
    text = "import logging, os, resource, signal, sqlite3, threading, time\n"
    text += "from poolsrv import PIPE, hookimpl\nclass P:\n"
    text += textwrap.indent(textwrap.dedent(body), "    ")
    install(tmp_path / "site", f"poolsrv-{name}", {name: f"poolsrv_{name}:P"}, text)
    return tmp_path / "site"


def config(workers: int = 1, pool: str = "", handler: str = "p") -> str:
    return f'[pool]\nworkers = {workers}\n{pool}\n[listeners.p]\nbind = "127.0.0.1:0"\nhandler = "{handler}"\n'


def ask(server: ServerProcess, question: bytes = b"\n", listener: str = "p") -> bytes:
    with server.connect(listener) as sock:
        sock.sendall(question)
        return receive_line(sock)


# --- what plugins get


@pytest.mark.server
def test_start_and_stop_open_and_close_a_resource_of_each_worker(serve: Serve, tmp_path: Path) -> None:
    site = plugin(
        tmp_path,
        """
        @hookimpl
        def on_worker_start(self, worker):
            self.pid = os.getpid()
            self.slot = worker.slot
            self.database = sqlite3.connect(f"worker{worker.slot}.db")
            self.database.execute("create table if not exists seen (line text)")

        @hookimpl
        def on_readable(self, conn):
            line = conn.recv_line()
            if line is not None:
                assert self.pid == os.getpid()
                with self.database:
                    self.database.execute("insert into seen values (?)", (line.decode(),))
                (count,) = self.database.execute("select count(*) from seen").fetchone()
                conn.send(f"{self.slot} {count}\\n".encode())

        @hookimpl
        def on_worker_stop(self, worker):
            self.database.close()
            with open("stopped", "a") as file:
                file.write(f"{worker.slot}{self.slot} ")
        """,
    )
    server = serve(config(workers=2), paths=(site,))
    counts: dict[int, list[int]] = {0: [], 1: []}

    def both_have_served_three() -> bool:
        """A worker that gets no CPU for a while is passed over."""
        slot, count = map(int, ask(server).split())
        counts[slot].append(count)
        return min(map(len, counts.values())) >= 3

    wait_until(both_have_served_three, "three answers of each worker")
    assert all(found == list(range(1, len(found) + 1)) for found in counts.values())
    assert server.stop() == 0
    assert sorted((server.folder / "stopped").read_text().split()) == ["00", "11"]


@pytest.mark.server
def test_a_worker_that_does_not_serve_a_listener_starts_none_of_its_plugins(serve: Serve, tmp_path: Path) -> None:
    site = plugin(
        tmp_path,
        """
        @hookimpl
        def on_worker_start(self, worker):
            open(f"started{worker.slot}", "w").close()
        @hookimpl
        def on_readable(self, conn):
            conn.send(conn.recv())
        """,
    )
    server = serve(config(workers=3) + "workers = 1\n", paths=(site,))
    assert ask(server) == b"\n"
    assert [path.name for path in server.folder.glob("started*")] == ["started0"]


# Each is a plugin with a listener of its own, on one server.
SHARED = {
    "every": """
        @hookimpl
        def on_worker_start(self, worker):
            self.count = 0
            self.waiting = []
            self.handle = worker.every(0.001, self.tick)
            for wrong in (0, -1.0, float("nan")):
                try:
                    worker.every(wrong, self.tick)
                except ValueError:
                    continue
                os._exit(9)
        def tick(self):
            self.count += 1
            if self.count == 5:
                self.handle.cancel()
                self.handle.cancel()
                self.worker_done()
            raise RuntimeError("in every")
        def worker_done(self):
            for conn in self.waiting:
                conn.send(b"%d\\n" % self.count)
        @hookimpl
        def on_readable(self, conn):
            conn.recv()
            if self.count >= 5:
                conn.send(b"%d\\n" % self.count)
            else:
                self.waiting.append(conn)
    """,
    "later": """
        @hookimpl
        def on_worker_start(self, worker):
            self.called = []
            worker.call_later(0, lambda: self.called.append("first"))
            worker.call_later(0, lambda: self.called.append("never")).cancel()
            worker.call_later(0, lambda: 1 / 0)
            worker.call_later(0, lambda: self.called.append("last"))
        @hookimpl
        def on_readable(self, conn):
            conn.recv()
            conn.send(" ".join(self.called).encode() + b"\\n")
    """,
    "threads": """
        @hookimpl
        def on_worker_start(self, worker):
            self.worker = worker
            self.loop_thread = threading.get_ident()

        @hookimpl
        def on_readable(self, conn):
            count = int(conn.recv_line())
            done = []
            def arrived(number):
                assert threading.get_ident() == self.loop_thread
                done.append(number)
                if len(done) == count:
                    conn.send(f"{done == list(range(count))}\\n".encode())
            def work():
                for number in range(count):
                    self.worker.call_soon_threadsafe(lambda number=number: arrived(number))
                self.worker.call_soon_threadsafe(self.fail)
            threading.Thread(target=work).start()

        def fail(self):
            raise RuntimeError("in a call from a thread")
    """,
    "before": """
        called = b"not called"
        @hookimpl
        def on_worker_start(self, worker):
            worker.call_soon_threadsafe(self.call)
        def call(self):
            self.called = b"called"
        @hookimpl
        def on_readable(self, conn):
            conn.recv()
            conn.send(self.called + b"\\n")
    """,
    "reader": """
        @hookimpl
        def on_worker_start(self, worker):
            self.reader, self.writer = os.pipe()
            self.waiting = None
            self.handle = worker.add_reader(self.reader, self.arrived)
            self.calls = 0

        def arrived(self):
            self.calls += 1
            data = os.read(self.reader, 1)
            if data == b"x":
                raise RuntimeError("in add_reader")
            if data == b"c":
                self.handle.cancel()
                self.handle.cancel()
                os.close(self.reader)
                self.waiting.send(b"%d\\n" % self.calls)

        @hookimpl
        def on_readable(self, conn):
            self.waiting = conn
            os.write(self.writer, conn.recv())
    """,
    "exits": """
        @hookimpl
        def on_worker_start(self, worker):
            worker.call_later(0, exit)
        @hookimpl
        def on_readable(self, conn):
            conn.send(conn.recv())
    """,
}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder, text = tmp_path_factory.mktemp("shared"), "[pool]\nworkers = 1\n"
    for name, body in SHARED.items():
        plugin(folder, body, name)
        text += f'[listeners.{name}]\nbind = "127.0.0.1:0"\nhandler = "{name}"\n'
    with ServerProcess(text, folder, paths=(folder / "site",)) as running:
        yield running.wait_ready()


@pytest.mark.server
def test_every_goes_on_until_it_is_cancelled_whatever_its_callback_raises(shared: ServerProcess) -> None:
    assert ask(shared, listener="every") == b"5\n"
    shared.wait_for_line("RuntimeError: in every", count=5)
    assert ask(shared, listener="every") == b"5\n"


@pytest.mark.server
def test_call_later_and_the_fault_of_its_callback(shared: ServerProcess) -> None:
    # A client may come in the iteration before them.
    wait_until(lambda: ask(shared, listener="later") == b"first last\n", "the timers")
    shared.wait_for_line("ZeroDivisionError")


@pytest.mark.server
def test_call_soon_threadsafe_from_a_thread_calls_in_the_loop(shared: ServerProcess) -> None:
    assert ask(shared, b"1\n", "threads") == b"True\n"
    assert ask(shared, b"5000\n", "threads") == b"True\n"
    shared.wait_for_line("RuntimeError: in a call from a thread", count=2)


@pytest.mark.server
def test_call_soon_threadsafe_before_the_loop_runs(shared: ServerProcess) -> None:
    assert ask(shared, listener="before") == b"called\n"


@pytest.mark.server
def test_add_reader_calls_while_the_descriptor_is_readable(shared: ServerProcess) -> None:
    assert ask(shared, b"abxc", "reader") == b"4\n"
    shared.wait_for_line("RuntimeError: in add_reader")


SPAWNS = """
    @hookimpl
    def on_worker_start(self, worker):
        self.worker = worker
        self.waiting = []

    @hookimpl
    def on_readable(self, conn):
        line = conn.recv_line()
        if line is not None:
            getattr(self, line.decode().strip())(conn)

    @hookimpl
    def on_child_exit(self, child, conn):
        text = f"{type(self).__name__} {child.role} {child.returncode} {conn}"
        logging.getLogger("p").info("ended: %s", text)
        for conn in self.waiting:
            conn.send(f"{text}\\n".encode())
            conn.close()
        self.waiting = []

    def through_pipes(self, conn):
        child = self.worker.spawn(["tr", "a-z", "A-Z"], stdin=PIPE, stdout=PIPE)
        child.stdout.on_readable = lambda stream: conn.send(stream.recv())
        child.stdin.send(b"through pipes\\n")
        child.stdin.send_eof()

    def ends(self, conn):
        self.waiting.append(conn)
        self.worker.spawn(["sh", "-c", "test $A = 1 -a $PWD = / -a $(ulimit -n) = 64 && exit 3"],
                          env={"A": "1", "PATH": "/bin:/usr/bin"}, cwd="/", limits={resource.RLIMIT_NOFILE: 64})

    def to_a_file(self, conn):
        fd = os.open("out", os.O_WRONLY | os.O_CREAT)
        self.waiting.append(conn)
        self.worker.spawn(["echo", "to a file"], stdout=fd)
        os.close(fd)

    def wrong(self, conn):
        for argv, source in (["/no/such/program"], None), (["true"], conn), (["true"], 999):
            try:
                self.worker.spawn(argv, stdin=source)
            except (OSError, ValueError) as error:
                conn.send(type(error).__name__.encode() + b" ")
        conn.send(b"\\n")

    def fails(self, conn):
        child = self.worker.spawn(["echo"], stdout=PIPE)
        child.stdout.on_readable = lambda stream: 1 / 0
        self.waiting.append(conn)

    def lasts(self, conn):
        child = self.worker.spawn(["sleep", "3600"])
        conn.send(b"%d\\n" % child.pid)
"""


@pytest.fixture
def spawner(serve: Serve, tmp_path: Path) -> ServerProcess:
    site = plugin(tmp_path, textwrap.dedent(SPAWNS))
    plugin(tmp_path, textwrap.dedent(SPAWNS), name="q")
    return serve(config() + '[listeners.q]\nbind = "127.0.0.1:0"\nhandler = "q"\n', paths=(site,))


@pytest.mark.server
def test_a_program_of_the_worker_has_its_pipes_and_its_end_is_told_to_every_plugin(spawner: ServerProcess) -> None:
    assert ask(spawner, b"through_pipes\n") == b"THROUGH PIPES\n"
    spawner.wait_for_line("ended: P program 0 None", count=2)
    assert ask(spawner, b"ends\n") == b"P program 3 None\n"
    spawner.wait_for_line("ended: P program 3 None", count=2)
    assert ask(spawner, b"to_a_file\n") == b"P program 0 None\n"
    assert (spawner.folder / "out").read_text() == "to a file\n"


@pytest.mark.server
def test_a_program_of_the_worker_that_can_not_be_started_raises_at_once(spawner: ServerProcess) -> None:
    assert ask(spawner, b"wrong\n") == b"FileNotFoundError ValueError OSError \n"
    assert ask(spawner, b"ends\n") == b"P program 3 None\n"


@pytest.mark.server
def test_what_a_callback_of_its_pipe_raises_is_logged_and_touches_nothing_else(spawner: ServerProcess) -> None:
    assert ask(spawner, b"fails\n") == b"P program 0 None\n"
    spawner.wait_for_line("ZeroDivisionError")
    assert ask(spawner, b"ends\n") == b"P program 3 None\n"


@pytest.mark.server
def test_a_program_of_the_worker_outlives_the_connection_and_ends_with_the_worker(spawner: ServerProcess) -> None:
    pid = int(ask(spawner, b"lasts\n"))
    assert ask(spawner, b"ends\n") == b"P program 3 None\n"
    os.kill(pid, 0)
    assert spawner.stop() == 0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.server
def test_run_blocking_does_not_block_the_loop(serve: Serve, tmp_path: Path) -> None:
    site = plugin(
        tmp_path,
        """
        @hookimpl
        def on_worker_start(self, worker):
            self.worker = worker

        @hookimpl
        def on_readable(self, conn):
            line = conn.recv_line()
            if line == b"wait\\n":
                def wait(path):
                    while not os.path.exists(path):
                        time.sleep(0.005)
                    return "waited"
                self.worker.run_blocking(wait, "release", done=lambda f: conn.send(f.result().encode() + b"\\n"))
            elif line == b"fail\\n":
                self.worker.run_blocking(lambda: 1 / 0)
                self.worker.run_blocking(lambda: 1 / 0, done=lambda f: conn.send(repr(f.exception()).encode() + b"\\n"))
            else:
                conn.send(b"at once\\n")
        """,
    )
    server = serve(config(), paths=(site,))
    with server.connect("p") as waiting:
        waiting.sendall(b"wait\n")
        assert ask(server, b"x\n") == b"at once\n"
        (server.folder / "release").touch()
        assert receive_line(waiting) == b"waited\n"
    assert ask(server, b"fail\n") == b"ZeroDivisionError('division by zero')\n"
    server.wait_for_line("a plugin's callback failed")  # without done, it is told
    assert server.stop() == 0


@pytest.mark.server
def test_a_blocking_call_that_never_ends_does_not_hold_up_the_stop(serve: Serve, tmp_path: Path) -> None:
    site = plugin(
        tmp_path,
        """
        @hookimpl
        def on_worker_start(self, worker):
            worker.run_blocking(time.sleep, 3600)
        @hookimpl
        def on_readable(self, conn):
            conn.send(conn.recv())
        """,
    )
    server = serve(config(), paths=(site,))
    assert ask(server) == b"\n"
    assert server.stop() == 0
    assert "killing" not in server.log


@pytest.mark.server
def test_sys_exit_in_a_callback_ends_nothing(shared: ServerProcess) -> None:
    shared.wait_for_line("SystemExit")
    assert ask(shared, listener="exits") == b"\n"


@pytest.mark.server
def test_a_worker_that_is_told_to_end_again_while_it_waits_for_programs_does_not_spin(
    serve: Serve, tmp_path: Path
) -> None:
    """TERM more than once, at its very end: a program that ignores TERM is given two seconds."""
    site = plugin(
        tmp_path,
        """
        @hookimpl
        def on_readable(self, conn):
            conn.recv()
            conn.spawn(["/bin/sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"], stdout=conn)
        """,
    )
    server = serve(config(pool="graceful_timeout = 0.0"), paths=(site,))
    (pid,) = server.worker_pids()
    assert ask(server) == b"deaf\n"
    ticks = used = cpu_ticks(pid)
    os.kill(pid, signal.SIGTERM)
    while f"pid {pid}) exited 0" not in server.log:
        try:
            os.kill(pid, signal.SIGTERM)
            used = cpu_ticks(pid)
        except (FileNotFoundError, ProcessLookupError):
            break
        time.sleep(0.05)
    assert used - ticks < 60  # of 200 that two seconds of spinning would use


# --- what it tells the dispatcher


class Pair:
    """A dispatcher with one slot, and the worker's end of its channel in this process."""

    def __init__(self) -> None:
        self.loop = EventLoop()
        self.slot = WorkerSlot(0)
        self.slot.channel = DispatcherEnd()
        self.slot.state = STARTING
        self.listener = Listener(self.loop, 0, ListenerConfig("p", (), "p"), [], [self.slot])
        self.dispatcher = Dispatcher(self.loop, [self.listener], [self.slot])
        self.worker = WorkerEnd(self.slot.channel._worker_socket)
        self.last_id = 0

    def report(self, taken: int = 0, closed: tuple[int, ...] = (), **rest: object) -> None:
        report = Report(taken, list(closed), rest.get("state"), rest.get("counters"))  # type: ignore[arg-type]
        assert self.worker.report(report)
        assert self.dispatcher.on_report(self.slot)

    def pass_on(self, count: int) -> None:
        """As if this many connections had been accepted."""
        for _ in range(count):
            self.last_id += 1
            self.listener.counts.open += 1
            fd = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            self.listener.unassigned.append(AcceptedConnection(fd, 0, self.last_id, ""))
        self.dispatcher.resume()

    def take(self) -> list[int]:
        handed = self.worker.receive() or []
        for connection in handed:
            os.close(connection.fd)
        return [connection.id for connection in handed]


@pytest.fixture
def pair() -> Iterator[Pair]:
    pair = Pair()
    yield pair
    while pair.take():
        pass
    pair.dispatcher.drop_unassigned()
    assert pair.slot.channel is not None
    pair.slot.channel.close()
    pair.loop.close()


def test_counters_and_states_arrive(pair: Pair) -> None:
    for state, counters in ((SERVING, (1, 2, 3, 4, 5)), (FULL, (6, 7, 8, 9, 10))):
        pair.report(state=state, counters=counters)
        assert pair.slot.state == state
        assert pair.slot.counters == counters
    pair.report(taken=0)
    assert pair.slot.counters == (6, 7, 8, 9, 10)
    assert pair.slot.last_report_at == pair.loop.now


def test_only_a_worker_that_serves_gets_connections(pair: Pair) -> None:
    pair.pass_on(3)
    assert pair.dispatcher.unassigned() == 3
    pair.report(state=SERVING)
    assert pair.dispatcher.unassigned() == 0
    assert pair.take() == [1, 2, 3]


def test_what_is_taken_and_closed_is_counted_to_the_connection(pair: Pair) -> None:
    pair.report(state=SERVING)
    pair.pass_on(20)
    assert (len(pair.slot.waiting), len(pair.slot.connections), pair.listener.counts.open) == (20, 20, 20)
    assert pair.take() == list(range(1, 17))
    pair.report(taken=16)
    assert list(pair.slot.waiting) == [17, 18, 19, 20]
    pair.report(closed=(1, 5))
    assert (len(pair.slot.waiting), len(pair.slot.connections), pair.listener.counts.open) == (4, 18, 18)


def test_no_more_than_the_bound_waits_in_a_channel(pair: Pair) -> None:
    pair.report(state=SERVING)
    pair.pass_on(100)
    assert (len(pair.slot.waiting), pair.dispatcher.unassigned()) == (64, 36)
    assert len(pair.take()) == 16
    pair.report(taken=16)
    assert (len(pair.slot.waiting), pair.dispatcher.unassigned()) == (64, 20)


def test_what_a_full_worker_does_not_take_stays_until_somebody_can(pair: Pair) -> None:
    pair.report(state=SERVING)
    pair.pass_on(5)
    pair.report(state=FULL)
    assert len(pair.slot.waiting) == 5
    pair.report(state=SERVING)
    assert pair.take() == [1, 2, 3, 4, 5]


def test_what_the_kernel_refuses_waits_for_a_moment_and_is_tried_once_then(pair: Pair) -> None:
    """Each refusal once led to two tries, these to four, and so on."""
    pair.report(state=SERVING)
    assert pair.slot.channel is not None
    while pair.slot.channel.send([AcceptedConnection(0, 0, 0, "")]):  # the channel is full to the kernel
        pass
    pair.pass_on(40)
    assert pair.dispatcher.unassigned() == 40
    assert pair.slot.send_blocked
    for _ in range(5):
        pair.loop.turn()
        assert pair.dispatcher.unassigned() == 40
        assert len([timer for timer in pair.loop._timers if timer[2].callback is not None]) == 1
    while pair.take():
        pass
    while pair.dispatcher.unassigned():
        pair.loop.turn()
    assert sum(len(ids) for ids in iter(pair.take, [])) == 40


# --- starts that fail


BROKEN = """
@hookimpl
def on_worker_start(self, worker):
    if os.path.exists("../broken"):
        self.open(open("../broken").read())
def open(self, why):
    raise OSError(f"{why.strip()}, says {os.getpid()}")
@hookimpl
def on_readable(self, conn):
    conn.send(conn.recv())
"""


@pytest.mark.server
def test_the_traceback_of_a_start_that_fails_is_told_once_over_all_workers(serve: Serve, tmp_path: Path) -> None:
    site = plugin(tmp_path, BROKEN)
    (tmp_path / "broken").write_text("no database")
    server = serve(config(workers=3, pool="max_boot_failures = 4"), paths=(site,), ready=False)
    assert server.wait() == 1
    assert server.log.count("Traceback") == 1
    failed = len(re.findall(r"worker \d could not start.*: (?:next try|giving up)", server.log))
    # One that starts late may still have failed after the dispatcher has given up.
    assert server.log.count("failed in on_worker_start again, as above: OSError: no database, says") >= failed - 1 >= 3
    assert "4 times in a row" in server.log


@pytest.mark.server
def test_once_a_worker_has_served_a_failing_start_is_told_in_full_again(serve: Serve, tmp_path: Path) -> None:
    site = plugin(tmp_path, BROKEN)
    server = serve(config(), paths=(site,))
    for count in (1, 2):
        after = len(server.lines)
        (tmp_path / "broken").write_text("no database")
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        server.wait_for_line("2 times in a row", after=after)
        assert server.log.count("Traceback") == count
        (tmp_path / "broken").unlink()
        server.wait_for_line(r"\(pid \d+\) serves", after=after)
        assert ask(server) == b"\n"
