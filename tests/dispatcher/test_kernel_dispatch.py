"""Kernel dispatch: workers that accept by themselves, and the dispatcher, which does it in their place."""

from __future__ import annotations

import json
import os
import signal
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from poolsrv.config.model import ListenerConfig, PoolConfig
from poolsrv.core.accept_queue import accept_queue
from poolsrv.core.event_loop import EventLoop
from poolsrv.core.listening_sockets import ListeningSocket
from poolsrv.dispatcher.acceptor import Acceptor
from poolsrv.dispatcher.bind import bind
from poolsrv.dispatcher.bound import Bound
from poolsrv.dispatcher.dispatcher import Dispatcher
from poolsrv.dispatcher.kernel_dispatch import KernelDispatch
from poolsrv.dispatcher.listener import Listener
from poolsrv.dispatcher.shares import Shares
from poolsrv.dispatcher.worker_slot import STALL_TIME, WorkerSlot
from poolsrv.errors import StartError
from poolsrv.ipc.worker_channel import DRAINING, FULL, SERVING, DispatcherEnd, Report, WorkerEnd
from poolsrv.net.access_list import parse as network
from poolsrv.net.addresses import parse
from tests.helpers.command_line import invoke
from tests.helpers.puppet import Client, Crowd, address_of, config, connect_until
from tests.helpers.server import ServerProcess, process_state, wait_until

Serve = Callable[..., ServerProcess]
KERNEL = PoolConfig(workers=3, dispatch="kernel")


def listener_of(*addresses: str, **keys: Any) -> ListenerConfig:
    return ListenerConfig("a", tuple(parse(address, Path("/")) for address in addresses), "echo", **keys)


def held_by(group: list[Bound]) -> dict[str, ListeningSocket]:
    return {one.held.key: one.held for one in group}


# --- the sockets of an address


@pytest.fixture
def bound() -> Iterator[Callable[..., list[Bound]]]:
    """``bound(listener, held={}, pool=KERNEL)``: its sockets, which are closed after the test."""
    all_of_them: list[Bound] = []

    def make(
        listener: ListenerConfig, held: dict[str, ListeningSocket] | None = None, pool: PoolConfig = KERNEL, **rest: Any
    ) -> list[Bound]:
        (group,) = bind((listener,), held or {}, shares=Shares(pool, **rest))
        all_of_them.extend(group)
        return group

    yield make
    for one in all_of_them:
        one.socket.close()


Bind = Callable[..., list[Bound]]


def does_listen(sock: socket.socket) -> bool:
    return bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", ":0"])
def test_each_worker_has_a_socket_of_the_same_port_and_only_the_first_one_listens_at_once(
    bound: Bind, address: str
) -> None:
    group = bound(listener_of(address))
    assert [one.share for one in group] == [0, 1, 2]
    assert len({one.socket.getsockname() for one in group}) == 1
    assert [does_listen(one.socket) for one in group] == [True, False, False]
    assert [one.held.listens for one in group] == [True, False, False]
    assert not any(one.socket.getblocking() for one in group)


def test_a_listener_with_one_worker_has_one_socket(bound: Bind) -> None:
    (one,) = bound(listener_of("127.0.0.1:0", workers=1))
    assert one.share == 0


@pytest.mark.parametrize(
    ("workers", "dispatch", "shares"),
    [(5, "kernel", [0, 1, 2, 3, 4]), (1, "kernel", [0, 1, 2]), (2, "round-robin", [None] * 3)],
)
def test_a_reload_keeps_all_sockets_whatever_it_changes(
    bound: Bind, workers: int, dispatch: Any, shares: list[int | None]
) -> None:
    listener = listener_of("127.0.0.1:0")
    before = bound(listener)
    after = bound(listener, held_by(before), PoolConfig(workers=workers, dispatch=dispatch))
    assert [one.share for one in after] == shares
    assert [one.held for one in after[:3]] == [one.held for one in before]
    assert [one.is_new for one in after] == [False] * 3 + [True] * (len(shares) - 3)


def test_an_address_of_another_dispatch_gets_further_sockets(bound: Bind) -> None:
    listener = listener_of("127.0.0.1:0")
    (one,) = bound(listener, pool=PoolConfig(workers=3))
    group = bound(listener, {one.held.key: one.held})
    assert [one.share for one in group] == [0, 1, 2]
    assert group[0].held is one.held


def test_an_address_that_another_process_listens_on_is_in_use(bound: Bind) -> None:
    first = bound(listener_of("127.0.0.1:0"))[0]
    with pytest.raises(StartError, match="another process listens there"):
        bound(listener_of(str(first)))


def test_what_can_not_be_multiplied_is_the_dispatchers(bound: Bind, tmp_path: Path) -> None:
    (unix,) = bound(listener_of(f"unix:{tmp_path}/s"))
    (shared,) = bound(listener_of("127.0.0.1:0", reuse_port=True))
    (old,) = bound(listener_of("127.0.0.1:0"), is_supported=False)
    assert [one.share for one in (unix, shared, old)] == [None] * 3
    assert unix.why_dispatched == "a unix socket"
    assert shared.why_dispatched == "shared with other servers (reuse_port)"
    assert old.why_dispatched == "the supervisor is of an older version: restart the server"


def test_if_further_sockets_can_not_be_bound_the_dispatcher_accepts(
    bound: Bind, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = listener_of("127.0.0.1:0")
    monkeypatch.setattr("poolsrv.dispatcher.shares.MOST_SOCKETS", 2)
    (one,) = bound(listener)
    assert one.share is None
    assert one.why_dispatched == "it can't be bound several times: there would be more than 2 sockets"


# --- who accepts


class Pool:
    """A pool of slots without processes, whose dispatcher is real."""

    def __init__(self, group: list[Bound], workers: int, **keys: Any) -> None:
        self.loop = EventLoop()
        self.slots = [WorkerSlot(index) for index in range(workers)]
        self.workers: list[WorkerEnd] = []
        config = listener_of("127.0.0.1:0", **keys)
        self.listener = Listener(self.loop, 0, config, group, self.slots, "kernel")
        self.dispatcher = Dispatcher(self.loop, [self.listener], self.slots)
        self.acceptor = Acceptor(self.loop, self.dispatcher, [self.listener], 1)
        self.kernel = KernelDispatch(self.loop, [self.listener], self.acceptor.callback, self.acceptor.allocate)
        self.dispatcher.kernel = self.kernel
        self.address = group[0].socket.getsockname()
        self.clients: list[socket.socket] = []
        for slot in self.slots:
            self.start(slot)
        self.acceptor.open()
        self.kernel.open()

    def start(self, slot: WorkerSlot) -> WorkerEnd:
        slot.channel = DispatcherEnd()
        slot.own_sockets = self.kernel.numbers_for(slot)
        slot.state = SERVING
        worker = WorkerEnd(slot.channel._worker_socket)
        self.workers.append(worker)
        self.kernel.changed(slot)
        return worker

    def taken_over(self) -> list[int]:
        return [own.number for own in self.kernel.sockets if own.taken_over]

    def connect(self, count: int) -> None:
        for _ in range(count):
            self.clients.append(socket.create_connection(self.address))

    def connect_to_each(self) -> None:
        """Connect until a client waits at each socket: which one it is, the kernel chooses."""
        while not all((queue := accept_queue(own.bound.socket)) and queue.queued for own in self.kernel.sockets):
            self.connect(1)

    def take(self, index: int) -> None:
        while (connections := self.workers[index].receive()) is not None:
            for connection in connections:
                os.close(connection.fd)

    def say(self, report: Report, index: int = 0) -> bool:
        assert self.workers[index].report(report)
        return self.dispatcher.on_report(self.slots[index])

    def close(self) -> None:
        self.acceptor.close()
        self.kernel.close()
        self.loop.turn(0)  # closes what has ended
        for slot in self.slots:
            while slot.channel is not None and (connections := slot.channel.reclaim()) is not None:
                for connection in connections:
                    os.close(connection.fd)
            if slot.channel is not None:
                slot.channel.close()
        self.dispatcher.drop_unassigned()
        for client in self.clients:
            client.close()
        self.loop.close()


@pytest.fixture
def pool_of(bound: Bind) -> Iterator[Callable[..., Pool]]:
    pools: list[Pool] = []

    def make(sockets: int, workers: int, **keys: Any) -> Pool:
        group = bound(listener_of("127.0.0.1:0"), pool=PoolConfig(workers=sockets, dispatch="kernel"))
        pools.append(Pool(group, workers, **keys))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


MakePool = Callable[..., Pool]


@pytest.mark.parametrize(
    ("sockets", "workers", "owned"),
    [(3, 3, [{0}, {1}, {2}]), (5, 2, [{0, 2, 4}, {1, 3}]), (2, 3, [{0}, {1}, {0}]), (1, 2, [{0}, {0}])],
)
def test_sockets_are_shared_out(pool_of: MakePool, sockets: int, workers: int, owned: list[set[int]]) -> None:
    pool = pool_of(sockets, workers)
    assert [slot.own_sockets for slot in pool.slots] == owned
    assert pool.taken_over() == []


def test_the_dispatcher_accepts_for_a_worker_that_does_not(pool_of: MakePool) -> None:
    pool = pool_of(2, 2)
    first, second = pool.slots
    for leave, come_back in (
        (lambda: pool.say(Report(0, [], FULL, None)), lambda: pool.say(Report(0, [], SERVING, None))),
        (lambda: pool.dispatcher.worker_stopped(first, True), lambda: pool.dispatcher.worker_stopped(first, False)),
    ):
        leave()
        assert pool.taken_over() == [0]
        pool.connect_to_each()
        pool.loop.turn(1)
        pool.loop.turn(0.01)
        assert second.connections  # those of the first one's queue
        assert pool.kernel.sockets[0].passed_on == len(second.connections)
        assert not first.connections
        pool.say(Report(len(second.waiting), list(second.connections), None, None), 1)
        pool.take(1)
        pool.kernel.sockets[0].passed_on = 0
        come_back()
        assert pool.taken_over() == []
    assert pool.listener.counts.open == 0


def test_a_successor_gets_the_sockets_of_a_dead_or_draining_worker(pool_of: MakePool) -> None:
    pool = pool_of(2, 2)
    first = pool.slots[0]
    pool.say(Report(0, [], DRAINING, None))
    assert pool.taken_over() == [0]
    successor = WorkerSlot(0)
    pool.dispatcher.replace(first, successor)
    pool.start(successor)
    assert successor.own_sockets == {0}
    assert pool.taken_over() == []
    pool.dispatcher.worker_ended(successor)
    assert pool.taken_over() == [0]
    pool.start(successor)
    assert pool.taken_over() == []
    pool.slots.append(successor)


def test_a_removed_workers_socket_is_the_dispatchers_until_another_worker_starts(pool_of: MakePool) -> None:
    pool = pool_of(2, 2)
    first, second = pool.slots
    pool.dispatcher.remove(second)
    assert pool.taken_over() == [1]
    pool.dispatcher.worker_ended(first)
    pool.start(first)
    assert first.own_sockets == {0, 1}
    assert pool.taken_over() == []


def test_a_worker_that_does_not_accept_is_stalled_if_another_one_responds(pool_of: MakePool) -> None:
    pool = pool_of(2, 2)
    pool.connect_to_each()
    clock = pool.loop
    owns = pool.kernel.sockets

    def look_after(seconds: float) -> None:
        clock.now += seconds
        pool.kernel._look()

    clock.dispatch(clock.wait(1))
    assert min(own.waits_since for own in owns) > 0
    look_after(STALL_TIME * 2)
    assert pool.taken_over() == []  # nobody responds
    pool.slots[1].last_report_at = clock.now
    look_after(STALL_TIME / 2)
    assert pool.taken_over() == [0]
    assert pool.slots[0].stalled
    pool.say(Report(0, [], None, None))
    assert pool.taken_over() == []
    assert not pool.slots[0].stalled


def test_ids_are_granted_in_blocks_and_a_grant_that_was_lost_is_sent_again(pool_of: MakePool) -> None:
    pool = pool_of(1, 1)
    (slot,), (worker,) = pool.slots, pool.workers
    assert worker.receive() == []
    grant = worker.grant
    assert grant is not None
    half = (grant.end - grant.first) // 2
    assert pool.say(Report(0, [], None, None, accepted=[(0, half + 1)]))
    assert list(slot.connections) == list(range(grant.first, grant.first + half + 1))
    assert (pool.listener.counts.open, pool.listener.counts.accepted, slot.given) == (half + 1,) * 3
    assert slot.channel is not None
    assert slot.channel.reclaim() == []  # the next grant
    assert slot.channel.grant_is_lost
    pool.dispatcher.worker_stopped(slot, False)
    assert worker.receive() == []
    assert worker.grant is not None
    assert worker.grant.first >= grant.end
    rest = grant.end - grant.first - half - 1
    assert pool.say(Report(0, [worker.grant.first], None, None, accepted=[(0, rest), (0, 1)]))
    assert len(slot.connections) == half + 1 + rest
    assert pool.dispatcher.worker_ended(slot) == half + 1 + rest
    assert pool.listener.counts.open == 0


REFUSED = (0, "deny", ("192.0.2.1", 7))


def test_what_a_worker_has_refused_is_counted(pool_of: MakePool) -> None:
    pool = pool_of(1, 1, deny=(network("192.0.2.0/24"),))
    assert pool.say(Report(0, [], None, None, refused=[REFUSED, REFUSED]))
    assert pool.listener.refusals == {"deny": 2}
    assert [one.peer for one in pool.dispatcher.recent_refusals] == ["192.0.2.1:7"] * 2


@pytest.mark.parametrize(
    "report",
    [
        Report(0, [], None, None, accepted=[(1, 1)]),
        Report(0, [], None, None, accepted=[(7, 1)]),
        Report(0, [], None, None, accepted=[(0, 2**40)]),
        Report(0, [], None, None, accepted=[(0, 1023), (0, 2)]),
        Report(0, [2], None, None, accepted=[(0, 1)]),
        Report(0, [1, 1], None, None, accepted=[(0, 1)]),
        Report(0, [], None, None, refused=[(1, "deny", ("192.0.2.1", 7))]),
        Report(0, [], None, None, refused=[(0, "max_connections", ("192.0.2.1", 7))]),
        Report(0, [], None, None, refused=[(0, "deny", ("192.0.2.1", 70000))]),
        Report(0, [], None, None, accepted=[(0, 1)] * 257),
    ],
)
def test_a_worker_that_lies_about_what_it_has_accepted_is_killed(pool_of: MakePool, report: Report) -> None:
    pool = pool_of(2, 2)
    killed: list[WorkerSlot] = []
    pool.dispatcher.kill_worker = killed.append
    assert not pool.say(report)
    assert killed == [pool.slots[0]]
    assert pool.taken_over() == [0]
    assert pool.listener.counts.open == 0


def test_a_worker_can_not_hold_more_connections_than_it_can_have(
    pool_of: MakePool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("poolsrv.dispatcher.report_check.most_open", lambda: 10)
    pool = pool_of(2, 2)
    killed: list[WorkerSlot] = []
    pool.dispatcher.kill_worker = killed.append
    assert pool.say(Report(0, [], None, None, accepted=[(0, 10)]))
    assert pool.say(Report(0, [next(iter(pool.slots[0].connections))], None, None, accepted=[(0, 1)]))
    assert not pool.say(Report(0, [], None, None, accepted=[(0, 1)]))
    assert killed == [pool.slots[0]]


@pytest.mark.parametrize("number", [0, 1])
def test_a_socket_that_a_worker_has_shut_down_listens_again(pool_of: MakePool, number: int) -> None:
    pool = pool_of(2, 2)
    own = pool.kernel.sockets[number]
    own.bound.socket.shutdown(socket.SHUT_RDWR)
    assert not does_listen(own.bound.socket)
    pool.loop.turn(1)
    assert does_listen(own.bound.socket)
    assert own.bound.socket.getsockname() == pool.address
    pool.connect(1)


def test_an_address_that_is_given_up_refuses_although_a_worker_has_the_socket(pool_of: MakePool) -> None:
    pool = pool_of(2, 2)
    copies = [os.dup(own.bound.socket.fileno()) for own in pool.kernel.sockets]
    pool.kernel.close()
    pool.kernel.give_up([])
    pool.connect(1)
    pool.kernel.give_up(None)
    with pytest.raises(ConnectionRefusedError):
        pool.connect(1)
    for copy in copies:
        os.close(copy)


# --- whole servers


POOL = 'dispatch = "kernel"\ncontrol = "ctl"\ngraceful_timeout = 5.0\n'


def status_of(server: ServerProcess, *arguments: str) -> str:
    shown = invoke("status", "--config", server.file, *arguments, cwd=server.folder)
    assert shown.returncode == 0
    return shown.stdout


def record_of(server: ServerProcess) -> Any:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(server.folder / "ctl"))
        sock.sendall(b"status\n")
        with sock.makefile("rb") as answer:
            return json.loads(answer.readline())["status"]


def reload_with(server: ServerProcess, text: str) -> None:
    server.file.write_text(text)
    server.reload()


def answers_of(server: ServerProcess, size: int) -> Counter[int]:
    with Crowd(address_of(server), size) as crowd:
        return Counter(int(answer) for answer in crowd.run())


@pytest.mark.server
def test_bursts_and_reloads_are_answered_and_counted(serve: Serve, site: Path) -> None:
    """Every client is answered, by all workers, and the books are right; also after reloads with other numbers."""
    listener = 'deny = ["192.0.2.0/24"]'
    text = config(f"workers = 3\n{POOL}", listener).replace('"127.0.0.1:0"', '["127.0.0.1:0", "unix:s"]')
    server = serve(text, paths=(site,))
    total = 0
    answered: Counter[int] = Counter()

    def is_counted() -> bool:
        (one,) = record_of(server)["listeners"]
        return (one["accepted"], one["open"]) == (total, 0)

    def all_workers_have_answered(size: int) -> bool:
        """Send a burst; a worker that is late may be passed over in it."""
        nonlocal total
        answers = answers_of(server, size)
        total += size
        assert sum(answers.values()) == size
        answered.update(answers)
        return set(answered) >= set(server.worker_pids())

    for size, workers in ((600, 3), (100, 3), (200, 1), (200, 4)):
        if workers != len(server.worker_pids()):
            reload_with(server, text.replace("workers = 3", f"workers = {workers}"))
        answered.clear()
        wait_until(partial(all_workers_have_answered, size), "answers of all workers")
        wait_until(is_counted, "right books")
    server.wait_for_line(r"generation 2 .* has left")
    (one,) = record_of(server)["listeners"]
    assert one["addresses"] == server.addresses("puppet")
    own, unix = one["queues"][:4], one["queues"][4]
    assert sorted(number for queue in own for number in queue["workers"]) == [0, 1, 2, 3]
    before = sum(queue["accepted"] + queue["passed_on"] for queue in own)
    assert before <= answered.total()
    assert sum(answers_of(server, 50).values()) == 50
    total += 50
    wait_until(is_counted, "right books")
    queues = record_of(server)["listeners"][0]["queues"][:4]
    assert sum(queue["accepted"] + queue["passed_on"] for queue in queues) == before + 50
    assert unix["workers"] == []
    assert one["dispatched"] == {unix["address"]: "a unix socket"}
    text = status_of(server)
    assert "dispatcher (a unix socket)" in text
    assert "worker 3" in text
    with Client(server) as client:
        assert int(client.ask("pid")) in server.worker_pids()
    assert server.stop() == 0


@pytest.mark.server
def test_nothing_is_lost_by_stops_kills_and_fewer_or_more_workers(serve: Serve, site: Path) -> None:
    server = serve(config(f"workers = 2\n{POOL}"), paths=(site,))
    stopped, other = server.worker_pids()
    os.kill(stopped, signal.SIGSTOP)
    wait_until(lambda: process_state(stopped) == "T", "a stopped process")
    assert set(answers_of(server, 40)) == {other}
    os.kill(other, signal.SIGSTOP)
    wait_until(lambda: process_state(other) == "T", "a stopped process")
    clients = [Client(server) for _ in range(40)]
    os.kill(stopped, signal.SIGKILL)
    os.kill(other, signal.SIGKILL)
    pids = {int(client.ask("pid")) for client in clients}
    assert not pids & {stopped, other}
    assert pids <= set(server.worker_pids())
    for client in clients:
        client.close()
    server.wait_for_line("serves", 4)
    server.signal(signal.SIGTTOU)
    server.wait_for_line("SIGTTOU: 1 worker")
    wait_until(lambda: len(server.worker_pids()) == 1, "a worker fewer")
    (rest,) = server.worker_pids()
    assert answers_of(server, 40) == {rest: 40}
    for count in (2, 3):
        server.signal(signal.SIGTTIN)
        server.wait_for_line(f"SIGTTIN: {count} workers")
    server.wait_for_line("serves", 6)
    connect_until(server, max(server.worker_pids())).close()
    assert rest in server.worker_pids()
    assert server.stop() == 0


@pytest.mark.server
def test_what_waits_for_a_stuck_worker_is_served_by_another(serve: Serve, site: Path, tmp_path: Path) -> None:
    server = serve(config(f"workers = 2\n{POOL}"), paths=(site,))
    stuck, other = server.worker_pids()
    blocker = connect_until(server, stuck)
    release = tmp_path / "release"
    assert blocker.ask(f"block {release}") == "blocks"
    assert set(answers_of(server, 40)) == {other}
    server.wait_for_line(rf"pid {stuck}\) accepts no connections")
    release.touch()
    assert blocker.answer() == "unblocked"
    server.wait_for_line(rf"pid {stuck}\) responds again")
    connect_until(server, stuck).close()
    blocker.close()
    assert server.stop() == 0


@pytest.mark.server
def test_a_worker_without_descriptors_leaves_its_connections_to_others(serve: Serve, site: Path) -> None:
    server = serve(config(f"workers = 2\n{POOL}"), paths=(site,), descriptors=120)
    with Crowd(address_of(server), 400, leave=True) as crowd:
        answers = crowd.run()
    assert len(answers) == 400
    assert b"" not in answers
    assert "lost" not in server.log
