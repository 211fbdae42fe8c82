"""A plugin driven in this process: clients, time, the worker's life."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import pytest
from poolsrv_echo import Echo

from poolsrv import PIPE, Child, ConfigError, Connection, ServerReport, Worker, hookimpl
from poolsrv.testing import Client, ConfigErrors, Harness, NeverRests, load_options

MakeHarness = Callable[..., Harness]


class Shout:
    class Options(msgspec.Struct, frozen=True):
        ending: str = "!"
        longest: Annotated[int, msgspec.Meta(ge=1)] = 100
        words: tuple[str, ...] = ()
        file: Path | None = None

    def __init__(self, options: Options) -> None:
        if "\n" in options.ending:
            raise ConfigError("ending", "has a line break, expected none")
        self.ending = options.ending.encode()

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        while (line := conn.recv_line()) is not None:
            conn.send(line.rstrip(b"\n").upper() + self.ending + b"\n")


class Counting:
    @hookimpl
    def on_worker_start(self, worker: Worker) -> None:
        self.lines = worker.metrics.counter("lines", "Lines", ["kind"])
        self.sizes = worker.metrics.histogram("size_bytes", "Sizes")

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        while (line := conn.recv_line()) is not None:
            self.lines.labels("long" if len(line) > 5 else "short").inc()
            self.sizes.observe(len(line))


# --- metrics


def test_what_a_plugin_counts_is_there_to_look_at() -> None:
    with Harness(Counting) as harness:
        client = harness.connect()
        client.send(b"a\nb\n")
        harness.reload()
        client.send(b"longer\n")
        harness.connect().send(b"c\n")
        assert harness.metric("lines") == 4
        assert harness.metric("lines", kind="short") == 3
        assert harness.metric("size_bytes") == 4
        with pytest.raises(KeyError, match="no metric lines"):
            harness.metric("lines", kind="none")


def test_a_handler_apart_gets_the_status_of_the_harness() -> None:
    reports: list[ServerReport] = []

    class Asks:
        apart = True

        @hookimpl
        def on_worker_start(self, worker: Worker) -> None:
            self.worker = worker

        @hookimpl
        def on_readable(self, conn: Connection) -> None:
            conn.recv()
            self.worker.server_report(reports.append)

    with Harness(Asks, max_connections=7) as harness:
        client = harness.connect()
        harness.advance(5.0)
        client.send(b"?")
        harness.drain()
        client.send(b"?")
        well, draining = reports
    assert (well.reason, well.is_ready) == ("well: 1 worker, 1 connection", True)
    assert well.status is not None
    assert well.status.workers[0].age >= 5.0
    assert well.status.listeners[0].max_connections == 7
    assert draining.reason == "degraded: the pool is stopping"
    assert draining.readiness == "not ready: the pool is stopping (1 connection is open)"


def test_other_handlers_get_none() -> None:
    with Harness(Echo) as harness, pytest.raises(RuntimeError, match="apart = True"):
        harness.worker.server_report(print)


# --- bytes


def test_a_client_gets_its_answer_at_once(poolsrv_harness: MakeHarness) -> None:
    client = poolsrv_harness(Shout, {"ending": "?"}).connect()
    client.send(b"hel")
    assert client.received == b""
    client.send("lo\nagain\n")
    assert client.received == b"HELLO?\nAGAIN?\n"
    assert client.take() == b"HELLO?\nAGAIN?\n"
    assert client.take() == b""


def test_a_half_close(poolsrv_harness: MakeHarness) -> None:
    client = poolsrv_harness(Shout).connect()
    client.send(b"last")
    client.send_eof()
    assert client.receive_all() == b"LAST!\n"
    assert (client.closed, client.was_reset, client.end) == (True, False, "eof")
    with pytest.raises(ValueError, match="send_eof"):
        client.send(b"x")


@pytest.mark.parametrize("reads", [True, False])
def test_a_client_that_resets(poolsrv_harness: MakeHarness, reads: bool) -> None:
    told = []

    class Tells:
        @hookimpl
        def on_readable(self, conn: Connection) -> None:
            conn.send(conn.recv())

        @hookimpl
        def on_connection_close(self, conn: Connection, reason: str) -> None:
            told.append((reason, conn.reset))

    harness = poolsrv_harness(Tells)
    client = harness.connect()
    if not reads:
        client.stop_reading()
    client.send(b"x")
    client.reset()
    assert told == [("reset", True)]
    assert harness.open_connections == 0


def test_a_client_that_closes(poolsrv_harness: MakeHarness) -> None:
    harness = poolsrv_harness(Echo)
    client = harness.connect()
    client.close()
    assert client.end == "eof"
    assert harness.open_connections == 0


def test_a_client_that_the_server_resets(poolsrv_harness: MakeHarness) -> None:
    class Refuses:
        @hookimpl
        def on_readable(self, conn: Connection) -> None:
            conn.send(b"no")
            conn.abort("refused")

    client = poolsrv_harness(Refuses).connect()
    client.send(b"x")
    assert (client.closed, client.was_reset, client.end) == (True, True, "refused")
    client.send(b"more")  # as it is with a socket: nobody is told
    assert client.unsent == 0


def test_a_client_that_is_closed_by_the_server_closes_too(poolsrv_harness: MakeHarness) -> None:
    class Greets:
        @hookimpl
        def on_connection_init(self, conn: Connection) -> None:
            conn.send(b"hello, and good bye")
            conn.close("said all")

    harness = poolsrv_harness(Greets)
    client = harness.connect()
    assert (client.received, client.end) == (b"hello, and good bye", "said all")
    assert harness.open_connections == 0


def test_a_slow_reader(poolsrv_harness: MakeHarness) -> None:
    calls = []

    class Counts(Echo):
        @hookimpl
        def on_writable(self, conn: Connection) -> None:
            calls.append("on_writable")

    client = poolsrv_harness(Counts).connect()
    client.stop_reading()
    client.send(bytes(3_000_000))
    assert client.connection is not None
    assert client.connection.congested
    assert client.unsent > 1_000_000
    client.resume_reading()
    assert (client.unsent, len(client.received), calls.count("on_writable") > 0) == (0, 3_000_000, True)


def test_what_a_plugin_sees_of_a_client(poolsrv_harness: MakeHarness) -> None:
    seen: list[Any] = []

    class Sees(Echo):
        @hookimpl
        def on_connection_init(self, conn: Connection) -> None:
            seen.append((type(conn).__mro__[1] is Connection, conn.peer, conn.local, conn.listener, conn.worker.slot))

    harness = poolsrv_harness(Sees)
    harness.connect(("2001:db8::1", 1234))
    assert seen == [(True, ("2001:db8::1", 1234), ("127.0.0.1", 7007), "test", 0)]
    harness.connect()
    assert seen[1][1][0] == "127.0.0.1"


# --- time


def test_time_moves_when_the_test_moves_it(poolsrv_harness: MakeHarness) -> None:
    calls: list[str] = []

    class Waits(Echo):
        @hookimpl
        def on_worker_start(self, worker: Worker) -> None:
            worker.every(10, lambda: calls.append("beat"))

        @hookimpl
        def on_connection_init(self, conn: Connection) -> None:
            conn.state = conn.call_later(3600, lambda: conn.send(b"an hour"))

    harness = poolsrv_harness(Waits, idle_timeout=0)
    client = harness.connect()
    harness.advance(59.9)
    assert len(calls) == 5
    harness.advance(3540)
    assert (client.received, len(calls)) == (b"", 359)
    harness.advance(0.1)
    assert (client.received, len(calls)) == (b"an hour", 360)


def test_the_functions_of_the_time_module_move_along_until_it_is_closed() -> None:
    before, wall = time.monotonic(), time.time()
    with Harness(Echo) as harness, Harness(Echo) as other:
        assert time.monotonic() - before < 1000
        harness.advance(5000)
        other.advance(1000)
        assert 6000 <= time.monotonic() - before < 7000
        assert 6000 <= time.time() - wall < 7000
        assert 6000 <= (time.monotonic_ns() / 1e9) - before < 7000
    assert time.monotonic() - before < 1000
    assert isinstance(time.time_ns(), int)


def test_an_idle_connection_is_closed(poolsrv_harness: MakeHarness) -> None:
    harness = poolsrv_harness(Echo, idle_timeout=5.0)
    client = harness.connect()
    harness.advance(4)
    client.send(b"still here")
    harness.advance(4)
    assert client.end == ""
    harness.advance(2)
    assert client.end == "idle timeout"


# --- what lies outside of the loop


def test_a_program_is_waited_for(poolsrv_harness: MakeHarness) -> None:
    exits = []

    class Runs:
        @hookimpl
        def on_connection_init(self, conn: Connection) -> None:
            child = conn.spawn([sys.executable, "-c", "print(input().upper())"], stdin=PIPE, stdout=conn)
            assert child.stdin is not None
            conn.relay_to(child.stdin)

        @hookimpl
        def on_child_exit(self, child: Child, conn: Connection | None) -> None:
            exits.append(child.returncode)
            if conn is not None:
                conn.close()

    client = poolsrv_harness(Runs).connect()
    client.send(b"hello\n")
    assert client.receive_line() == b"HELLO\n"
    assert client.receive_all() == b""
    assert exits == [0]


def test_a_thread_is_waited_for(poolsrv_harness: MakeHarness) -> None:
    class Blocks:
        @hookimpl
        def on_readable(self, conn: Connection) -> None:
            conn.run_blocking(conn.recv().upper, done=lambda future: conn.send(future.result()))

    client = poolsrv_harness(Blocks).connect()
    client.send(b"slowly")
    client.send_eof()
    assert client.receive(4) == b"SLOW"
    assert client.receive_all() == b"LY"


def test_what_does_not_come_is_told(poolsrv_harness: MakeHarness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poolsrv.testing.client.TIMEOUT", 0.1)
    client = poolsrv_harness(Echo).connect()
    client.send(b"abc")
    with pytest.raises(AssertionError, match=r"expected a line, but nothing came for 0.1 seconds; received: b'abc'"):
        client.receive_line()
    client.send_eof()
    with pytest.raises(AssertionError, match=r"expected 4 bytes, but the server has closed \(eof\); received: b'abc'"):
        client.receive(4)


def test_programs_and_threads_end_with_the_harness() -> None:
    class Leaves(Echo):
        @hookimpl
        def on_connection_init(self, conn: Connection) -> None:
            self.child = conn.worker.spawn([sys.executable, "-c", "import time; time.sleep(1000)"])

    with Harness(Leaves) as harness:
        harness.connect()
        pid = harness.plugin.child.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


# --- faults


LATER: dict[str, int] = {}


class Fails:
    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        conn.worker.call_later(5, lambda: LATER["later"])
        if conn.recv() == b"exit":
            sys.exit("bye")
        raise LookupError("in a hook")


def test_what_a_plugin_raises_is_raised_in_the_test() -> None:
    with Harness(Fails) as harness:
        client = harness.connect()
        with pytest.raises(LookupError, match="in a hook") as caught:
            client.send(b"x")
        assert caught.value.__notes__ == ["plugin 'fails' failed in on_readable: LookupError: in a hook"]
        assert client.end == "plugin failed"
        with pytest.raises(KeyError, match="later"):
            harness.advance(5)
        with pytest.raises(RuntimeError, match="SystemExit: bye"):
            harness.connect().send(b"exit")


def test_what_a_plugin_raises_is_collected_where_the_test_asks_for_it(caplog: pytest.LogCaptureFixture) -> None:
    with Harness(Fails, raise_faults=False) as harness:
        client = harness.connect()
        client.send(b"x")
        harness.advance(5)
        assert [(fault.plugin, fault.hook, fault.connection) for fault in harness.faults] == [
            ("fails", "on_readable", 1),
            ("", "call_later", None),
        ]
        assert client.closed
    assert "plugin 'fails' failed in on_readable, connection #1" in caplog.text


def test_a_failed_start_is_raised() -> None:
    class CantStart(Echo):
        @hookimpl
        def on_worker_start(self) -> None:
            raise OSError("no database")

    with pytest.raises(OSError, match="no database"):
        Harness(CantStart)


def test_a_failed_stop_is_raised() -> None:
    class CantStop(Echo):
        @hookimpl
        def on_worker_stop(self) -> None:
            raise OSError("disk full")

    harness = Harness(CantStop)
    with pytest.raises(OSError, match="disk full"):
        harness.close()


def test_work_without_an_end_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        @hookimpl
        def on_readable(self, conn: Connection) -> None:
            conn.recv()
            self.go_on(conn)

        def go_on(self, conn: Connection) -> None:
            conn.call_soon(lambda: self.go_on(conn))

    monkeypatch.setattr("poolsrv.testing.harness.MOST_TURNS", 1000)
    harness = Harness(Busy)
    with pytest.raises(NeverRests, match="after 1000 iterations"):
        harness.connect().send(b"x")
    harness.close()


# --- the worker's life


class Member(Echo):
    """Says good bye."""

    def __init__(self) -> None:
        self.log: list[str] = []

    @hookimpl
    def on_drain(self, conn: Connection) -> None:
        conn.send(b"bye\n")
        conn.close("drained")

    @hookimpl
    def on_worker_stop(self) -> None:
        self.log.append("stopped")


def test_a_drain(poolsrv_harness: MakeHarness) -> None:
    harness = poolsrv_harness(Member)
    client = harness.connect()
    harness.drain()
    assert (client.received, client.end, harness.worker.draining) == (b"bye\n", "drained", True)


def test_a_drain_ends_after_its_time(poolsrv_harness: MakeHarness) -> None:
    harness = poolsrv_harness(Echo)
    client = harness.connect()
    harness.drain()
    harness.advance(29)
    client.send(b"on")
    assert client.received == b"on"
    harness.advance(1)
    assert (client.was_reset, client.end) == (True, "drain timeout")


counted = 0  # in the module: a process's own


class Counts:
    def __init__(self) -> None:
        self.seen = 0

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        global counted
        conn.recv()
        counted += 1
        self.seen += 1
        conn.send(b"%d/%d " % (self.seen, counted))


def test_a_reload_begins_with_nothing_of_the_old_worker(poolsrv_harness: MakeHarness) -> None:
    harness = poolsrv_harness(Counts)
    old = harness.connect()
    old.send(b"x")
    harness.reload()
    new = harness.connect()
    for client in (old, new):
        client.send(b"x")
    assert old.received.split()[-1].startswith(b"2/")
    assert new.received == b"1/1 "
    assert sys.modules[__name__] is sys.modules[Counts.__module__]


def test_the_old_worker_stops_with_its_last_connection(poolsrv_harness: MakeHarness) -> None:
    harness = poolsrv_harness(Member())
    log = harness.plugin.log
    client = harness.connect()
    client.stop_reading()
    client.send(bytes(1_000_000))
    harness.reload()
    assert log == []
    client.resume_reading()
    assert client.closed
    assert log == ["stopped"]


def test_further_plugins_come_first(poolsrv_harness: MakeHarness) -> None:
    class Deny:
        class Options(msgspec.Struct):
            host: str

        def __init__(self, options: Options) -> None:
            self.host = options.host

        @hookimpl
        def on_connection_init(self, conn: Connection) -> object:
            if conn.peer[0] == self.host:
                conn.abort("denied")
                return True
            return None

    harness = poolsrv_harness("echo", plugins=[Deny], plugin_options={"deny": {"host": "192.0.2.1"}})
    assert harness.connect(("192.0.2.1", 1)).was_reset
    client: Client = harness.connect(("192.0.2.2", 1))
    client.send(b"hello")
    assert client.received == b"hello"


# --- options


def test_options_are_converted_as_the_config_does(tmp_path: Path) -> None:
    options = load_options(Shout, {"longest": 3, "words": ("a", "b"), "file": "x/y"}, folder=tmp_path)
    assert options == Shout.Options(longest=3, words=("a", "b"), file=tmp_path / "x" / "y")
    assert load_options(Shout, {"file": tmp_path}).file == tmp_path


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"longest": 0}, "longest: got 0, expected a whole number from 1"),
        ({"ending": 3}, "ending: got 3 (a number), expected a string"),
        ({"endin": "?"}, 'endin: unknown key (did you mean "ending"?), expected ending, longest, words or file'),
    ],
)
def test_wrong_options_have_the_errors_of_the_config(table: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigErrors) as loaded:
        load_options(Shout, table)
    with pytest.raises(ConfigErrors) as made:
        Harness(Shout, table)
    assert str(loaded.value) == str(made.value) == f"poolsrv.toml: listeners.test.shout.{message}"


def test_an_error_of_the_plugin_itself_is_one_of_the_config() -> None:
    assert load_options(Shout, {"ending": "\n"}).ending == "\n"
    with pytest.raises(ConfigErrors, match="ending: has a line break, expected none"):
        Harness(Shout, {"ending": "\n"})


def test_a_listeners_keys_are_checked_too() -> None:
    with pytest.raises(ConfigErrors, match=r"listeners.test.idle_timeout: got -1, expected a number of seconds"):
        Harness(Echo, idle_timeout=-1)
    with pytest.raises(ValueError, match="tls needs a real server"):
        Harness(Echo, tls={"certificate": "x.pem"})


def test_a_class_without_options_has_none_to_load() -> None:
    with pytest.raises(TypeError, match="Echo takes no options"):
        load_options(Echo, {})


def test_a_class_that_is_no_plugin_is_told() -> None:
    class Unmarked:
        def on_readable(self, conn: Connection) -> None: ...

    with pytest.raises(
        ConfigErrors, match=r"the plugin \"unmarked\" \(.*Unmarked\) has a method on_readable that is not"
    ):
        Harness(Unmarked)
