"""Hooks on whole servers: who is called when, what a fault costs, and that both ways of calling behave alike."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from tests.helpers.plugins import ask, closed, listener, reset, served, settle
from tests.helpers.server import ServerProcess, receive_all, receive_exactly, receive_line, wait_until

pytestmark = [pytest.mark.server, pytest.mark.usefixtures("settled")]

PLUGINS = r"""
import functools


class Faulty(Tells):
    # Fails where the client's first word says.
    @hookimpl
    def on_readable(self, conn):
        if conn.state is None:
            line = conn.recv_line()
            if line is None:
                return
            conn.state = line.decode().strip()
            self.begin(conn)
        elif conn.state == "on_readable":
            conn.send(b"last words")
            raise LookupError("on_readable")
        elif conn.state == "eof" and conn.eof:
            raise LookupError("eof")

    def fail(self, *arguments):
        raise LookupError("callback")

    def begin(self, conn):
        what = conn.state
        conn.send(b"ok\n")
        if what == "exit":
            sys.exit(3)
        elif what == "interrupt":
            raise KeyboardInterrupt
        elif what == "timer":
            conn.call_later(0, self.fail)
        elif what == "lambda":
            conn.call_later(0, lambda: 1 / 0)
        elif what in ("on_child_exit", "few"):
            conn.spawn(["true"])
        elif what == "program":
            conn.spawn(["sleep", "1000"])
            raise LookupError("with a program")
        elif what == "stream":
            conn.spawn(["echo"], stdout=PIPE).stdout.on_readable = self.fail
        elif what == "on_close":
            conn.connect("unix:nowhere", on_readable=print, on_close=self.fail)
        elif what == "on_writable":
            conn.send(bytes(15_000_000))
        elif what == "resumed":
            conn.unread(b"x")
            conn.state = "on_readable"
            conn.resume_reading()

    @hookimpl
    def on_writable(self, conn):
        raise LookupError("on_writable")

    @hookimpl
    def on_child_exit(self, child, conn):
        if conn is not None and conn.state == "on_child_exit":
            raise LookupError("on_child_exit")


class Fewarguments(Tells):
    # Takes only what it names, and fails in the notifications.
    @hookimpl
    def on_readable(self, conn):
        if conn.recv():
            conn.spawn(["true"])

    @hookimpl
    def on_child_exit(self, child):
        raise LookupError("few")


class Faultyinit(Tells):
    @hookimpl
    def on_connection_init(self, conn):
        raise LookupError("on_connection_init")

    @hookimpl
    def on_readable(self, conn):
        conn.log.error("never called")


class Faultyclose:
    @hookimpl
    def on_connection_close(self, conn, reason):
        raise LookupError("on_connection_close")


class Order(Tells):
    # Closes in the hook that its listener is named after, and checks that nothing is called from inside it.
    inside = False

    def hook(self, conn, name):
        self.inside = True
        if conn.listener == name:
            conn.close("in " + name)
        self.inside = False

    @hookimpl
    def on_connection_init(self, conn):
        self.hook(conn, "init")

    @hookimpl
    def on_readable(self, conn):
        if conn.listener == "exit" and conn.recv():
            conn.spawn(["true"])
        if conn.listener == "writable" and conn.recv():
            conn.send(bytes(15_000_000))
        if conn.listener == "timer" and conn.recv():
            conn.call_later(0, lambda: self.hook(conn, "timer"))
        self.hook(conn, "readable")

    @hookimpl
    def on_writable(self, conn):
        self.hook(conn, "writable")

    @hookimpl
    def on_child_exit(self, child, conn):
        if conn is not None:
            self.hook(conn, "exit")

    @hookimpl
    def on_connection_close(self, conn, reason):
        conn.log.info("inside: %r, again: %r", self.inside, conn.state)
        conn.state = "told"


class Refuses(Tells):
    @hookimpl
    def on_connection_init(self, conn):
        conn.send(b"refused\n")
        conn.close("refused")
        return True


class Seesall(Tells):
    @hookimpl
    def on_connection_init(self, conn):
        conn.log.info("seen by all")

    @hookimpl
    def on_connection_close(self, conn, reason):
        conn.log.info("all closed: %s", reason)


class Takesover(Tells):
    # Answers lines that begin with "!", and leaves the others to the handler.
    @hookimpl
    def on_readable(self, conn):
        if conn.peek()[:1] == b"!":
            conn.send(b"taken over: " + conn.recv())
            return True


class Alike(Tells):
    # Has every hook, and says all that happens.
    @hookimpl
    def on_worker_start(self, worker):
        worker.call_later(0, lambda: None)

    @hookimpl
    def on_connection_init(self, conn):
        conn.state = ["init"]

    @hookimpl
    def on_readable(self, conn):
        data = conn.recv()
        conn.state.append("readable %r %r" % (data, conn.eof))
        if data == b"big":
            conn.send(bytes(15_000_000))
        elif data == b"spawn":
            conn.spawn(["false"])
        elif data == b"raise":
            raise LookupError("alike")
        elif data == b"result":
            return "a result"
        elif data:
            conn.send(data)

    @hookimpl
    def on_writable(self, conn):
        conn.state.append("writable")

    @hookimpl
    def on_child_exit(self, child, conn):
        if conn is not None:
            conn.state.append("exit %d" % child.returncode)
            conn.send(b"exit")

    @hookimpl
    def on_connection_close(self, conn, reason):
        conn.log.info("alike: %s", ", ".join([*conn.state, reason]))


class Nothing:
    # Implements every hook, and does nothing.
    @hookimpl
    def on_worker_start(self, worker): ...
    @hookimpl
    def on_connection_init(self, conn): ...
    @hookimpl
    def on_readable(self, conn): ...
    @hookimpl
    def on_writable(self, conn): ...
    @hookimpl
    def on_child_exit(self, child, conn): ...
    @hookimpl
    def on_connection_close(self, conn, reason): ...
    @hookimpl
    def on_drain(self, conn): ...
    @hookimpl
    def on_worker_stop(self, worker): ...


class Timeouts(Tells):
    # A careless plugin.
    @hookimpl
    def on_worker_start(self, worker):
        socket.setdefaulttimeout(5)

    @hookimpl
    def on_connection_init(self, conn):
        assert conn.local[0] == "127.0.0.1"
        assert not os.get_blocking(conn._fd)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    hooks = "init readable writable exit timer"
    with served(
        tmp_path_factory.mktemp("service"),
        PLUGINS,
        *map(listener, ["ping", "faulty", "fewarguments", "faultyinit", "alike"]),
        *(listener(name, "order") for name in hooks.split()),
        listener("faultybehind", "faulty", plugins=["nothing"]),
        listener("aliketoo", "alike", plugins=["nothing"]),
        listener("badclose", "echo", plugins=["faultyclose", "seesall"]),
        listener("badinit", "echo", plugins=["seesall", "faultyinit", "refuses"]),
        listener("refused", "echo", plugins=["seesall", "refuses", "tells"]),
        listener("takenover", "echo", plugins=["takesover"]),
        listener("furthertimer", "echo", plugins=["faulty"]),
        listener("careless", "echo", plugins=["timeouts"]),
    ) as running:
        yield running


# -- faults

FAULTS = [
    ("on_readable", "on_readable"),
    ("eof", "on_readable"),
    ("resumed", "on_readable"),
    ("exit", "on_readable"),
    ("interrupt", "on_readable"),
    ("timer", "a timer"),
    ("lambda", "a timer"),
    ("on_child_exit", "on_child_exit"),
    ("stream", "on_readable"),
    ("on_close", "on_close"),
    ("on_writable", "on_writable"),
]


@pytest.mark.parametrize("name", ["faulty", "faultybehind"])
@pytest.mark.parametrize(("what", "where"), FAULTS)
def test_a_fault_loses_that_one_connection(server: ServerProcess, name: str, what: str, where: str) -> None:
    after = len(server.lines)
    pids = server.worker_pids()
    with server.connect("ping") as other, server.connect(name) as sock:
        assert ask(other, b"before") == b"before"
        assert ask(sock, what.encode()) == b"ok"
        if what == "eof":
            sock.shutdown(socket.SHUT_WR)
        elif what == "on_readable":
            sock.sendall(b"more")
        sock.recv(1, socket.MSG_PEEK)
        assert ask(other, b"between") == b"between"  # so the worker has sent what the kernel takes without a reader
        answer = receive_all(sock)
        sock.close()
        number = server.wait_for_line(
            rf"ERROR.* {name}: plugin 'faulty' failed in {where}, connection #(\d+) from 127\.0\.0\.1:\d+$", after=after
        ).group(1)
        assert closed(server, name, after) == "plugin failed"
        server.wait_for_line(rf"{name} #{number} ", after=after)
        assert answer[:4] == (b"last" if what in ("on_readable", "resumed") else b"\0\0\0\0"[: len(answer)])
        assert ask(other, b"after") == b"after"
    server.wait_for_line(r"^(LookupError|SystemExit|ZeroDivisionError|KeyboardInterrupt)", after=after)
    assert server.worker_pids() == pids


def test_a_fault_in_on_connection_init(server: ServerProcess) -> None:
    after = len(server.lines)
    assert server.exchange("faultyinit", b"x") == b""
    server.wait_for_line("plugin 'faultyinit' failed in on_connection_init, connection #", after=after)
    assert closed(server, "faultyinit", after) == "plugin failed"
    assert not any("never called" in line for line in server.lines[after:])


def test_a_fault_in_on_connection_close_keeps_nobody_from_being_told(server: ServerProcess) -> None:
    after = len(server.lines)
    assert server.exchange("badclose", b"x") == b"x"
    server.wait_for_line("plugin 'faultyclose' failed in on_connection_close, connection #", after=after)
    server.wait_for_line("badclose #.*all closed: eof", after=after)


def test_a_fault_in_on_child_exit_counts_although_the_plugin_does_not_ask_for_the_connection(
    server: ServerProcess,
) -> None:
    after = len(server.lines)
    assert server.exchange("fewarguments", b"x", finish=False) == b""
    server.wait_for_line("plugin 'fewarguments' failed in on_child_exit, connection #", after=after)
    assert closed(server, "fewarguments", after) == "plugin failed"


def test_a_fault_ends_the_programs_of_the_connection(server: ServerProcess) -> None:
    with server.connect("faulty") as sock:
        assert ask(sock, b"program") == b"ok"
        assert receive_all(sock) == b""
    settle(server)
    # The program had the worker as its parent, and was ended with the connection.
    (worker,) = server.worker_pids()
    wait_until(lambda: not open_programs(worker), "no program")


def open_programs(worker: int) -> str:
    with open(f"/proc/{worker}/task/{worker}/children") as file:
        return file.read()


def test_a_callback_is_put_down_to_the_plugin_that_it_belongs_to(server: ServerProcess) -> None:
    # The handler, echo, is called after the further plugin.
    for what in ("timer", "lambda"):
        after = len(server.lines)
        with server.connect("furthertimer") as sock:
            sock.sendall(what.encode() + b"\n")
            assert receive_all(sock).startswith(b"ok\n")
        server.wait_for_line("furthertimer: plugin 'faulty' failed in a timer", after=after)


# -- who is called, and when


@pytest.mark.parametrize("name", ["init", "readable", "writable", "exit", "timer"])
def test_a_connection_may_be_closed_in_each_hook_and_is_told_of_it_once_after(server: ServerProcess, name: str) -> None:
    after = len(server.lines)
    with server.connect("ping") as other, server.connect(name) as sock:
        sock.sendall(b"x")
        sock.recv(1, socket.MSG_PEEK)
        assert ask(other, b"between") == b"between"  # as above: it is congested before it is read
        receive_all(sock)
    server.wait_for_line(rf"{name} #\d+ \S+ inside: False, again: None", after=after)
    settle(server)
    assert sum("inside: " in line for line in server.lines[after:]) == 1


def test_a_plugin_that_refuses_is_the_last_to_be_called_and_told(server: ServerProcess) -> None:
    after = len(server.lines)
    assert server.exchange("refused", b"x") == b"refused\n"
    server.wait_for_line("refused #.* seen by all", after=after)
    server.wait_for_line("refused #.* all closed: refused", after=after)
    settle(server)
    # By "refuses"; not by "tells", which had not been reached.
    assert sum(bool(re.search(r"\d closed: refused$", line)) for line in server.lines[after:]) == 0
    assert sum(bool(re.search(r": closed: refused$", line)) for line in server.lines[after:]) == 1


def test_a_plugin_that_raised_was_reached_and_later_ones_were_not(server: ServerProcess) -> None:
    after = len(server.lines)
    assert server.exchange("badinit", b"x") == b""
    server.wait_for_line("badinit #.* all closed: plugin failed", after=after)
    assert closed(server, "badinit", after) == "plugin failed"
    settle(server)
    assert sum(": closed: plugin failed" in line for line in server.lines[after:]) == 1


def test_a_result_of_on_readable_ends_the_chain(server: ServerProcess) -> None:
    with server.connect("takenover") as sock:
        assert ask(sock, b"hello") == b"hello"
        assert ask(sock, b"!hello") == b"taken over: !hello"


def test_the_default_timeout_of_python_sockets_changes_nothing(server: ServerProcess) -> None:
    assert server.exchange("careless", b"hello") == b"hello"


# -- called directly, and through pluggy


def story(server: ServerProcess, name: str, *sent: bytes) -> str:
    """All that a plugin sees of a connection, as it tells at the end."""
    after = len(server.lines)
    with server.connect("ping") as other, server.connect(name) as sock:
        for data in sent:
            sock.sendall(data)
            if data == b"big":
                sock.recv(1, socket.MSG_PEEK)
                assert ask(other, b"between") == b"between"  # as above
                receive_exactly(sock, 15_000_000)
            elif data == b"spawn":
                assert receive_exactly(sock, 4) == b"exit"
            elif data == b"raise":
                assert receive_all(sock) == b""
            elif data == b"reset":
                receive_exactly(sock, 5)
                reset(sock)
            elif data != b"result":
                assert receive_exactly(sock, len(data)) == data
        if sent[-1] not in (b"raise", b"reset"):
            sock.shutdown(socket.SHUT_WR)
            assert receive_all(sock) == b""
    return server.wait_for_line(rf"\b{name} #.* alike: (.*)", after=after).group(1)


@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        ([b"hello"], "init, readable b'hello' False, readable b'' True, eof"),
        ([b"big"], "init, readable b'big' False, writable, readable b'' True, eof"),
        ([b"spawn", b"x"], "init, readable b'spawn' False, exit 1, readable b'x' False, readable b'' True, eof"),
        ([b"result"], None),
        ([b"a", b"raise"], "init, readable b'a' False, readable b'raise' False, plugin failed"),
        ([b"reset"], "init, readable b'reset' False, reset"),
    ],
)
def test_a_plugin_alone_and_behind_one_that_does_nothing_see_the_same(
    server: ServerProcess, sent: list[bytes], expected: str | None
) -> None:
    alone, behind = story(server, "alike", *sent), story(server, "aliketoo", *sent)
    assert alone == behind
    assert expected is None or alone == expected


def test_the_greeting_of_a_refused_client_is_complete(server: ServerProcess) -> None:
    with server.connect("refused") as sock:
        sock.sendall(bytes(100_000))
        assert receive_line(sock) == b"refused\n"
