"""Files sent on a stream, in this process: raw, over TLS, and beside a program that has the descriptor."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from poolsrv.core.event_loop import EventLoop
from tests.helpers.streams import Connecting, Contexts, Pair, StandingLoop

DATA = os.urandom(1 << 16) * 64  # 4 MiB: more than the kernel keeps


@pytest.fixture(params=["raw", "tls", "shared"])
def pair(request: pytest.FixtureRequest, contexts: Contexts) -> Iterator[Pair]:
    loop = StandingLoop()
    pair = Pair(loop, contexts if request.param == "tls" else None)
    if request.param == "shared":
        pair.stream._share()
    yield pair
    assert not pair.owner.faults
    pair.end()
    loop.close()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDWR)
    yield fd
    os.close(fd)


def end_of(pair: Pair, file: int, offset: int = 0, count: int = len(DATA)) -> list[int]:
    """Send; what ``done`` is called with."""
    sent: list[int] = []
    pair.stream.send_file(file, offset, count, sent.append)
    assert not sent
    return sent


def test_a_whole_file(pair: Pair, file: int) -> None:
    sent = end_of(pair, file)
    pair.until(lambda: sent)
    pair.until(lambda: len(pair.peer.received) == len(DATA))
    assert pair.peer.received == DATA
    assert (sent, pair.stream.bytes_out, pair.stream.unsent) == ([len(DATA)], len(DATA), 0)
    assert pair.state == "OPEN"
    assert os.lseek(file, 0, os.SEEK_CUR) == 0


def test_a_part_goes_between_what_is_sent_before_and_after(pair: Pair, file: int) -> None:
    pair.stream.send(b"before ")
    pair.stream.send_file(file, 1000, 70_000, lambda sent: pair.stream.send(b" after %d" % sent))
    expected = b"before " + DATA[1000:71_000] + b" after 70000"
    pair.until(lambda: len(pair.peer.received) >= len(expected))
    assert pair.peer.received == expected


def test_what_is_kept_goes_first(pair: Pair, file: int) -> None:
    kept = pair.keep()
    sent = end_of(pair, file)
    pair.until(lambda: sent)
    pair.until(lambda: len(pair.peer.received) == kept + len(DATA))
    assert pair.peer.received[kept:] == DATA


def test_what_is_sent_meanwhile_goes_somewhere_in_between(pair: Pair, file: int) -> None:
    """Nothing is lost, and nothing is there twice."""
    sent = end_of(pair, file)
    pair.until(lambda: pair.stream.bytes_out > 100_000, reads=False)
    pair.turns(20)  # until the kernel takes no more
    pair.stream.send(b"<meanwhile>")
    pair.until(lambda: sent)
    pair.until(lambda: len(pair.peer.received) == len(DATA) + 11)
    assert pair.peer.received.replace(b"<meanwhile>", b"") == DATA


def test_a_peer_that_does_not_read_is_waited_for(pair: Pair, file: int) -> None:
    """Next to nothing is kept for it in memory."""
    sent = end_of(pair, file)
    pair.turns(200)
    assert not sent
    assert pair.stream.bytes_out < len(DATA)
    assert pair.stream.unsent <= 65536
    pair.until(lambda: sent)


def test_a_close_waits_for_it(pair: Pair, file: int) -> None:
    sent = end_of(pair, file)
    pair.stream.close("bye")
    pair.until(lambda: pair.peer.end)
    assert pair.peer.received == DATA
    assert (sent, pair.peer.end) == ([len(DATA)], "eof")


def test_the_end_of_sending_waits_for_it(pair: Pair, file: int) -> None:
    sent = end_of(pair, file)
    pair.stream.send_eof()
    with pytest.raises(ValueError, match="send_eof"):
        pair.stream.send_file(file, 0, 1)
    pair.until(lambda: pair.peer.end)
    assert (pair.peer.received == DATA, sent, pair.state) == (True, [len(DATA)], "OPEN")


def test_the_end_of_the_peers_stream_closes_only_after_it(pair: Pair, file: int) -> None:
    sent = end_of(pair, file)
    pair.peer.finish()
    pair.until(lambda: pair.peer.end)
    assert (pair.peer.received == DATA, sent) == (True, [len(DATA)])
    pair.until(lambda: pair.state == "CLOSED")


@pytest.mark.parametrize("left", [0, 1_000_000])
def test_a_file_that_becomes_shorter(pair: Pair, file: int, left: int) -> None:
    """What is not there is not sent, and the caller is told; nothing waits for it."""
    sent = end_of(pair, file)
    pair.turns(2)
    os.ftruncate(file, left)
    pair.until(lambda: sent)
    assert left <= sent[0] < len(DATA)
    pair.until(lambda: len(pair.peer.received) >= sent[0])
    # Over TLS what had been read is what had been there; what sendfile(2) has taken may be sent as zeros.
    assert len(pair.peer.received) == sent[0]
    assert pair.state == "OPEN"


def test_more_than_there_is(pair: Pair, file: int) -> None:
    sent = end_of(pair, file, len(DATA) - 10, 100)
    pair.until(lambda: sent)
    pair.until(lambda: len(pair.peer.received) == 10)
    assert (pair.peer.received, sent) == (DATA[-10:], [10])
    assert end_of(pair, file, len(DATA) + 10, 100) == []


def test_nothing_at_all(pair: Pair, file: int) -> None:
    sent = end_of(pair, file, 5, 0)
    pair.until(lambda: sent)
    assert sent == [0]


def test_what_is_no_file(pair: Pair) -> None:
    """It can't be read from an offset: as if it were empty."""
    reader, writer = os.pipe()
    os.write(writer, b"hello")
    try:
        sent = end_of(pair, reader, 0, 5)
        pair.until(lambda: sent)
    finally:
        os.close(reader)
        os.close(writer)
    assert (sent, pair.state) == ([0], "OPEN")


@pytest.mark.parametrize("end", ["reset", "abort", "close"])
def test_a_peer_or_a_stream_that_ends(pair: Pair, file: int, end: str) -> None:
    """``done`` is called once, whoever ends it: the descriptor can be closed there."""
    sent = end_of(pair, file)
    pair.turns(5)
    if end == "abort":
        pair.stream.abort("gone")
    elif end == "reset":
        pair.peer.reset()
    else:
        pair.peer.close()
    pair.until(lambda: pair.state == "CLOSED" and sent, reads=False)
    assert len(sent) == 1
    assert sent[0] < len(DATA)


@pytest.mark.parametrize("state", ["CLOSING", "LINGERING", "CLOSED"])
def test_a_stream_that_is_closed_sends_nothing(pair: Pair, file: int, state: str) -> None:
    pair.go_to(state)
    before = pair.stream.bytes_out
    sent = end_of(pair, file)
    pair.turns()
    assert (sent, pair.state) == ([0], state)
    assert pair.stream.bytes_out - before < len(DATA)


def test_one_at_a_time(pair: Pair, file: int) -> None:
    sent = end_of(pair, file)
    with pytest.raises(ValueError, match="file"):
        pair.stream.send_file(file, 0, 1)
    with pytest.raises(ValueError, match="relayed"):
        pair.stream.relay_to(pair.stream)
    pair.until(lambda: sent)
    for offset, count in ((-1, 5), (0, -1)):
        with pytest.raises(ValueError, match="negative"):
            pair.stream.send_file(file, offset, count)
    sent = end_of(pair, file)
    pair.until(lambda: sent)


def test_a_program_gets_the_descriptor_while_a_file_is_sent(pair: Pair, file: int) -> None:
    if pair.stream.tls is not None:
        return  # a sealed stream is given to no program
    sent = end_of(pair, file)
    pair.turns(3)
    assert pair.stream._relay_out is not None
    pair.stream._relay_out.copy_from_now_on()
    pair.stream._share()
    pair.until(lambda: sent)
    pair.until(lambda: len(pair.peer.received) == len(DATA))
    assert pair.peer.received == DATA


def test_a_file_system_without_sendfile(pair: Pair, file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "sendfile", refuse)
    sent = end_of(pair, file)
    pair.until(lambda: sent)
    pair.until(lambda: len(pair.peer.received) == len(DATA))
    assert pair.peer.received == DATA


def test_an_error_of_the_callback_is_the_connections(pair: Pair, file: int) -> None:
    def fail(sent: int) -> None:
        raise RuntimeError("of the plugin")

    pair.stream.send_file(file, 0, 10, fail)
    pair.until(lambda: pair.owner.faults)
    assert [what for what, _ in pair.owner.faults] == ["done"]
    pair.owner.faults.clear()


def test_a_stream_that_is_connecting(file: int) -> None:
    """It goes once the connection is established."""
    loop = EventLoop()
    pair = Connecting(loop)
    sent = end_of(pair, file)
    pair.turns()
    assert not sent
    pair.establish()
    pair.until(lambda: sent)
    pair.until(lambda: len(pair.peer.received) == len(DATA))
    assert pair.peer.received == DATA
    pair.end()
    loop.close()
