"""The dispatcher: which worker gets a connection, and that none is lost; whole servers, real workers, real signals."""

from __future__ import annotations

import os
import resource
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.puppet import Client, Crowd, address_of, config, connect_until, wait_passed_on
from tests.helpers.server import ServerProcess, assert_rests, is_alive, process_state, receive_all, wait_until

pytestmark = pytest.mark.server

Serve = Callable[..., ServerProcess]
ALL_WAYS = pytest.mark.parametrize("dispatch", ["round-robin", "least-connections", "kernel"])


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    """For the thousands of clients of a burst, and for the server, which inherits the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 8192:
        pytest.skip("needs a hard limit of 8192 open descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def stop_process(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: process_state(pid) == "T", "a stopped process")


def stop_worker(server: ServerProcess, pid: int) -> None:
    """Send SIGSTOP, and wait until the dispatcher knows."""
    stop_process(pid)
    server.wait_for_line(rf"pid {pid}\) has been stopped")


def connect_many(server: ServerProcess, count: int, listener: str = "puppet") -> list[Client]:
    """Connect, which the kernel does; the client is not served yet."""
    return [Client(server, listener) for _ in range(count)]


def close_all(clients: list[Client]) -> None:
    for client in clients:
        client.close()


# --- bursts and fairness


@pytest.mark.parametrize(
    ("dispatch", "sizes"),
    [
        ("round-robin", (10, 100, 1000, 4000)),
        ("least-connections", (10, 100, 1000, 4000)),
        ("kernel", (100, 4000)),  # of fewer, the kernel may give a worker none
    ],
)
def test_all_clients_that_connect_at_once_are_answered(
    serve: Serve, site: Path, dispatch: str, sizes: tuple[int, ...]
) -> None:
    server = serve(config(f'workers = 4\ndispatch = "{dispatch}"'), paths=(site,))
    for size in sizes:
        with Crowd(address_of(server), size) as crowd:
            answers = crowd.run()
            assert len(answers) == size
            # each has been answered by a worker, and while all are open, all workers have their share
            assert {int(answer) for answer in answers} == set(server.worker_pids())
    assert server.stop() == 0


def test_round_robin_is_fair(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 4"), paths=(site,))
    with Crowd(address_of(server), 200) as crowd:  # fewer than fit in the channels: no worker is passed over
        shares = Counter(crowd.run())
    assert sorted(shares.values()) == [50] * 4


def test_round_robin_ignores_how_many_are_open(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 3"), paths=(site,))
    order = []
    clients = []
    for number in range(12):
        client = Client(server)
        order.append(client.ask("pid"))
        if number % 2:
            client.close()
        else:
            clients.append(client)
    close_all(clients)
    assert order[:3] * 4 == order
    assert len(set(order)) == 3


def test_least_connections_is_exact(serve: Serve, site: Path) -> None:
    """Whatever was closed before, the next connection goes to the worker with the fewest."""
    server = serve(config('workers = 4\ndispatch = "least-connections"'), paths=(site,))
    by_worker: dict[str, list[Client]] = {str(pid): [] for pid in server.worker_pids()}

    def connect() -> str:
        client = Client(server)
        pid = client.ask("pid")
        by_worker[pid].append(client)
        return pid

    def disconnect(client: Client) -> None:
        # The worker reports a close at the end of the turn; whoever sees the end may still be ahead of the report,
        # so one question to the same worker is asked in between.
        client.tell("close")
        assert client.answer() == ""
        client.close()

    for _ in range(20):
        connect()
    assert [len(clients) for clients in by_worker.values()] == [5] * 4
    first, second, *_ = by_worker
    for pid, count in ((first, 4), (second, 2)):
        for _ in range(count):
            disconnect(by_worker[pid].pop())
        assert by_worker[pid][0].ask("pid") == pid
    # 1, 3, 5, 5 are open: the next two go to the first, then both have three
    wanted = Counter({first: 4, second: 2})
    got = Counter(connect() for _ in range(6))
    assert got == wanted
    assert [len(clients) for clients in by_worker.values()] == [5] * 4
    for clients in by_worker.values():
        close_all(clients)


# --- workers that take nothing


def test_what_a_stopped_worker_has_not_taken_is_served_by_another(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 2"), paths=(site,))
    stopped, other = server.worker_pids()
    stop_process(stopped)  # the dispatcher may or may not know it when the first ones come
    clients = connect_many(server, 40)
    assert {client.ask("pid") for client in clients} == {str(other)}
    os.kill(stopped, signal.SIGCONT)
    server.wait_for_line(rf"pid {stopped}\) has been continued")
    connect_until(server, stopped).close()  # it runs again
    more = connect_many(server, 40)
    assert Counter(client.ask("pid") for client in more) == {str(stopped): 20, str(other): 20}
    close_all(clients + more)


@pytest.mark.parametrize("dispatch", ["round-robin", "kernel"])
def test_what_a_killed_worker_has_not_taken_is_served_by_another(serve: Serve, site: Path, dispatch: str) -> None:
    """Also if no other worker had room when it died: a sole worker, whose successor serves them."""
    server = serve(config(f'workers = 1\ndispatch = "{dispatch}"'), paths=(site,))
    (victim,) = server.worker_pids()
    stop_worker(server, victim)
    clients = connect_many(server, 30)
    os.kill(victim, signal.SIGKILL)
    assert len({client.ask("pid") for client in clients} - {str(victim)}) == 1
    close_all(clients)


def in_the_channel_of(server: ServerProcess, site: Path, tmp_path: Path) -> tuple[Client, Path, list[Client]]:
    """The sole worker blocks, and ten connections are in its channel."""
    release = tmp_path / "release"
    blocker = Client(server)
    assert blocker.ask(f"block {release}") == "blocks"
    clients = connect_many(server, 10)
    wait_passed_on(server)
    return blocker, release, clients


def test_a_client_that_is_passed_to_a_successor_sees_the_end_of_its_connection(
    serve: Serve, site: Path, tmp_path: Path
) -> None:
    """The successor is forked while the dispatcher holds these connections, and must not keep copies of them."""
    server = serve(config("workers = 1"), paths=(site,))
    (victim,) = server.worker_pids()
    blocker, _, clients = in_the_channel_of(server, site, tmp_path)
    for client in clients:
        client.tell("pid")
        client.tell("close")
    os.kill(victim, signal.SIGKILL)
    answers = [receive_all(client.socket) for client in clients]
    (successor,) = server.worker_pids()
    assert answers == [f"{successor}\n".encode()] * 10
    close_all([blocker, *clients])


def test_what_a_stuck_worker_has_not_taken_is_served_by_another(serve: Serve, site: Path, tmp_path: Path) -> None:
    server = serve(config("workers = 2"), paths=(site,))
    stuck, other = server.worker_pids()
    blocker = connect_until(server, stuck)
    release = tmp_path / "release"
    assert blocker.ask(f"block {release}") == "blocks"
    clients = connect_many(server, 40)
    assert {client.ask("pid") for client in clients} == {str(other)}
    server.wait_for_line(rf"pid {stuck}\) takes no connections")
    release.touch()
    assert blocker.answer() == "unblocked"
    server.wait_for_line(rf"pid {stuck}\) responds again")
    more = connect_many(server, 10)
    assert Counter(client.ask("pid") for client in more) == {str(stuck): 5, str(other): 5}
    close_all([blocker, *clients, *more])


def test_a_worker_that_was_stuck_and_has_nothing_to_do_responds_again(serve: Serve, site: Path, tmp_path: Path) -> None:
    """What it had not taken is gone when it comes back, from a timer, so no event would make it report."""
    server = serve(config("workers = 2"), paths=(site,))
    stuck, other = server.worker_pids()
    release = tmp_path / "release"
    blocker = connect_until(server, stuck)
    assert blocker.ask(f"block_in_timer {release}") == "blocks"
    clients = connect_many(server, 10)
    assert {client.ask("pid") for client in clients} == {str(other)}
    release.touch()
    server.wait_for_line(rf"pid {stuck}\) responds again")
    more = connect_many(server, 10)
    assert Counter(client.ask("pid") for client in more) == {str(stuck): 5, str(other): 5}
    close_all([blocker, *clients, *more])


def test_a_stuck_only_worker_of_one_listener_does_not_stop_other_listeners(
    serve: Serve, site: Path, tmp_path: Path
) -> None:
    two = config("workers = 2", "workers = 1", name="sole") + config("", name="all").replace("[pool]\n", "")
    server = serve(two, paths=(site,))
    blocker = Client(server, "sole")
    stuck = int(blocker.ask("pid"))
    release = tmp_path / "release"
    assert blocker.ask(f"block {release}") == "blocks"
    # mixed in one channel: those of "sole" must wait, those of "all" need not
    waiting = connect_many(server, 5, "sole")
    first = connect_many(server, 10, "all")
    assert str(stuck) not in {client.ask("pid") for client in first}
    second = connect_many(server, 100, "all")
    assert str(stuck) not in {client.ask("pid") for client in second}
    release.touch()
    assert blocker.answer() == "unblocked"
    assert {client.ask("pid") for client in waiting} == {str(stuck)}
    close_all([blocker, *waiting, *first, *second])


@ALL_WAYS
def test_while_all_workers_are_stopped_connections_wait_and_the_dispatcher_rests(
    serve: Serve, site: Path, dispatch: str
) -> None:
    server = serve(config(f'workers = 2\ndispatch = "{dispatch}"'), paths=(site,))
    workers = server.worker_pids()
    for pid in workers:
        stop_worker(server, pid)
    with Crowd(address_of(server), 300) as crowd:
        assert_rests(server.dispatcher_pid)
        for pid in workers:
            os.kill(pid, signal.SIGCONT)
        answers = crowd.run()
        assert len(answers) == 300
        assert {int(answer) for answer in answers} <= set(workers)
    for pid in workers:
        connect_until(server, pid).close()


def test_while_all_channels_are_full_connections_wait_and_the_dispatcher_rests(
    serve: Serve, site: Path, tmp_path: Path
) -> None:
    server = serve(config("workers = 2"), paths=(site,))
    release = tmp_path / "release"
    blockers = [connect_until(server, pid) for pid in server.worker_pids()]
    for blocker in blockers:
        assert blocker.ask(f"block {release}") == "blocks"
    with Crowd(address_of(server), 300) as crowd:
        assert_rests(server.dispatcher_pid)
        release.touch()
        assert len(crowd.run()) == 300
    for blocker in blockers:
        assert blocker.answer() == "unblocked"
    close_all(blockers)


def test_connections_without_a_worker_are_served_on_stop(serve: Serve, site: Path, tmp_path: Path) -> None:
    """One worker is killed with connections in its channel, and can't be replaced; the other one is stopped. On TERM
    it goes on, and serves them."""
    server = serve(config("workers = 2\ngraceful_timeout = 10.0"), paths=(site,))
    first, second = server.worker_pids()
    release = tmp_path / "release"
    blockers = [connect_until(server, first), connect_until(server, second)]
    for blocker in blockers:
        assert blocker.ask(f"block {release}") == "blocks"
    clients = connect_many(server, 20)
    wait_passed_on(server)
    stop_worker(server, second)
    (server.folder / "broken").touch()
    os.kill(first, signal.SIGKILL)
    server.wait_for_line(rf"pid {first}\) killed by SIGKILL")
    server.signal(signal.SIGTERM)
    release.touch()
    assert blockers[1].answer() == "unblocked"
    assert [client.ask("pid") for client in clients] == [str(second)] * 20
    close_all([*blockers, *clients])
    assert server.wait() == 0


# --- limits


def test_a_worker_near_its_descriptor_limit_loses_nothing(serve: Serve, site: Path) -> None:
    """More clients than both workers can hold: the rest are answered as others leave."""
    server = serve(config("workers = 2"), paths=(site,), descriptors=120)
    address = address_of(server)
    with Crowd(address, 500, leave=True) as crowd:
        answers = crowd.run()
        assert len(answers) == 500
        assert b"" not in answers
    assert "was lost" not in server.log


def test_when_all_workers_are_at_their_limit_connections_wait_for_others_to_close(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 2"), paths=(site,), descriptors=120)
    with Crowd(address_of(server), 400) as crowd:
        crowd.run(100)
        server.wait_for_line("close to the limit of 120 open descriptors")
        closed = 0
        while closed < 400:
            for fd in [fd for fd, answer in crowd.answers.items() if answer and fd in crowd.sockets]:
                crowd.sockets.pop(fd).close()
                closed += 1
            if crowd.sockets:
                crowd.run(min(closed + 1, 400))
        answers = list(crowd.answers.values())
        assert len(answers) == 400
        assert b"" not in answers
    assert "was lost" not in server.log


@pytest.mark.parametrize("ends", ["reload", "stop"])
def test_what_a_draining_worker_had_no_room_for_is_served_as_others_leave(
    serve: Serve, site: Path, tmp_path: Path, ends: str
) -> None:
    server = serve(config("workers = 1"), paths=(site,), descriptors=120)
    dispatcher, release = server.dispatcher_pid, tmp_path / "release"
    blocker = Client(server)
    with blocker, Crowd(address_of(server), 52) as first:
        first.run()
        assert blocker.ask(f"block {release}") == "blocks"
        with Crowd(address_of(server), 40) as crowd:  # fewer than its channel has room for
            wait_passed_on(server)
            release.touch()
            server.wait_for_line("close to the limit of 120 open descriptors")
            server.signal(signal.SIGHUP if ends == "reload" else signal.SIGTERM)
            server.wait_for_line(r"stopping, \d+ connections are open")
            assert blocker.answer() == "unblocked"
            while crowd.sockets:
                crowd.run(len(crowd.answers) + 1)
                assert b"" not in crowd.answers.values()
                for fd in [fd for fd, answer in crowd.answers.items() if answer and fd in crowd.sockets]:
                    crowd.sockets.pop(fd).close()
            assert len(crowd.answers) == 40
    wait_until(lambda: not is_alive(dispatcher), "the end of the pool that drains")
    assert "no worker has taken" not in server.log
    assert "was lost" not in server.log


def test_many_workers_with_few_descriptors(serve: Serve, site: Path, tmp_path: Path) -> None:
    """All workers but one are stuck; the dispatcher has room for what they had not taken."""
    server = serve(config("workers = 12"), paths=(site,), descriptors=130)
    release = tmp_path / "release"
    *stuck, _ = server.worker_pids()
    blockers = [connect_until(server, pid) for pid in stuck]
    for blocker in blockers:
        assert blocker.ask(f"block {release}") == "blocks"
    with Crowd(address_of(server), 300, leave=True) as crowd:
        answers = crowd.run()
        assert len(answers) == 300
        assert b"" not in answers
    release.touch()
    for blocker in blockers:
        assert blocker.answer() == "unblocked"
    close_all(blockers)
    assert "was lost" not in server.log
    assert server.stop() == 0


def test_too_few_descriptors_for_the_pool_are_an_error_at_start(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 50"), paths=(site,), descriptors=150, ready=False)
    assert server.wait() == 1
    assert server.lines == [
        "poolsrv: the limit of open descriptors is 150, and 215 are needed for 50 workers and 1 address: raise it"
        " (ulimit -n), or configure fewer workers"
    ]


def limit_descriptors(pid: int, soft: int) -> None:
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def test_without_descriptors_the_dispatcher_pauses_logs_it_once_and_goes_on(serve: Serve, site: Path) -> None:
    server = serve(config(), paths=(site,))
    limit = len(os.listdir(f"/proc/{server.dispatcher_pid}/fd"))
    before = resource.prlimit(server.dispatcher_pid, resource.RLIMIT_NOFILE)[0]
    for times in (1, 2):
        limit_descriptors(server.dispatcher_pid, limit)
        clients = connect_many(server, 10)
        server.wait_for_line("can't accept connections", count=times)
        assert_rests(server.dispatcher_pid, 1.2)  # two pauses and more
        limit_descriptors(server.dispatcher_pid, before)
        assert "" not in {client.ask("pid") for client in clients}
        close_all(clients)
    # once for each time of need, not for each try
    assert server.log.count("can't accept connections (Too many open files)") == 2


def test_max_connections_holds_over_the_whole_pool(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 3", "max_connections = 5"), paths=(site,))
    clients = connect_many(server, 12)
    assert "" not in {client.ask("pid") for client in clients[:5]}
    for client in clients[5:]:
        client.tell("pid")
    assert_rests(server.dispatcher_pid)
    for client in clients[5:]:
        client.socket.setblocking(False)
        with pytest.raises(BlockingIOError):
            client.socket.recv(1)
        client.socket.settimeout(30)
    for waiting, served in enumerate(clients[:7], 5):
        served.close()
        assert clients[waiting].answer()
    close_all(clients)


def test_max_connections_of_one_listener_does_not_affect_another(serve: Serve, site: Path) -> None:
    two = config("workers = 2", "max_connections = 1") + config("", name="other").replace("[pool]\n", "")
    server = serve(two, paths=(site,))
    held, waiting = connect_many(server, 2)
    assert held.ask("pid")
    with Crowd(address_of(server, "other"), 50) as crowd:
        assert b"" not in crowd.run()
    held.close()
    assert waiting.ask("pid")
    waiting.close()


def test_a_killed_worker_frees_its_places_below_max_connections(serve: Serve, site: Path) -> None:
    server = serve(config("workers = 1", "max_connections = 3"), paths=(site,))
    clients = connect_many(server, 6)
    (pid,) = {int(client.ask("pid")) for client in clients[:3]}  # they are the worker's, and end with it
    os.kill(pid, signal.SIGKILL)
    assert "" not in {client.ask("pid") for client in clients[3:]}
    close_all(clients)


def test_a_listener_with_one_worker_is_served_by_the_first(serve: Serve, site: Path) -> None:
    two = config("workers = 3", "workers = 1", name="sole") + config("", name="all").replace("[pool]\n", "")
    server = serve(two, paths=(site,))
    sole = connect_many(server, 10, "sole")
    everybody = connect_many(server, 9, "all")
    assert {client.ask("slot") for client in sole} == {"0"}
    assert Counter(client.ask("slot") for client in everybody) == {"0": 3, "1": 3, "2": 3}
    close_all(sole + everybody)
