"""Plugins that fork: a child that comes back to the server ends at once, and one that does its own work goes on."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from poolsrv.core.forked_copies import EXIT_COPY
from tests.helpers.plugins import ask, listener, served
from tests.helpers.server import ServerProcess, is_alive, wait_until

pytestmark = pytest.mark.server

MODULE = '''
import ctypes, logging, multiprocessing


class Base(Tells):
    """Does what its client says. The parent answers."""

    @hookimpl
    def on_worker_start(self, worker):
        self.worker = worker

    @hookimpl
    def on_worker_stop(self, worker):
        with open("stopped", "a") as file:
            file.write(f"{os.getpid()}\\n")

    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            answer = getattr(self, line.decode().strip())(conn)
            if answer is not None:
                conn.send(f"{answer}\\n".encode())

    def pid(self, conn):
        return os.getpid()

    def returns(self, conn):
        return os.fork() or None

    def exits(self, conn):
        pid = os.fork()
        if not pid:
            sys.exit()
        return pid

    def raises(self, conn):
        pid = os.fork()
        if not pid:
            raise KeyError("in a copy")
        return pid

    def sends(self, conn):
        pid = os.fork()
        if not pid:
            conn.send(b"from the copy\\n")
        return pid

    def closes(self, conn):
        pid = os.fork()
        if not pid:
            conn.close()
        return pid

    def aborts_another(self, conn):
        pid = os.fork()
        if not pid:
            for service in conn._host._owner._services:
                for other in service.connections.values():
                    other.abort("by a copy")
        return pid

    def twice(self, conn):
        """A copy of a copy comes back."""
        pid = os.fork()
        if not pid:
            os.fork()
            return None
        return pid

    def in_a_timer(self, conn):
        self.worker.call_later(0.0, lambda: self.from_timer(conn))

    def from_timer(self, conn):
        pid = os.fork()
        if pid:
            conn.send(f"{pid}\\n".encode())

    def in_a_thread(self, conn):
        self.worker.run_blocking(os.fork, done=lambda future: conn.send(f"{future.result()}\\n".encode()))

    def behind_python(self, conn):
        """A C library forks, which the interpreter does not notice."""
        return ctypes.CDLL(None).fork() or None

    def ends(self, conn):
        """The child ends as it should."""
        pid = os.fork()
        if not pid:
            os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def subprocess(self, conn):
        run = subprocess.run(["/bin/sh", "-c", "echo $NAME"], env={"NAME": "sub"}, capture_output=True, text=True)
        return run.stdout.strip()

    def preexec(self, conn):
        run = subprocess.run(
            ["/bin/sh", "-c", "echo pre"], preexec_fn=lambda: os.nice(1), capture_output=True, text=True
        )
        return run.stdout.strip()

    def multiprocess(self, conn):
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        process = context.Process(target=self.work, args=(queue,))
        process.start()
        answer = queue.get()
        process.join()
        return f"{answer} {process.exitcode}"

    def work(self, queue):
        logging.getLogger("work").warning("a child's line")
        queue.put("done")

    def terminated(self, conn):
        context = multiprocessing.get_context("fork")
        process = context.Process(target=time.sleep, args=(3600,))
        process.start()
        process.terminate()
        process.join()
        return process.exitcode

    def lasting(self, conn):
        """The child lives on."""
        pid = os.fork()
        if not pid:
            time.sleep(3600)
            os._exit(0)
        return pid


class Forks(Base):
    pass


class Second:
    """Another plugin, called after the first one."""

    @hookimpl
    def on_readable(self, conn):
        with open("second", "a") as file:
            file.write(f"{os.getpid()}\\n")


class Reaps(Tells):
    """Forks in the dispatcher, when a worker has ended."""

    @hookimpl
    def on_child_exit(self, child):
        if child.role == "worker":
            copy = os.fork()
            if not copy:
                sys.exit()
            print_to = open("copies", "a")
            print_to.write(f"{os.waitstatus_to_exitcode(os.waitpid(copy, 0)[1])}\\n")
            print_to.close()

    @hookimpl
    def on_readable(self, conn):
        if conn.eof:
            os._exit(9)
        conn.recv()
        conn.send(f"{os.getpid()}\\n".encode())
'''


@contextmanager
def running(folder: Path, *listeners: str, pool: str = "workers = 1") -> Iterator[ServerProcess]:
    with served(folder, MODULE, *listeners, pool=pool) as server:
        yield server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with running(tmp_path_factory.mktemp("copies"), listener("forks"), listener("ping")) as server:
        yield server


@pytest.mark.parametrize(
    "how", ["returns", "exits", "raises", "sends", "closes", "aborts_another", "twice", "in_a_timer", "in_a_thread"]
)
def test_a_copy_that_comes_back_ends_and_nobody_else_notices(server: ServerProcess, how: str) -> None:
    after = len(server.lines)
    with server.connect("forks") as bystander, server.connect("forks") as sock:
        worker = ask(bystander, b"pid")
        copy = int(ask(sock, how.encode()))
        server.wait_for_line(
            rf"\[{copy}\] a copy of this process .*os\.fork\(\) has come back to the server", after=after
        )
        wait_until(lambda: not is_alive(copy), "the end of the copy")
        assert ask(sock, b"pid") == ask(bystander, b"pid") == worker
        assert int(worker) in server.worker_pids()
    # connections that were made before and after it are all served, and closed once
    with server.connect("forks") as sock:
        assert ask(sock, b"pid") == worker
    assert not (server.folder / "stopped").exists()
    assert "not to be believed" not in server.log
    assert "plugin failed" not in "\n".join(server.lines[after:])


@pytest.mark.parametrize(
    ("how", "answer"),
    [
        ("ends", b"7"),
        ("subprocess", b"sub"),
        ("preexec", b"pre"),
        ("multiprocess", b"done 0"),
        ("terminated", b"-15"),
    ],
)
def test_a_child_that_does_its_own_work_goes_on(server: ServerProcess, how: str, answer: bytes) -> None:
    after = len(server.lines)
    with server.connect("forks") as sock:
        assert ask(sock, how.encode()) == answer
    assert "a copy of this process" not in "\n".join(server.lines[after:])


def test_a_child_that_goes_on_keeps_no_client_waiting_for_the_end(server: ServerProcess) -> None:
    """It has no copy of any connection: what the worker closes is closed."""
    with server.connect("forks") as sock, server.connect("ping") as other:
        assert ask(other, b"hello") == b"hello"
        pid = int(ask(sock, b"lasting"))
        assert is_alive(pid)
        sock.shutdown(1)
        other.shutdown(1)
        assert sock.recv(1) == other.recv(1) == b""


def test_no_further_plugin_is_called_in_a_copy(tmp_path: Path) -> None:
    with running(tmp_path, listener("second", "second", plugins=["forks"])) as server:
        with server.connect("second") as sock:
            copy = int(ask(sock, b"returns"))
            worker = ask(sock, b"pid")
        server.wait_for_line(rf"\[{copy}\] a copy of this process")
        assert set((tmp_path / "second").read_text().split()) == {worker.decode()}
        assert server.stop() == 0


def test_a_copy_that_python_does_not_know_of_costs_its_worker_at_most(tmp_path: Path) -> None:
    with running(tmp_path, listener("forks"), pool="workers = 2") as server:
        dispatcher = server.dispatcher_pid
        with ExitStack() as stack, server.connect("forks") as sock:
            guilty = ask(sock, b"pid")
            others: list[tuple[socket.socket, bytes]] = []

            def one_has_the_other_worker() -> bool:
                """A worker that gets no CPU for a while is passed over."""
                client = stack.enter_context(server.connect("forks"))
                others.append((client, ask(client, b"pid")))
                return others[-1][1] != guilty

            wait_until(one_has_the_other_worker, "a connection of the other worker")
            other, innocent = others[-1]
            sock.sendall(b"behind_python\n")
            for _ in range(20):
                with server.connect("forks") as later, suppress(ConnectionError):  # of that worker, while it ends
                    later.sendall(b"pid\n")
                    later.recv(100)
            assert ask(other, b"pid") == innocent
        assert server.dispatcher_pid == dispatcher
        assert "fault of the server" not in server.log


def test_a_copy_of_the_dispatcher_ends_too(tmp_path: Path) -> None:
    with running(tmp_path, listener("reaps"), pool="workers = 2") as server:
        dispatcher = server.dispatcher_pid
        for _ in range(3):
            with server.connect("reaps") as sock:
                sock.sendall(b"x")
                pid = int(sock.recv(100))
                sock.shutdown(1)
                assert sock.recv(1) == b""
            server.wait_for_line(rf"pid {pid}\) exited 9")
        ends = tmp_path / "copies"
        wait_until(lambda: ends.exists() and ends.read_text().count("\n") == 3, "the end of three copies")
        assert ends.read_text().split() == [str(EXIT_COPY)] * 3
        with server.connect("reaps") as sock:
            sock.sendall(b"x")
            assert sock.recv(100)
        assert server.dispatcher_pid == dispatcher
        assert is_alive(dispatcher)
        assert server.stop() == 0
