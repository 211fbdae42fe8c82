"""The worker channel, with real descriptors; both ends are in one process, since the kernel does not care."""

from __future__ import annotations

import marshal
import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from poolsrv.ipc.worker_channel import (
    LOST,
    MAX_CLOSED_PER_REPORT,
    MAX_IN_FLIGHT,
    MAX_PER_MESSAGE,
    AcceptedConnection,
    DispatcherEnd,
    Report,
    WorkerEnd,
)


@pytest.fixture
def channel() -> Iterator[tuple[DispatcherEnd, WorkerEnd]]:
    outer = DispatcherEnd()
    inner = WorkerEnd(outer._worker_socket)
    yield outer, inner
    outer.close()


def null(number: int, peer: object = ("127.0.0.1", 1)) -> AcceptedConnection:
    return AcceptedConnection(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC), 3, number, peer)


def send(outer: DispatcherEnd, connections: list[AcceptedConnection]) -> bool:
    sent = outer.send(connections)
    close(connections)
    return sent


def close(connections: list[AcceptedConnection] | None) -> None:
    for connection in connections or ():
        if connection.fd != LOST:
            os.close(connection.fd)


@contextmanager
def descriptor_limit(free: int) -> Iterator[None]:
    """Limit the descriptors that can be opened in the block."""
    probe = os.open(os.devnull, os.O_RDONLY)
    os.close(probe)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (probe + free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_connection_arrives_with_its_fields(channel: tuple[DispatcherEnd, WorkerEnd]) -> None:
    outer, inner = channel
    left, right = socket.socketpair()
    assert outer.send([AcceptedConnection(left.fileno(), 2, 17, ("::1", 80, 0, 0))])
    left.close()
    (handed,) = inner.receive() or []
    assert (handed.listener, handed.id, handed.peer) == (2, 17, ("::1", 80, 0, 0))
    assert not os.get_inheritable(handed.fd)  # a program that a plugin forks must not keep it open
    os.write(handed.fd, b"hello")
    assert right.recv(5) == b"hello"
    os.close(handed.fd)
    right.close()


def test_messages_keep_their_order_and_their_bounds(channel: tuple[DispatcherEnd, WorkerEnd]) -> None:
    outer, inner = channel
    assert send(outer, [null(1), null(2)])
    assert send(outer, [null(3)])
    received = [inner.receive(), inner.receive()]
    assert [[one.id for one in message or ()] for message in received] == [[1, 2], [3]]
    assert inner.receive() is None
    for message in received:
        close(message)


def test_the_longest_message_fits(channel: tuple[DispatcherEnd, WorkerEnd]) -> None:
    outer, inner = channel
    peer = "/" + 106 * "x"
    assert send(outer, [null(2**62 + i, peer) for i in range(MAX_PER_MESSAGE)])
    received = inner.receive()
    assert received is not None
    assert [one.peer for one in received] == [peer] * MAX_PER_MESSAGE
    assert LOST not in [one.fd for one in received]
    close(received)


def test_as_many_single_messages_fit_as_may_be_in_flight(channel: tuple[DispatcherEnd, WorkerEnd]) -> None:
    """So a channel is hardly ever full for the kernel before it is full for the dispatcher."""
    outer, inner = channel
    assert all(send(outer, [null(i)]) for i in range(MAX_IN_FLIGHT))
    while received := inner.receive():
        close(received)


def test_a_full_channel_takes_nothing_and_loses_nothing(channel: tuple[DispatcherEnd, WorkerEnd]) -> None:
    outer, inner = channel
    number = 0
    while send(outer, [null(number)]):
        number += 1
    outer.ask()  # harmless
    taken = []
    while received := inner.receive():
        taken += [one.id for one in received]
        close(received)
    assert taken == list(range(number))
    assert send(outer, [null(number)])
    close(inner.receive())


def test_what_the_worker_has_not_taken_is_reclaimed(channel: tuple[DispatcherEnd, WorkerEnd]) -> None:
    outer, inner = channel
    send(outer, [null(1)])
    send(outer, [null(2)])
    first = inner.receive()
    second = outer.reclaim()
    assert [one.id for one in first or ()] == [1]
    assert [one.id for one in second or ()] == [2]
    assert outer.reclaim() is None
    assert inner.receive() is None
    close(first)
    close(second)


def test_a_question_is_a_message_without_connections(channel: tuple[DispatcherEnd, WorkerEnd]) -> None:
    outer, inner = channel
    outer.ask()
    send(outer, [null(1)])
    assert inner.receive() == []
    close(inner.receive())
    outer.ask()
    send(outer, [null(2)])
    assert outer.reclaim() == []  # and what comes after it is not hidden by it
    close(outer.reclaim())


def test_descriptors_that_do_not_fit_below_the_limit_are_marked_as_lost(
    channel: tuple[DispatcherEnd, WorkerEnd],
) -> None:
    outer, inner = channel
    send(outer, [null(number) for number in range(4)])
    with descriptor_limit(free=1):
        received = inner.receive()
    assert received is not None
    assert [one.fd == LOST for one in received] == [False, True, True, True]
    assert [one.id for one in received] == [0, 1, 2, 3]
    close(received)


def test_the_end_of_the_dispatcher_shows_as_end_of_file() -> None:
    outer = DispatcherEnd()
    inner = WorkerEnd(socket.socket(fileno=os.dup(outer._worker_socket.fileno())))
    outer.close()
    with pytest.raises(EOFError):
        inner.receive()
    with pytest.raises(OSError, match="Broken pipe"):
        inner.report(Report(0, [], None, None))
    inner.close()


def test_the_end_of_the_dispatcher_shows_even_if_it_has_not_read_all_reports() -> None:
    outer = DispatcherEnd()
    inner = WorkerEnd(socket.socket(fileno=os.dup(outer._worker_socket.fileno())))
    assert inner.report(Report(1, [], None, None))
    outer.close()
    with pytest.raises(EOFError):
        inner.receive()
    inner.close()


@pytest.mark.parametrize("unread", [False, True])
def test_what_was_sent_before_the_dispatcher_died_still_arrives(unread: bool) -> None:
    """Also if it had not read all reports, of which the kernel tells before what was sent."""
    outer = DispatcherEnd()
    inner = WorkerEnd(socket.socket(fileno=os.dup(outer._worker_socket.fileno())))
    send(outer, [null(1)])
    if unread:
        assert inner.report(Report(1, [], None, None))
    outer.close()
    close(inner.receive())
    with pytest.raises(EOFError):
        inner.receive()
    inner.close()


def test_answers_that_were_sent_before_the_dispatcher_died_still_arrive() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    unused, channel = socket.socketpair()
    inner = WorkerEnd(channel, theirs)
    theirs.send(b"unread")
    ours.send(marshal.dumps([(3, None)]))
    ours.close()
    assert inner.receive_answers() == [(3, None)]
    with pytest.raises(EOFError):
        inner.receive_answers()
    inner.close()
    unused.close()


def test_reports_arrive_as_they_were_sent(channel: tuple[DispatcherEnd, WorkerEnd]) -> None:
    outer, inner = channel
    first = Report(3, [1, 2**62], "serving", (1, 2, 3, 4, 2**50))
    longest = Report(MAX_IN_FLIGHT, [2**62 + i for i in range(MAX_CLOSED_PER_REPORT)], "draining", (2**62,) * 5)
    assert inner.report(first)
    assert inner.report(longest)
    assert outer.receive() == first
    assert outer.receive() == longest
    assert outer.receive() is None


def test_a_dispatcher_that_does_not_read_reports_does_not_block_the_worker(
    channel: tuple[DispatcherEnd, WorkerEnd],
) -> None:
    outer, inner = channel
    sent = 0
    while inner.report(Report(sent, [], None, None)):
        sent += 1
    received = 0
    while (report := outer.receive()) is not None:
        assert report.taken == received
        received += 1
    assert received == sent > 0
