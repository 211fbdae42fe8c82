"""The supervisor: pools that crash, the pid file, and what is left behind."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from poolsrv.supervisor.restarts import Restarts
from tests.helpers.puppet import Client, config, install_puppet
from tests.helpers.server import (
    ServerProcess,
    children_of,
    descendants_of,
    free_port,
    is_alive,
    listens,
    open_descriptors,
    wait_until,
)
from tools.compiled import LIBRARY

Serve = Callable[..., ServerProcess]


def test_the_supervisor_imports_nothing_but_the_standard_library() -> None:
    """After an upgrade, a later import would mix two versions of something."""
    code = (
        "import sys, poolsrv.supervisor.start\n"
        "print([name for name, module in sys.modules.items()"
        " if 'site-packages' in (getattr(module, '__file__', None) or '')"
        f" and name != {LIBRARY!r}])"  # the compiled wheel's; it is imported as a whole
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # site.py imports something itself, because of .pth files.
    bare = subprocess.run(
        [sys.executable, "-c", code.replace(", poolsrv.supervisor.start", "")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == bare.stdout


@pytest.mark.server
def test_there_is_a_supervisor_a_dispatcher_and_workers(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 3"), paths=(site,))
    assert children_of(server.pid) == [server.dispatcher_pid]
    assert len(server.worker_pids()) == 3
    assert sum("socket:" in name for name in open_descriptors(server.pid)) == 4  # signals, the link, the listener
    assert server.stop() == 0


# --- pools that end


@pytest.mark.server
def test_a_pool_that_crashes_is_replaced_and_waiting_clients_are_served(serve: Serve, site: Path) -> None:
    server = serve(config(), paths=(site,))
    dispatcher, workers = server.dispatcher_pid, server.worker_pids()
    with Client(server) as lost:
        assert lost.ask("pid")
        with Client(server) as other:
            program = int(other.ask("program"))
        os.kill(dispatcher, signal.SIGKILL)
        with Client(server) as client:
            assert int(client.ask("pid")) not in workers
        assert lost.answer() == ""
    server.wait_for_line(rf"the pool \(generation 1, pid {dispatcher}\) killed by SIGKILL after \d")
    server.wait_for_line(" ready: ", count=2)
    wait_until(lambda: not any(map(is_alive, [*workers, program])), "the end of the old pool's processes")
    assert server.dispatcher_pid != dispatcher
    assert server.stop() == 0


@pytest.mark.server
def test_workers_that_are_stuck_do_not_outlive_their_dispatcher(serve: Serve, site: Path, tmp_path: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    (worker,) = server.worker_pids()
    with Client(server) as stuck:
        assert stuck.ask(f"block {tmp_path}/never") == "blocks"
        os.kill(server.dispatcher_pid, signal.SIGKILL)
        wait_until(lambda: not is_alive(worker), "the stuck worker's end")
        with Client(server) as client:
            assert client.ask("pid")
    assert server.stop() == 0


@pytest.mark.server
def test_pools_that_crash_again_and_again_are_replaced_at_once_as_long_as_they_serve(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    for count in range(2, 8):
        os.kill(server.dispatcher_pid, signal.SIGKILL)
        server.wait_for_line(r" ready: ", count=count)
    assert "next try" not in server.log
    assert server.stop() == 0


class Clock:
    """The part of a loop that timers need."""

    def __init__(self) -> None:
        self.delays: list[float] = []

    def call_later(self, seconds: float, callback: Callable[[], object]) -> object:
        self.delays.append(seconds)
        return SimpleNamespace(cancel=lambda: None)


def test_only_a_pool_that_never_serves_is_tried_with_growing_delays() -> None:
    restarts = Restarts(Clock(), lambda: None)  # type: ignore[arg-type]
    assert [restarts.failed() for _ in range(8)] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0])
    restarts.served()
    assert restarts.failed() == pytest.approx(0.1)
    for _ in range(3000):
        assert restarts.failed() <= 5.0  # however often
        assert restarts.crashed(uptime=0.0) <= 0.1
    assert restarts.crashed(uptime=2.0) == 0.0


@pytest.mark.server
def test_a_dispatcher_that_is_told_to_stop_has_a_successor_while_it_drains(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1\ngraceful_timeout = 1000.0"), paths=(site,))
    dispatcher = server.dispatcher_pid
    with Client(server) as client:
        before = client.ask("pid")
        os.kill(dispatcher, signal.SIGTERM)
        server.wait_for_line("has been told to stop by a signal: another one is started")
        with Client(server) as other:
            assert other.ask("pid") not in ("", before)
        assert client.ask("pid") == before
        assert is_alive(dispatcher)
        client.tell("close")
        assert client.answer() == ""
    server.wait_for_line(r"generation 1 \(pid \d+\) has left: exited 0")
    assert server.stop() == 0
    assert "ERROR" not in server.log


@pytest.mark.server
def test_a_start_that_hangs_is_ended_and_says_where(serve: Serve, site: Path) -> None:
    hang(site)
    server = serve(config("workers = 1\nstart_timeout = 8.0"), paths=(site,), ready=False)
    assert server.wait() == 1
    file = re.escape(str(site / "poolsrv_puppet.py"))
    (line,) = server.lines
    assert re.fullmatch(rf"poolsrv: the pool does not serve after 8 seconds, it hangs in <module>, {file}:\d+", line), (
        server.log
    )


@pytest.mark.server
def test_workers_that_hang_while_they_start_are_not_waited_for_for_ever(serve: Serve, site: Path) -> None:
    module = site / "poolsrv_puppet.py"
    module.write_text(module.read_text().replace("self.worker = worker", "time.sleep(3600)"))
    server = serve(config("workers = 1\nstart_timeout = 8.0"), paths=(site,), ready=False)
    assert server.wait() == 1
    assert "the pool does not serve after 8 seconds" in server.lines[-1]


@pytest.mark.server
def test_a_successor_that_hangs_is_ended_and_tried_again_without_a_signal(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1\nstart_timeout = 8.0"), paths=(site,))
    sound = hang(site)
    os.kill(server.dispatcher_pid, signal.SIGKILL)
    server.wait_for_line(r"ERROR .* does not serve after 8 seconds, it hangs in <module>")
    (site / "poolsrv_puppet.py").write_text(sound)
    with Client(server) as client:
        assert client.ask("pid")
    assert server.stop() == 0


@pytest.mark.server
@pytest.mark.parametrize("served", [True, False], ids=["a successor", "the first"])
def test_hup_ends_a_start_that_hangs(serve: Serve, site: Path, served: bool) -> None:
    text = config("workers = 1\nstart_timeout = 1000.0")
    server = serve(text, paths=(site,)) if served else None
    sound = hang(site)
    if server is None:
        server = serve(text, paths=(site,), ready=False)
    else:
        os.kill(server.dispatcher_pid, signal.SIGKILL)
    wait_until((server.folder / "hangs").exists, "a plugin whose import hangs")
    (site / "poolsrv_puppet.py").write_text(sound)
    server.signal(signal.SIGHUP)
    server.wait_for_line(
        r"SIGHUP: the pool \(.*\) does not serve after \S+ s, it hangs in <module>, .*: another one is"
    )
    server.wait_for_line(r"generation \d \(pid \d+\) serves")
    with Client(server) as client:
        assert client.ask("pid")
    assert server.stop() == 0


def hang(site: Path) -> str:
    """Make the plugin's import hang; return its code from before."""
    module = site / "poolsrv_puppet.py"
    sound = module.read_text()
    module.write_text("import time, os\nopen('hangs', 'w').close()\ntime.sleep(3600)\n")
    return sound


@pytest.mark.server
def test_a_crashed_pool_whose_config_is_broken_by_now_is_tried_until_it_is_fixed(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    sound = server.file.read_text()
    server.file.write_text(sound.replace("workers", "wokers"))
    os.kill(server.dispatcher_pid, signal.SIGKILL)
    server.wait_for_line(r"ERROR .*pool\.wokers: unknown key")
    server.wait_for_line("no pool serves, connections wait: next try in")
    server.file.write_text(sound)
    server.signal(signal.SIGHUP)
    with Client(server) as client:
        assert client.ask("pid")
    assert server.stop() == 0


@pytest.mark.server
def test_a_stop_while_no_pool_serves(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1"), paths=(site,))
    server.file.write_text("")
    os.kill(server.dispatcher_pid, signal.SIGKILL)
    server.wait_for_line("next try in 0.8 s")
    assert server.stop() == 0
    assert server.lines[-1].endswith("stopped")


@pytest.mark.server
def test_pools_that_drain_are_bounded_and_the_oldest_is_ended_early(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1\ngraceful_timeout = 1000.0\nmax_draining_pools = 2"), paths=(site,))
    clients = []
    for _ in range(3):
        clients.append(Client(server))
        assert clients[-1].ask("pid")
        server.reload()
    server.wait_for_line(r"the pool \(generation 1, pid \d+\) is ended early: more than 2 would drain")
    assert clients[0].answer() == ""
    server.wait_for_line(r"generation 1 \(pid \d+\) has left")
    for client in clients[1:]:
        assert client.ask("pid")
    for client in clients:
        client.close()
    assert server.stop() == 0


@pytest.mark.server
def test_a_flood_of_reloads_leaves_few_pools(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1\ngraceful_timeout = 1000.0\nmax_draining_pools = 2"), paths=(site,))
    clients, most = [], 0
    while server.log.count("is ended early") < 3:
        clients.append(Client(server))
        clients[-1].tell("pid")
        for _ in range(10):
            server.signal(signal.SIGHUP)
        # Two drain, one serves, and one has just been told to end.
        served = set(re.findall(r" dispatcher\[(\d+)\] ready: ", server.log))
        most = max(most, sum(is_alive(int(pid)) for pid in served))
        time.sleep(0.05)
    assert len(served) > 4
    assert most <= 4
    for client in clients:
        client.close()
    server.stop()


@pytest.mark.server
def test_the_pool_ends_in_order_when_the_supervisor_is_gone(serve: Serve, site: Path) -> None:
    port = free_port()
    text = config().replace("127.0.0.1:0", f"127.0.0.1:{port}")
    server = serve(text, paths=(site,))
    pids = descendants_of(server.pid)
    with Client(server) as client:
        assert client.ask("pid")
        server.signal(signal.SIGKILL)
        server.wait_for_line("the supervisor is gone")
        wait_until(lambda: not listens(port), "an address that is free, although the pool drains")
        again = serve(text, paths=(site,))
        assert client.ask("pid")
        client.tell("close")
        assert client.answer() == ""
        assert again.stop() == 0
    wait_until(lambda: not any(map(is_alive, pids)), "the pool's end")


@pytest.mark.server
def test_a_pool_that_does_not_end_is_killed(serve: Serve, site: Path) -> None:
    module = site / "poolsrv_puppet.py"
    hook = (
        "    @hookimpl\n    def on_child_exit(self, child):\n"
        "        if child.role == 'worker':\n            open('hangs', 'w').close()\n            time.sleep(3600)\n"
    )
    module.write_text(module.read_text().replace("class Puppet:\n", "class Puppet:\n" + hook))
    server = serve(config("workers = 1\ngraceful_timeout = 1000.0"), paths=(site,))
    os.kill(server.worker_pids()[0], signal.SIGKILL)
    wait_until((server.folder / "hangs").exists, "a dispatcher that hangs")
    server.signal(signal.SIGTERM)
    server.signal(signal.SIGINT)
    server.wait_for_line(r"the pool \(generation 1, pid \d+\) does not end: killing it")
    assert server.wait() == 0


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with one worker, to which no signal makes a difference."""
    folder = tmp_path_factory.mktemp("quiet")
    with ServerProcess(config("workers = 1"), folder, paths=(install_puppet(folder / "site"),)) as running:
        yield running.wait_ready()


@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGTTIN, signal.SIGTTOU])
def test_the_dispatcher_leaves_to_the_supervisor_what_a_terminal_sends_to_all(
    quiet: ServerProcess, number: signal.Signals
) -> None:
    pids = (quiet.dispatcher_pid, *quiet.worker_pids())
    assert len(pids) == 2
    with Client(quiet) as client:
        assert client.ask("pid")
        for pid in pids:
            os.kill(pid, number)
        assert client.ask("pid")
    with Client(quiet) as client:
        assert client.ask("pid")
    assert "stopping" not in quiet.log
    assert (quiet.dispatcher_pid, *quiet.worker_pids()) == pids


@pytest.mark.server
def test_quit_stops_in_order(serve: Serve, site: Path) -> None:
    server = serve(config(), paths=(site,))
    with Client(server) as client:
        assert client.ask("pid")
        server.signal(signal.SIGQUIT)
        server.wait_for_line("SIGQUIT: stopping, 1 connection is open")
        assert client.ask("pid")
    assert server.wait() == 0


# --- the pid file


@pytest.mark.server
def test_the_pid_file_is_there_while_the_server_is(serve: Serve, site: Path) -> None:
    server = serve(config('pidfile = "server.pid"'), paths=(site,))
    path = server.folder / "server.pid"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600  # a process that can open it can lock it
    assert path.read_text() == f"{server.pid}\n"
    server.signal(signal.SIGHUP)
    server.wait_for_line(r"generation 2 \(pid \d+\) serves")
    assert path.read_text() == f"{server.pid}\n"
    assert server.stop() == 0
    assert not path.exists()


@pytest.mark.server
def test_a_second_server_with_the_same_pid_file_is_refused(serve: Serve, site: Path, tmp_path: Path) -> None:
    path = tmp_path / "server.pid"
    first = serve(config(f'pidfile = "{path}"'), paths=(site,))
    second = serve(config(f'pidfile = "{path}"'), paths=(site,), ready=False)
    assert second.wait() == 1
    assert second.lines == [f"poolsrv: pool.pidfile: {path} is another server's (pid {first.pid})"]
    assert path.read_text() == f"{first.pid}\n"
    first.signal(signal.SIGKILL)
    first.wait()
    assert path.exists()  # and no process holds it
    third = serve(config(f'pidfile = "{path}"'), paths=(site,))
    assert path.read_text() == f"{third.pid}\n"


@pytest.mark.server
def test_a_pid_file_that_can_not_be_written(serve: Serve, site: Path, tmp_path: Path) -> None:
    server = serve(config(f'pidfile = "{tmp_path}/none/server.pid"'), paths=(site,), ready=False)
    assert server.wait() == 2
    assert server.lines == [f"{server.file}: pool.pidfile: there is no directory {tmp_path}/none, expected one"]
    assert not (tmp_path / "none").exists()


@pytest.mark.server
def test_a_reload_moves_the_pid_file(serve: Serve, site: Path) -> None:
    server = serve(config('pidfile = "one.pid"'), paths=(site,))
    server.file.write_text(server.file.read_text().replace("one.pid", "two.pid"))
    server.signal(signal.SIGHUP)
    server.wait_for_line(r"generation 2 \(pid \d+\) serves")
    assert (server.folder / "two.pid").read_text() == f"{server.pid}\n"
    assert not (server.folder / "one.pid").exists()
