"""A real server for a plugin's tests: its addresses, its log, its end; and the fixtures, as an author has them."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli

from poolsrv.testing import Server, ServerFailed
from poolsrv.testing.server import config_of
from tests.helpers.distributions import install
from tests.helpers.server_mark import server_starts

ROOT = Path(__file__).parents[2]
PLUGIN = """
import os, subprocess, sys
from poolsrv import hookimpl

class Told:
    @hookimpl
    def on_readable(self, conn):
        while (line := conn.recv_line()) is not None:
            conn.log.info("told %s", line.decode().strip())
            conn.send(line)
"""


def test_the_options_of_a_config_are_toml_whatever_their_values() -> None:
    options = {"text": "😀\x7f\x9b", "number": float("inf"), "day": dt.date(2026, 1, 2), "table": {"a b\x7f": [True]}}
    table = tomli.loads(config_of("echo", options, backlog=7))["listeners"]["test"]
    assert table["echo"] == options
    assert (table["handler"], table["backlog"]) == ("echo", 7)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server_starts()
    folder = tmp_path_factory.mktemp("server")
    (folder / "told.py").write_text(PLUGIN)
    config = """
        [pool]
        workers = 2
        [listeners.one]
        bind = ["127.0.0.1:7001", "unix:one.sock"]
        handler = "told:Told"
        [listeners.two]
        bind = '[::1]:7002'
        handler = "echo"
    """
    with Server(config, folder) as server:
        yield server


@pytest.mark.server
def test_ports_are_free_ones(server: Server) -> None:
    one, unix, two = server.addresses()
    assert (one.rpartition(":")[0], unix, two.rpartition(":")[0]) == (
        "127.0.0.1",
        f"unix:{server.folder}/one.sock",
        "[::1]",
    )
    assert server.addresses("two") == [two]
    assert server.port() == int(one.rpartition(":")[2]) != 7001
    assert server.port("two") != 7002
    with pytest.raises(LookupError, match="no listener 'three'"):
        server.port("three")


@pytest.mark.server
def test_clients_and_lines_of_the_log(server: Server) -> None:
    after = len(server.lines)
    assert server.exchange(b"hello\n") == b"hello\n"
    assert server.wait_for_line(r"told (\w+)", after=after)[1] == "hello"
    with server.connect("two") as sock:
        sock.sendall(b"x")
        assert sock.recv(10) == b"x"
    with pytest.raises(ServerFailed, match=r"no line of the log matches 'never' \(waited 0.01 seconds\)"):
        server.wait_for_line("never", timeout=0.01)


@pytest.mark.server
def test_a_reload(server: Server) -> None:
    server.reload()
    assert server.exchange(b"again\n") == b"again\n"
    good = (server.folder / "poolsrv.toml").read_text()
    (server.folder / "poolsrv.toml").write_text(good.replace("echo", "ecko"))
    with pytest.raises(ServerFailed, match="did you mean"):
        server.reload()
    (server.folder / "poolsrv.toml").write_text(good)


@pytest.mark.server
def test_a_server_that_does_not_start_shows_its_log(tmp_path: Path) -> None:
    server_starts()
    with pytest.raises(ServerFailed, match='handler: no plugin "ecko" is installed'):
        Server(config_of("ecko"), tmp_path)


@pytest.mark.server
def test_what_a_server_leaves_fails_the_test(tmp_path: Path) -> None:
    server_starts()
    server = Server(config_of("echo", bind="unix:left.sock"), tmp_path)
    stray = subprocess.Popen(["sleep", "1000"], start_new_session=True)
    try:
        (tmp_path / "left.sock").rename(tmp_path / "moved.sock")
        (tmp_path / "left.sock").touch()  # in the place of one that was not removed
        with pytest.raises(ServerFailed, match=r"left behind: the socket .*left\.sock"):
            server.close()
        server.close()  # once is enough
        assert server._left({stray.pid: "another"}, []) == []
        from poolsrv.testing.server import _started

        assert server._left({stray.pid: _started(stray.pid)}, []) == [f"process {stray.pid} (sleep 1000)"]
    finally:
        stray.kill()
        stray.wait()


def test_a_config_of_a_plugin() -> None:
    text = config_of("echo", {"a": Path("/x"), "t": {"n": [1, True, 0.5]}}, pool={"workers": 2}, idle_timeout=3.0)
    assert text == (
        '[pool]\nworkers = 2\n[listeners.test]\nbind = "127.0.0.1:0"\nhandler = "echo"\nplugins = []\n'
        'idle_timeout = 3.0\n[listeners.test.echo]\na = "/x"\nt = {n = [1, true, 0.5]}\n'
    )


AUTHORS_TESTS = """
from pathlib import Path

import pytest
from poolsrv_loud import Loud


def test_in_process(poolsrv_harness):
    client = poolsrv_harness(Loud).connect()
    client.send(b"hello")
    assert client.received == b"HELLO"


def test_real(poolsrv_server):
    server = poolsrv_server(Loud, idle_timeout=5.0)
    assert server.exchange(b"hello") == b"HELLO"


def test_by_its_name_from_a_file(poolsrv_server):
    server = poolsrv_server(config=Path(__file__).with_name("poolsrv.toml"))
    assert server.exchange(b"hello", "loud") == b"HELLO"


def test_that_fails(poolsrv_server):
    with pytest.raises(TypeError):
        poolsrv_server()
    poolsrv_server("loud")
    assert False, "for its log"
"""


@pytest.mark.server
@pytest.mark.long
def test_the_fixtures_in_an_authors_tests(tmp_path: Path) -> None:
    """With warnings as errors, and in parallel."""
    server_starts()
    install(
        tmp_path,
        "poolsrv-loud",
        {"loud": "poolsrv_loud:Loud"},
        "from poolsrv import hookimpl\nclass Loud:\n    @hookimpl\n    def on_readable(self, conn):\n"
        "        conn.send(conn.recv().upper())\n",
    )
    (tmp_path / "poolsrv.toml").write_text('[listeners.loud]\nbind = "127.0.0.1:7007"\nhandler = "loud"\n')
    (tmp_path / "test_loud.py").write_text(AUTHORS_TESTS)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-n", "2", "-W", "error", "-p", "no:cacheprovider", "-c", os.devnull, "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 3 passed" in result.stdout, result.stdout + result.stderr
    assert "ready: test on 127.0.0.1:" in result.stdout  # the log of the one that failed


def test_pytest_does_not_import_the_engine_for_the_fixtures() -> None:
    code = (
        "import sys, poolsrv.testing.pytest_plugin\n"
        "print(*sorted(name for name in sys.modules if name.startswith(('poolsrv', 'msgspec', 'ssl'))))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["poolsrv", "poolsrv.testing", "poolsrv.testing.pytest_plugin"]
