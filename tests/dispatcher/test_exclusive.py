"""Which slots may have a worker, while the right to exclusive ones comes and goes; in this process."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from poolsrv.config.model import ListenerConfig
from poolsrv.core.listening_sockets import ListeningSocket
from poolsrv.dispatcher.bound import Bound, apply_again
from poolsrv.dispatcher.exclusive import ExclusiveWorkers
from poolsrv.dispatcher.worker_slot import EMPTY, STARTING, WorkerSlot
from poolsrv.ipc.worker_channel import DRAINING, SERVING


def spec(name: str, **keys: Any) -> Any:
    """A listener whose handler has its name."""
    return SimpleNamespace(
        config=ListenerConfig(name, (), name, **keys), hooks=SimpleNamespace(plugins=[SimpleNamespace(name=name)])
    )


class Pool:
    """Three slots: the first is for an exclusive listener, the others are for another one."""

    def __init__(self, *listeners: Any) -> None:
        self.slots = [WorkerSlot(index) for index in range(3)]
        self.by_pid: dict[int, WorkerSlot] = {}
        self.claims: list[list[str]] = []
        self.released: list[int] = []
        self.leftovers = False
        self.exclusive = ExclusiveWorkers(
            listeners or [spec("kv", exclusive=True, workers=1), spec("www", first_worker=1)],
            self.by_pid,
            lambda: self.leftovers,
            self.claims.append,
            self.released.append,
        )

    def may_start(self) -> list[int]:
        return [slot.index for slot in self.slots if self.exclusive.may_start(slot)]

    def serve(self, index: int) -> None:
        slot = self.slots[index]
        slot.state, slot.pid = SERVING, 100 + index
        self.by_pid[slot.pid] = slot
        self.exclusive.claim_if_due(self.slots)

    def end(self, index: int) -> None:
        del self.by_pid[100 + index]
        self.slots[index].clear()
        self.exclusive.tell_released()


@pytest.fixture
def pool() -> Pool:
    return Pool()


def test_the_right_is_claimed_once_when_all_others_serve(pool: Pool) -> None:
    pool.exclusive.claim_if_due(pool.slots)
    assert pool.may_start() == [1, 2]
    pool.serve(1)
    pool.slots[2].state = STARTING
    pool.exclusive.claim_if_due(pool.slots)
    assert pool.claims == []
    pool.serve(2)
    pool.exclusive.claim_if_due(pool.slots)
    assert pool.claims == [["kv"]]
    assert 0 not in pool.may_start()
    pool.exclusive.granted()
    assert 0 in pool.may_start()


def test_a_pool_of_one_worker_claims_it_at_once_and_one_without_exclusive_listeners_never() -> None:
    one = Pool(spec("kv", exclusive=True, workers=1), spec("www"))
    one.slots[1:] = []
    one.exclusive.claim_if_due(one.slots)
    assert one.claims == [["kv"]]
    plain = Pool(spec("www"))
    plain.serve(0)
    assert (plain.claims, plain.may_start()) == ([], [0, 1, 2])


def test_a_successor_waits_for_the_end_of_the_worker_and_of_what_it_leaves(pool: Pool) -> None:
    pool.exclusive.granted()
    pool.serve(0)
    pool.slots[0].state = DRAINING
    old, pool.slots[0] = pool.slots[0], WorkerSlot(0)
    assert 0 not in pool.may_start()
    pool.leftovers = True
    del pool.by_pid[old.pid]
    assert 0 not in pool.may_start()
    assert pool.may_start() == [1, 2]  # the others do not care
    pool.leftovers = False
    assert 0 in pool.may_start()


@pytest.mark.parametrize("runs", [False, True])
def test_it_is_released_when_no_such_worker_runs(pool: Pool, runs: bool) -> None:
    pool.exclusive.granted()
    pool.serve(1)
    if runs:
        pool.serve(0)
    pool.exclusive.hold_back(7, ["kv"])
    pool.exclusive.tell_released()
    assert pool.released == ([] if runs else [7])
    if runs:
        pool.end(0)
    pool.exclusive.tell_released()
    assert pool.released == [7]
    assert 0 not in pool.may_start()
    pool.exclusive.granted()  # the other pool has failed
    assert 0 in pool.may_start()
    pool.exclusive.hold_back(8, [])
    pool.exclusive.tell_released()
    assert pool.released == [7, 8]


def test_the_other_pool_may_fail_before_it_was_released(pool: Pool) -> None:
    pool.exclusive.granted()
    pool.serve(0)
    pool.exclusive.hold_back(1, [])
    pool.exclusive.granted()
    assert 0 not in pool.may_start()
    pool.end(0)
    assert pool.released == []
    assert 0 in pool.may_start()


def test_workers_of_a_plugin_that_becomes_exclusive_elsewhere_are_held_back_too(pool: Pool) -> None:
    pool.exclusive.granted()
    for index in range(3):
        pool.serve(index)
    pool.exclusive.hold_back(1, ["www"])
    assert [pool.exclusive.is_held(slot) for slot in pool.slots] == [True] * 3
    for index in range(3):
        assert pool.released == []
        pool.end(index)
    assert pool.released == [1]
    assert [slot.state for slot in pool.slots] == [EMPTY] * 3


def test_socket_options_follow_what_plugins_say_after_the_sockets_were_bound() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        bound = [[Bound("a", ListeningSocket("a", sock), True)]]
        apply_again(bound, [ListenerConfig("a", (), "echo", tcp_nodelay=False, keepalive=77)])
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 0
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 77
