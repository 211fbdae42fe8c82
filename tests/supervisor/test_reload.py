"""Reload: a second pool beside the first, which takes over whole or not at all."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.distributions import install
from tests.helpers.http import Client as HttpClient
from tests.helpers.http import cgi_listener, pool, write_programs
from tests.helpers.load import Load
from tests.helpers.puppet import Client, address_of, config
from tests.helpers.server import (
    ServerProcess,
    children_of,
    free_port,
    is_alive,
    open_descriptors,
    process_state,
    receive_all,
    receive_line,
    wait_until,
)

pytestmark = pytest.mark.server

Serve = Callable[..., ServerProcess]


# --- what takes over


def test_the_pid_stays_and_open_connections_finish(serve: Serve, site: Path) -> None:
    server = serve(config(), paths=(site,))
    workers = server.worker_pids()
    with Client(server) as client:
        before = client.ask("pid")
        server.reload()
        assert server.process.poll() is None
        with Client(server) as other:
            assert int(other.ask("pid")) not in workers
        assert client.ask("pid") == before  # and it may go on for as long as graceful_timeout allows
        client.tell("close")
        assert client.answer() == ""
    server.wait_for_line(r"generation 1 \(pid \d+\) has left: exited 0")
    assert children_of(server.pid) == [server.dispatcher_pid]
    assert server.stop() == 0


def test_open_connections_end_at_the_deadline_of_the_old_config(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1\ngraceful_timeout = 0.3"), paths=(site,))
    with Client(server) as client:
        assert client.ask("pid")
        server.file.write_text(server.file.read_text().replace("0.3", "1000.0"))
        server.reload()
        assert client.answer() == ""
    server.wait_for_line(r"generation 1 \(pid \d+\) has left")


def test_connections_are_numbered_over_all_generations(serve: Serve, tmp_path: Path) -> None:
    module = """
        from poolsrv import hookimpl
        class Number:
            @hookimpl
            def on_connection_init(self, conn):
                conn.send(b"%d\\n" % conn.id)
            @hookimpl
            def on_readable(self, conn):
                conn.recv()
    """
    install(tmp_path / "site", "poolsrv-number", {"number": "poolsrv_number:Number"}, module)
    server = serve(config().replace('"puppet"', '"number"'), paths=(tmp_path / "site",))
    numbers = []
    for _ in range(3):
        with server.connect("puppet") as sock:
            numbers.append(int(receive_line(sock)))
        server.reload()
    assert sorted(set(numbers)) == numbers


def test_a_new_config_and_new_code_take_over(serve: Serve, tmp_path: Path) -> None:
    site = tmp_path / "site"
    module = """
        from poolsrv import hookimpl
        class Version:
            @hookimpl
            def on_connection_init(self, conn):
                conn.send(b"one")
                conn.close()
            @hookimpl
            def on_readable(self, conn):
                conn.recv()
    """
    install(site, "poolsrv-version", {"version": "poolsrv_version:Version"}, module)
    text = '[pool]\nworkers = 1\n[listeners.a]\nbind = "127.0.0.1:0"\nhandler = "version"\n'
    server = serve(text, paths=(site,))
    address = server.addresses("a")[0]
    assert server.exchange("a", b"") == b"one"
    code = site / "poolsrv_version.py"
    code.write_text(code.read_text().replace("one", "two"))
    server.file.write_text(
        text.replace("workers = 1", "workers = 3") + '[listeners.b]\nbind = "127.0.0.1:0"\nhandler = "echo"\n'
    )
    server.reload()
    assert server.exchange("a", b"") == b"two"
    assert len(server.worker_pids()) == 3
    after = [line for line in server.lines if " ready: " in line][-1]
    assert f"a on {address}, b on 127.0.0.1:" in after  # the port that the kernel has chosen stays


def test_an_address_that_has_another_handler_now_moves_without_a_gap(serve: Serve, site: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    text = f'[pool]\nworkers = 1\n[listeners.one]\nbind = "unix:{path}"\nhandler = "puppet"\n'
    server = serve(text, paths=(site,))
    inode = path.stat().st_ino
    server.file.write_text(text.replace("one", "other").replace('"puppet"', '"echo"'))
    server.reload()
    assert path.stat().st_ino == inode
    assert server.exchange("one", b"hello") == b"hello"  # the name in the first line with "ready"
    assert server.stop() == 0
    assert not path.exists()


def test_an_address_that_is_configured_no_longer_is_closed(serve: Serve, site: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = serve(config("workers = 1"), paths=(site,))
    port = free_port()
    both = server.file.read_text() + f'[listeners.two]\nbind = ["unix:{path}", "127.0.0.1:{port}"]\nhandler = "echo"\n'
    before = len(open_descriptors(server.pid))
    server.file.write_text(both)
    server.reload()
    with socket.create_connection(("127.0.0.1", port)) as sock:
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b""
    server.file.write_text(config("workers = 1"))
    server.reload()
    assert not path.exists()
    server.wait_for_line(r"generation 2 \(pid \d+\) has left")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    wait_until(lambda: len(open_descriptors(server.pid)) == before, "descriptors that are closed")


def test_a_unix_socket_whose_file_is_gone_is_made_again(serve: Serve, site: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    server = serve(config("workers = 1").replace("127.0.0.1:0", f"unix:{path}"), paths=(site,))
    path.unlink()
    server.reload()
    with Client(server) as client:
        assert client.ask("pid")
    assert server.stop() == 0
    assert not path.exists()


def test_the_mode_of_a_unix_socket_follows_the_config(serve: Serve, site: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    text = config("workers = 1", "socket_mode = 0o600").replace("127.0.0.1:0", f"unix:{path}")
    server = serve(text, paths=(site,))
    server.file.write_text(text.replace("0o600", "0o666"))
    server.reload()
    assert path.stat().st_mode & 0o777 == 0o666


# --- what fails

STARTS_NOT = """
    import os, time
    from poolsrv import hookimpl
    class P:
        @hookimpl
        def on_worker_start(self, worker):
            {start}
        @hookimpl
        def on_readable(self, conn):
            conn.send(conn.recv())
"""

BROKEN = {
    "no TOML": ("[pool", r"line \d+, column \d+"),
    "an unknown key": ("[pool]\nwokers = 1\n", "pool.wokers: unknown key"),
    "a wrong type": ('[pool]\nworkers = "many"\n', "pool.workers: got"),
    "no listeners": ("[pool]\nworkers = 1\n", "no listeners, expected"),
    "an unknown plugin": ('[listeners.a]\nbind = ":0"\nhandler = "ecko"\n', 'no plugin "ecko" is installed'),
    "a plugin that can not be imported": ('[listeners.a]\nbind = ":0"\nhandler = "broken"\n', "can't be imported"),
    "a wrong option": ('[listeners.a]\nbind = ":0"\nhandler = "cgi"\n[listeners.a.cgi]\nrot = "x"\n', "rot: unknown"),
    "an address in use": ('[listeners.a]\nbind = "127.0.0.1:{taken}"\nhandler = "echo"\n', "another process listens"),
    "no such address": ('[listeners.a]\nbind = "192.0.2.1:7007"\nhandler = "echo"\n', "no such address"),
    "a pid file in use": (
        '[pool]\npidfile = "{pidfile}"\n[listeners.a]\nbind = "127.0.0.1:0"\nhandler = "echo"\n',
        "pool.pidfile: .* is another server's",
    ),
    "workers that can not start": (
        '[pool]\nworkers = 1\n[listeners.a]\nbind = "127.0.0.1:0"\nhandler = "fails"\n',
        r"worker 0 could not start",
    ),
    "workers that end the process": (
        '[pool]\nworkers = 1\n[listeners.a]\nbind = "127.0.0.1:0"\nhandler = "dies"\n',
        r"worker 0 could not start",
    ),
    "a plugin that ends the pool": ('[listeners.a]\nbind = ":0"\nhandler = "exits"\n', r"exited 7 before it served"),
}


@pytest.mark.long
def test_fifty_reloads_with_broken_configs_change_nothing_and_each_error_is_named(
    serve: Serve, site: Path, tmp_path: Path
) -> None:
    install(site, "poolsrv-broken", {"broken": "poolsrv_broken:P"}, "import nothing_of_this_name\n")
    install(site, "poolsrv-exits", {"exits": "poolsrv_exits:P"}, "import os\nos._exit(7)\n")
    install(site, "poolsrv-fails", {"fails": "poolsrv_fails:P"}, STARTS_NOT.format(start="raise OSError('no')"))
    install(site, "poolsrv-dies", {"dies": "poolsrv_dies:P"}, STARTS_NOT.format(start="os._exit(9)"))
    other_pidfile = tmp_path / "other.pid"
    other = serve(config(f'workers = 1\npidfile = "{other_pidfile}"'), paths=(site,))
    server = serve(config('workers = 2\npidfile = "server.pid"'), paths=(site,))
    dispatcher, workers = server.dispatcher_pid, server.worker_pids()
    descriptors = open_descriptors(server.pid)
    taken = address_of(other)[1]
    kinds = list(BROKEN)
    # Workers that can't start are tried again for seconds: so those configs come once, the others in rotation.
    slow = [kind for kind in kinds if kind.startswith("workers")]
    quick = [kind for kind in kinds if kind not in slow]
    order = slow + [quick[number % len(quick)] for number in range(50 - len(slow))]
    with Client(server) as client:
        assert client.ask("pid")
        for kind in order:
            text, expected = BROKEN[kind]
            server.file.write_text(text.replace("{taken}", str(taken)).replace("{pidfile}", str(other_pidfile)))
            after = len(server.lines)
            server.signal(signal.SIGHUP)
            server.wait_for_line(r"the reload has failed, with \d+ errors?; nothing has changed", after=after)
            server.wait_for_line(rf"ERROR +supervisor\[\d+\] (reload: )?.*{expected}", after=after)
            assert client.ask("pid")
        assert server.dispatcher_pid == dispatcher
        assert server.worker_pids() == workers
        wait_until(lambda: children_of(server.pid) == [dispatcher], "the end of what was started in vain")
        wait_until(lambda: open_descriptors(server.pid) == descriptors, "descriptors as before")
        assert (server.folder / "server.pid").read_text() == f"{server.pid}\n"
    assert server.log.count("ready: ") == 1
    server.file.write_text(config())
    server.reload()
    with Client(server) as client:
        assert int(client.ask("pid")) not in workers


def test_every_error_of_a_config_is_in_the_log(serve: Serve, site: Path) -> None:
    server = serve(config(), paths=(site,))
    server.file.write_text(
        "[pool]\n" + "".join(f"key{n} = 1\n" for n in range(45)) + '[listeners.a]\nbind = "x"\nhandler = "echo"\n'
    )
    server.signal(signal.SIGHUP)
    server.wait_for_line("the reload has failed, with 46 errors")
    for n in range(45):
        assert re.search(rf"reload: .*poolsrv\.toml: pool\.key{n}: unknown key", server.log)
    assert "listeners.a.bind" in server.log


# --- when


def test_reloads_that_overlap_are_safe_and_the_last_config_counts(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    for count in range(2, 12):
        draft = server.file.with_suffix(".new")
        draft.write_text(config(f"workers = {count % 3 + 1}"))
        draft.rename(server.file)  # so that a half-written file is never read
        server.signal(signal.SIGHUP)
        time.sleep(random.random() * 0.05)  # at any moment
    wait_until(lambda: len(server.worker_pids()) == 11 % 3 + 1 and len(children_of(server.pid)) == 1, "the last config")
    with Client(server) as client:
        assert client.ask("pid")
    assert server.stop() == 0
    assert "ERROR" not in server.log


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process handles a signal by now: the first pool's interpreter starts before the supervisor does."""
    caught = re.search(r"^SigCgt:\s*(\w+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


def test_a_reload_before_the_server_serves(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,), ready=False)
    wait_until(lambda: catches(server.pid, signal.SIGHUP) and children_of(server.pid), "a pool that starts")
    server.signal(signal.SIGHUP)
    server.wait_for_line(r"generation 2 \(pid \d+\) serves")
    assert server.stop() == 0


def test_a_reload_while_the_server_stops_changes_nothing(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    with Client(server) as client:
        assert client.ask("pid")
        server.signal(signal.SIGTERM)
        server.wait_for_line("stopping")
        server.signal(signal.SIGHUP)
        server.wait_for_line("SIGHUP: stopping already")
        assert client.ask("pid")
    assert server.wait() == 0


@pytest.mark.parametrize("numbers", [[signal.SIGTERM], [signal.SIGTERM, signal.SIGINT]], ids=["once", "twice"])
def test_a_stop_while_a_reload_hangs(serve: Serve, site: Path, numbers: list[signal.Signals]) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    site.joinpath("poolsrv_puppet.py").write_text("import time, os\nopen('hangs', 'w').close()\ntime.sleep(3600)\n")
    server.signal(signal.SIGHUP)
    wait_until((server.folder / "hangs").exists, "a plugin whose import hangs")
    server.signal(signal.SIGHUP)
    server.wait_for_line("another reload follows")
    for number in numbers:
        server.signal(number)
    assert server.wait() == 0
    assert server.lines[-1].endswith("stopped")


def test_a_new_pool_that_is_killed_before_it_serves(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    dispatcher = server.dispatcher_pid
    module = site / "poolsrv_puppet.py"
    sound = module.read_text()
    module.write_text("import time, os\nopen('hangs', 'w').close()\ntime.sleep(3600)\n")
    server.signal(signal.SIGHUP)
    wait_until((server.folder / "hangs").exists, "a plugin whose import hangs")
    (new,) = set(children_of(server.pid)) - {dispatcher}
    os.kill(new, signal.SIGKILL)
    server.wait_for_line("reload: the pool killed by SIGKILL before it served")
    with Client(server) as client:
        assert client.ask("pid")
    module.write_text(sound)
    server.reload()
    assert server.stop() == 0


def test_a_pool_that_crashes_while_a_new_one_starts_is_followed_by_that(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    dispatcher = server.dispatcher_pid
    module = site / "poolsrv_puppet.py"
    gate = "import os, time\nopen('waits', 'w').close()\nwhile not os.path.exists('go'):\n    time.sleep(0.005)\n"
    module.write_text(gate + module.read_text())
    server.signal(signal.SIGHUP)
    wait_until((server.folder / "waits").exists, "a new pool that starts")
    os.kill(dispatcher, signal.SIGKILL)
    server.wait_for_line("killed by SIGKILL after")
    (server.folder / "go").touch()
    with Client(server) as client:
        assert client.ask("pid")
    wait_until(lambda: len(children_of(server.pid)) == 1, "the end of the old pool's processes")
    assert server.stop() == 0


def test_an_old_pool_that_is_stopped_or_stuck_is_ended_all_the_same(serve: Serve, site: Path, tmp_path: Path) -> None:
    server = serve(config("workers = 1\ngraceful_timeout = 0.0"), paths=(site,))
    (worker,) = server.worker_pids()
    with Client(server) as client:
        assert client.ask(f"block {tmp_path}/never") == "blocks"
        server.reload()
        server.wait_for_line(rf"worker 0 \(pid {worker}\) does not end: killing it")
    server.wait_for_line(r"generation 1 \(pid \d+\) has left")
    assert not is_alive(worker)


def test_clients_in_the_kernels_queue_are_served_by_the_new_pool(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    os.kill(server.dispatcher_pid, signal.SIGSTOP)
    wait_until(lambda: process_state(server.dispatcher_pid) == "T", "a dispatcher that has stopped")
    clients = [Client(server) for _ in range(20)]
    for client in clients:
        client.tell("pid")
    server.reload()
    for client in clients:
        assert client.answer()
        client.close()


# --- HTTP


@pytest.fixture
def root(tmp_path: Path) -> Path:
    programs = {
        "hello.sh": "printf 'Content-Type: text/plain\\n\\nhello'",
        "slow.sh": "sleep 0.05; printf 'Content-Type: text/plain\\n\\nslow'",
    }
    return write_programs(tmp_path / "cgi-bin", programs)


def test_an_idle_connection_is_answered_once_more_and_then_closed(serve: Serve, root: Path) -> None:
    server = serve(pool() + cgi_listener(root=root))
    with HttpClient(server) as client, HttpClient(server) as idle:
        assert client.get("/hello.sh").body == b"hello"
        assert idle.get("/hello.sh").body == b"hello"
        server.reload()
        response = client.get("/hello.sh")
        while b"connection" not in response.headers:  # its worker does not know of the stop yet
            response = client.get("/hello.sh")
        assert response.body == b"hello"
        assert response.headers[b"connection"] == b"close"
        assert client.sock.recv(1) == b""
        assert idle.sock.recv(1) == b""  # after two seconds
    server.wait_for_line(r"generation 1 \(pid \d+\) has left")


@pytest.mark.long
@pytest.mark.parametrize(
    "dispatches",
    [["round-robin"], ["kernel", "kernel", "round-robin", "least-connections"]],
    ids=["one way", "all ways"],
)
def test_reloads_under_load_fail_no_request(serve: Serve, root: Path, tmp_path: Path, dispatches: list[str]) -> None:
    """Twenty as it is, and six with other numbers of workers and other ways to dispatch. Programs run and files are
    sent meanwhile.
    """

    def text(number: int) -> str:
        way = dispatches[number % len(dispatches)]
        workers = 2 if len(dispatches) == 1 else 1 + number % 3
        return pool(workers=workers).replace("[pool]\n", f'[pool]\ndispatch = "{way}"\n') + listener

    files = tmp_path / "files"
    files.mkdir()
    (files / "hello.txt").write_text("hello")
    listener = cgi_listener(root=root, prefix="/cgi-bin/", files=files)
    server = serve(text(0))
    with Load(address_of(server, "www"), "/cgi-bin/hello.sh", "/hello.txt") as load:
        for number in range(20 if len(dispatches) == 1 else 6):
            before = load.count
            server.file.write_text(text(number + 1))
            server.reload()
            wait_until(partial(load.has_gone_on, before), "a request that is answered")
    assert load.failures == []
    assert set(load.answers) == {b"hello"}
    assert "ERROR" not in server.log
    assert server.stop() == 0


@pytest.mark.long
def test_workers_killed_while_they_drain_lose_their_own_requests_alone(serve: Serve, root: Path) -> None:
    """With each of twenty workers. The log says what is lost, and no client loses more."""
    server = serve(pool(workers=2) + cgi_listener(root=root))
    kills = 0
    with Load(address_of(server, "www"), "/slow.sh", keep_alive=4, single=4) as load:
        while kills < 20:
            leaving = server.worker_pids()
            before = load.count
            wait_until(partial(load.has_gone_on, before + 4), "requests that are answered")
            server.reload()
            for pid in leaving:
                try:
                    os.kill(pid, signal.SIGKILL)
                    kills += 1
                except ProcessLookupError:
                    pass  # it was faster
    assert server.stop() == 0
    # A worker that was late has left some in its channel, and none was left to take these.
    told = r"killed by SIGKILL, (\d+) connection.* lost|: (\d+) connections? that no worker has taken"
    lost = sum(int(taken or waiting) for taken, waiting in re.findall(told, server.log))
    assert len(load.failures) <= lost
    assert set(load.answers) == {b"slow"}
