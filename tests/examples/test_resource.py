"""A plugin with a resource of its own in each worker, a periodic task, and a descriptor that it watches."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.plugins import ask, listener, served
from tests.helpers.server import ServerProcess, receive_line, wait_until

pytestmark = pytest.mark.server

PLUGINS = r"""
import sqlite3


class Notes:
    # Each worker has a connection to the database, and a socket pair whose other end belongs to a thread.
    class Options(msgspec.Struct):
        database: Path
        every: float = 0.02

    def __init__(self, options):
        self.options = options
        self.connections = set()
        self.beats = 0

    @hookimpl
    def on_worker_start(self, worker):
        self.worker = worker
        self.database = sqlite3.connect(self.options.database, isolation_level=None)
        self.database.execute("create table if not exists note (worker, text)")
        self.ticker = worker.every(self.options.every, self.beat)
        self.failures = 0
        self.failing = worker.every(self.options.every, self.fail)
        self.ours, self.theirs = socket.socketpair()
        self.watch = worker.add_reader(self.ours.fileno(), self.answered)
        self.thread = threading.Thread(target=self.work)
        self.thread.start()

    @hookimpl
    def on_worker_stop(self, worker):
        self.ticker.cancel()
        self.ticker.cancel()
        self.watch.cancel()
        self.theirs.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.ours.close()
        self.theirs.close()
        self.database.execute("insert into note values (?, 'stopped')", (worker.slot,))
        self.database.close()

    def work(self):
        while data := self.theirs.recv(100):
            self.theirs.send(b"upper:" + data.upper())
            self.worker.call_soon_threadsafe(lambda: self.tell(b"from a thread\n"))

    def answered(self):
        self.tell(self.ours.recv(100))

    def tell(self, data):
        for conn in self.connections:
            conn.send(data)

    def fail(self):
        self.failures += 1
        if self.failures == 2:
            self.failing.cancel()
        1 / 0

    def beat(self):
        self.beats += 1

    @hookimpl
    def on_connection_init(self, conn):
        self.connections.add(conn)

    @hookimpl
    def on_connection_close(self, conn):
        self.connections.discard(conn)

    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            command, _, text = line.decode().strip().partition(" ")
            if command == "add":
                self.database.execute("insert into note values (?, ?)", (conn.worker.slot, text))
                conn.send(b"added\n")
            elif command == "list":
                rows = self.database.execute("select text from note order by rowid")
                conn.send(b"%r\n" % [row[0] for row in rows])
            elif command == "beats":
                conn.send(b"%d\n" % self.beats)
            elif command == "thread":
                self.ours.send(line)
            elif command == "slot":
                conn.send(b"%d\n" % conn.worker.slot)
            elif command == "block":
                self.worker.run_blocking(
                    time.monotonic, done=lambda future: conn.send(b"%r\n" % (future.result() > 0,)))


class Failsatstop:
    @hookimpl
    def on_worker_stop(self, worker):
        raise LookupError("at stop")

    @hookimpl
    def on_readable(self, conn): ...
"""

TABLE = '[listeners.notes.notes]\ndatabase = "notes.sqlite"\n'


def notes(server: ServerProcess) -> str:
    with server.connect("notes") as sock:
        return ask(sock, b"list").decode()


def test_each_worker_has_its_own_and_closes_it(tmp_path: Path) -> None:
    with served(tmp_path, PLUGINS, listener("notes") + TABLE, pool="workers = 2") as server:
        slots = set()
        for number in range(2):
            with server.connect("notes") as sock:
                slots.add(ask(sock, b"slot"))
                assert ask(sock, b"add note %d" % number) == b"added"
        assert slots == {b"0", b"1"}  # round robin
        assert notes(server) == "['note 0', 'note 1']"
        assert server.stop() == 0
    assert (tmp_path / "notes.sqlite").exists()  # relative to the config file
    with served(tmp_path / "again", PLUGINS, listener("notes") + TABLE.replace('"notes', '"../notes')) as server:
        assert notes(server) == "['note 0', 'note 1', 'stopped', 'stopped']"


def test_a_periodic_task_goes_on_though_another_fails(tmp_path: Path) -> None:
    with served(tmp_path, PLUGINS, listener("notes") + TABLE) as server, server.connect("notes") as sock:
        server.wait_for_line(r"ERROR.*\(every\)", count=2)
        server.wait_for_line("ZeroDivisionError", count=2)
        first = int(ask(sock, b"beats"))
        wait_until(lambda: int(ask(sock, b"beats")) > first + 2, "the periodic task")


def test_a_descriptor_and_a_thread_of_its_own(tmp_path: Path) -> None:
    with served(tmp_path, PLUGINS, listener("notes") + TABLE) as server, server.connect("notes") as sock:
        sock.sendall(b"thread work\n")
        assert {receive_line(sock), receive_line(sock)} == {b"upper:THREAD WORK\n", b"from a thread\n"}
        assert ask(sock, b"block") == b"True"
        sock.close()
        assert server.stop() == 0


def test_a_fault_in_on_worker_stop_is_told_and_keeps_nobody_else_from_stopping(tmp_path: Path) -> None:
    with served(tmp_path, PLUGINS, listener("failsatstop"), listener("notes") + TABLE) as server:
        assert server.stop() == 0
        server.wait_for_line("plugin 'failsatstop' failed in on_worker_stop")
    with served(tmp_path / "again", PLUGINS, listener("notes") + TABLE.replace('"notes', '"../notes')) as server:
        assert notes(server) == "['stopped']"
