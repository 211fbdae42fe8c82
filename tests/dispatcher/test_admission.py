"""Admission control of one listener, in process and with a simulated clock. test_limits.py has whole servers."""

from __future__ import annotations

import os
import socket
from collections import deque
from collections.abc import Iterator

import pytest

from poolsrv.config.model import ListenerConfig, has_limits
from poolsrv.core.event_loop import EventLoop
from poolsrv.dispatcher.admission import QUIET, RECENT, AdmissionControl, ListenerCounts, Refusal
from poolsrv.dispatcher.listener import Listener
from poolsrv.net.access_list import parse
from poolsrv.net.addresses import Address
from tests.helpers.streams import pass_time

PEER = ("192.0.2.1", 4000)
OTHER = ("2001:db8::1", 4000, 0, 0)


class Entrance:
    """A listener with limits, and a clock."""

    def __init__(self, **keys: object) -> None:
        config = ListenerConfig("www", (Address(socket.AF_INET, "127.0.0.1", 7007),), "echo", **keys)  # type: ignore[arg-type]
        assert has_limits(config)
        self.loop = EventLoop()
        self.loop.now = 1000.0
        self.counts = ListenerCounts()
        self.recent: deque[Refusal] = deque(maxlen=RECENT)
        self.resumed: list[float] = []
        self.admission = AdmissionControl(self.loop, config, self.counts, self.recent, self.resume)
        self.last_id = 0

    def resume(self) -> None:
        self.resumed.append(self.loop.now)

    def come(self, peer: object = PEER) -> bool:
        """Accept a client; tell whether it is admitted. Nobody else has its descriptor."""
        ours, theirs = socket.socketpair()
        self.last_id += 1
        with theirs:
            fd = ours.detach()
            admitted = self.admission.admit(self.last_id, fd, peer)
            if admitted:
                self.counts.open += 1
                os.close(fd)
            theirs.settimeout(30)
            assert theirs.recv(1) == b""  # it is closed either way
        return admitted

    def go(self, *numbers: int) -> None:
        """Close connections."""
        self.counts.open -= len(numbers)
        for number in numbers:
            self.admission.closed(number)

    def wait(self, seconds: float) -> None:
        """Let time pass, and call timers."""
        pass_time(self.loop, seconds)


@pytest.fixture
def made() -> Iterator[list[Entrance]]:
    found: list[Entrance] = []
    yield found
    for entrance in found:
        entrance.loop.close()


@pytest.fixture
def entrance(made: list[Entrance], request: pytest.FixtureRequest) -> Entrance:
    made.append(Entrance(**request.param))
    return made[-1]


def with_keys(**keys: object) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("entrance", [keys], indirect=True, ids=["-".join(keys)])


def test_without_limits_there_is_no_admission() -> None:
    config = ListenerConfig("www", (), "echo", when_full="refuse", backlog=5, idle_timeout=1.0)
    assert not has_limits(config)
    loop = EventLoop()
    assert Listener(loop, 0, config, [], []).refusals == {}
    loop.close()


@with_keys(max_connections=2)
def test_at_max_connections_others_wait(entrance: Entrance) -> None:
    assert entrance.come()
    assert entrance.come()
    assert entrance.admission.must_wait() == "max_connections"
    assert not entrance.admission.is_full()  # so none is accepted to be refused
    entrance.go(1)
    assert entrance.admission.must_wait() is None
    assert entrance.admission.refusals == {}


@with_keys(max_connections=2, when_full="refuse")
def test_at_max_connections_others_are_refused(entrance: Entrance) -> None:
    assert [entrance.come() for _ in range(5)] == [True, True, False, False, False]
    assert entrance.admission.is_full()
    assert entrance.admission.must_wait() is None
    assert entrance.admission.refusals == {"max_connections": 3}
    entrance.go(1)
    assert entrance.come()


@with_keys(connection_rate=2.0, connection_rate_burst=1)
def test_at_the_rate_others_wait_for_the_next_token(entrance: Entrance) -> None:
    assert entrance.come()
    assert entrance.admission.must_wait() == "connection_rate"
    entrance.admission.waits("connection_rate")
    entrance.admission.waits("connection_rate")
    entrance.wait(0.4)
    assert not entrance.resumed
    entrance.wait(0.101)
    assert entrance.resumed == [1000.501]
    assert entrance.admission.must_wait() is None


@with_keys(connection_rate=2.0, when_full="refuse")
def test_without_a_burst_a_second_s_worth_is_admitted_at_once(entrance: Entrance) -> None:
    assert [entrance.come() for _ in range(4)] == [True, True, False, False]
    entrance.wait(0.5)
    assert [entrance.come() for _ in range(2)] == [True, False]
    assert entrance.admission.refusals == {"connection_rate": 3}


@with_keys(connection_rate=1.0, when_full="refuse", max_per_source=1)
def test_a_refused_client_takes_no_token(entrance: Entrance) -> None:
    assert entrance.come()
    entrance.wait(1.0)
    assert not entrance.come()
    assert entrance.come(OTHER)
    assert entrance.admission.refusals == {"max_per_source": 1}


@with_keys(max_connections=1, when_full="refuse", deny=(parse("192.0.2.1"),))
def test_deny_comes_before_the_limits(entrance: Entrance) -> None:
    assert entrance.come(OTHER)
    assert not entrance.come(PEER)
    assert not entrance.come(OTHER)
    assert entrance.admission.refusals == {"deny": 1, "max_connections": 1}


@with_keys(max_per_source=1, allow=(parse("2001:db8::/32"),))
def test_a_unix_socket_s_peer_has_no_source(entrance: Entrance) -> None:
    assert [entrance.come("") for _ in range(3)] == [True] * 3
    assert [entrance.come(b"\0abstract") for _ in range(3)] == [True] * 3
    assert entrance.admission.refusals == {}


@with_keys(deny=(parse("192.0.2.1"),))
def test_the_last_refusals_are_kept(entrance: Entrance) -> None:
    for number in range(RECENT + 5):
        assert not entrance.come(("192.0.2.1", number))
    assert [refusal.peer for refusal in entrance.recent] == [f"192.0.2.1:{n}" for n in range(5, RECENT + 5)]
    assert {(refusal.listener, refusal.reason) for refusal in entrance.recent} == {("www", "deny")}
    assert entrance.recent[0].time <= entrance.recent[-1].time


@with_keys(deny=(parse("192.0.2.1"),))
def test_a_limit_event_is_two_lines(entrance: Entrance, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "poolsrv")
    begin = "www: refusing connections for deny, first that of 192.0.2.1:4000"
    for _ in range(10):
        entrance.come()
        entrance.wait(QUIET - 1)
    assert caplog.messages == [begin]
    entrance.wait(1)
    assert caplog.messages == [begin, "www: no longer refusing connections for deny: 10 were refused"]
    entrance.come()
    entrance.admission.close()
    assert caplog.messages[2:] == [begin, "www: no longer refusing connections for deny: 1 was refused"]
    entrance.wait(2 * QUIET)
    assert len(caplog.messages) == 4


@with_keys(max_connections=1)
def test_a_limit_event_lasts_while_a_connection_waits(entrance: Entrance, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "poolsrv")
    entrance.come()
    entrance.admission.waits("max_connections")
    entrance.counts.paused = True
    entrance.wait(10 * QUIET)
    assert caplog.messages == ["www: connections have to wait for max_connections = 1"]
    entrance.counts.paused = False
    entrance.go(1)
    entrance.wait(QUIET)
    assert caplog.messages[1:] == ["www: connections no longer have to wait for max_connections = 1"]


@with_keys(rate_per_source=10.0)
def test_sources_are_forgotten(entrance: Entrance) -> None:
    for number in range(100):
        assert entrance.come((f"192.0.2.{number}", 4000))
    assert entrance.admission._sources is not None
    assert len(entrance.admission._sources) == 100
    entrance.wait(QUIET)
    assert len(entrance.admission._sources) == 0
    assert entrance.admission._forget_timer is None
