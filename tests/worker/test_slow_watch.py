"""Slow hooks and callbacks: told while they run and afterwards, with the right plugin, and counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.dispatcher.test_ledger import series
from tests.helpers.plugins import ask, listener, served, settle
from tests.helpers.server import ServerProcess, wait_until

# A slow call takes half a second, and goes on until the log has told of it, however late the watching thread runs.
MODULE = """
PATIENCE = 20.0


class Told(logging.Handler):
    seen = False

    def emit(self, record):
        self.seen |= "and still is" in record.getMessage()


told = Told()
logging.getLogger("poolsrv.plugins").addHandler(told)


def nap(*_):
    for _ in taking_long():
        time.sleep(0.005)


def burn(*_):
    for _ in taking_long():
        pass


def taking_long():
    told.seen = False
    begun = time.monotonic()
    while (taken := time.monotonic() - begun) < 0.5 or not told.seen and taken < PATIENCE:
        yield


class Innocent:
    @hookimpl
    def on_readable(self, conn):
        pass


class Slow:
    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            what = line.decode().strip()
            if what == "nap":
                nap()
            elif what == "burn":
                burn()
            elif what == "timer":
                conn.call_later(0.0, nap)
            elif what == "lambda":
                conn.call_later(0.0, lambda: nap())
            elif what == "done":
                conn.worker.run_blocking(time.time, done=self.done)
            elif what == "every":
                self.handle = conn.worker.every(0.01, self.each)
            conn.send(b"done\\n")

    def done(self, future):
        nap()

    def each(self):
        self.handle.cancel()
        nap()

    @hookimpl
    def on_connection_close(self, conn):
        if conn.state == "slow":
            nap()


class Quick(Slow):
    @hookimpl
    def on_connection_init(self, conn):
        time.sleep(0.01)


class Late:
    @hookimpl
    def on_connection_init(self, conn):
        conn.state = "slow"
        nap()
"""


HOOKS = ("on_connection_init", "on_readable", "on_connection_close")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("slow")
    (folder / "run").mkdir()
    listeners = [
        listener("plain", "slow"),
        listener("behind", "slow", plugins=["innocent"]),
        listener("before", "innocent", plugins=["slow"]),
        listener("late"),
        listener("derived", "quick"),
        listener("ping"),
    ]
    pool = 'workers = 1\ncontrol = "run/ctl"\nslow_hook = 0.2'
    with served(folder, MODULE, *listeners, pool=pool) as server:
        yield server


def told(server: ServerProcess, name: str, plugin: str, hook: str, after: int = 0) -> None:
    """Wait for both lines, from line ``after`` of the log on."""
    where = r"and still is, in (nap|burn|taking_long), \S+:\d+, called by"
    server.wait_for_line(rf"WARNING .*{name}: {plugin} has been in {hook} for \d+\.\d\d s, {where}", after=after)
    took = rf"WARNING .*{name}: {plugin} took \d+\.\d\d s in {hook}: the worker's other connections"
    server.wait_for_line(took, after=after)


@pytest.mark.server
@pytest.mark.parametrize("what", ["nap", "burn"])
@pytest.mark.parametrize(
    ("name", "plugin"), [("plain", "slow"), ("behind", "slow"), ("before", "slow"), ("derived", "quick")]
)
def test_a_slow_hook_is_told_with_its_plugin(server: ServerProcess, name: str, plugin: str, what: str) -> None:
    labels = {"listener": name, "plugin": plugin, "hook": "on_readable"}
    before = series(server, "poolsrv_slow_hooks", **labels)
    after = len(server.lines)
    with server.connect(name) as sock:
        assert ask(sock, what.encode()) == b"done"
    told(server, name, f"plugin '{plugin}'", "on_readable", after)
    wait_until(lambda: series(server, "poolsrv_slow_hooks", **labels) == before + 1, "the count")
    assert series(server, "poolsrv_slow_hooks", plugin="innocent") == 0


@pytest.mark.server
def test_other_hooks_too(server: ServerProcess) -> None:
    with server.connect("late"):
        told(server, "late", "plugin 'late'", "on_connection_init")


@pytest.mark.server
@pytest.mark.parametrize(
    ("what", "hook"), [("timer", "a timer"), ("lambda", "a timer"), ("every", "every"), ("done", "done")]
)
def test_callbacks_too(server: ServerProcess, what: str, hook: str) -> None:
    after = len(server.log.splitlines())
    with server.connect("plain") as sock:
        assert ask(sock, what.encode()) == b"done"
        line = rf"plugin 'slow' took \d+\.\d\d s in {hook}:"
        server.wait_for_line(line, after=after)


@pytest.mark.server
def test_whose_a_callback_is_is_not_guessed(server: ServerProcess) -> None:
    """A function of a module with two plugins of this listener in it: it may be either's."""
    after = len(server.log.splitlines())
    with server.connect("behind") as sock:
        assert ask(sock, b"timer") == b"done"
        server.wait_for_line(r"behind: a plugin took \d+\.\d\d s in a timer:", after=after)
    assert "plugin 'innocent'" not in server.log


@pytest.mark.server
def test_what_is_quick_is_not_told(server: ServerProcess) -> None:
    """On a busy machine even this may be kept from the CPU for long: then it is tried again."""

    def is_not_told() -> bool:
        after = len(server.lines)
        settle(server)
        return not any(re.search(r"ping: .*(took|has been in)", line) for line in server.lines[after:])

    wait_until(is_not_told, "a quick call of which nothing is told")


@pytest.mark.server
def test_hooks_are_timed_now_and_then(server: ServerProcess) -> None:
    def are_timed() -> bool:
        with server.connect("derived") as sock:
            ask(sock, b"quick")
        found = [series(server, "poolsrv_hook_seconds", listener="derived", hook=hook) for hook in HOOKS]
        return all(one and one["count"] > 0 for one in found)

    wait_until(are_timed, "a sample of each")


@pytest.mark.server
def test_the_lag_is_that_of_the_loop(server: ServerProcess) -> None:
    found = []

    def seen() -> bool:
        with server.connect("plain") as sock:
            ask(sock, b"nap")
        found.append(series(server, "poolsrv_slow_hooks", listener="plain"))
        return lag(server) >= 0.4

    wait_until(seen, "the lag")


def lag(server: ServerProcess) -> float:
    from tests.helpers.control import query

    return float(query(server)["status"]["workers"][0]["lag"])


@pytest.mark.server
def test_it_can_be_switched_off(tmp_path: Path) -> None:
    without_patience = MODULE.replace("PATIENCE = 20.0", "PATIENCE = 0.0")
    with served(tmp_path, without_patience, listener("plain", "slow"), pool="workers = 1\nslow_hook = 0") as server:
        with server.connect("plain") as sock:
            assert ask(sock, b"nap") == b"done"
            assert ask(sock, b"quick") == b"done"
        assert "nap" not in server.log
