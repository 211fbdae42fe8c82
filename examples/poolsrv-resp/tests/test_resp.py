"""The protocol, the commands and the file, in this process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from poolsrv_resp import Resp
from poolsrv_resp.append_file import Damaged
from poolsrv_resp.protocol import request

from poolsrv.testing import ConfigErrors, Harness, assert_conforms, load_options

Start = Callable[..., Harness]


@pytest.fixture
def start(poolsrv_harness: Start, tmp_path: Path) -> Start:
    """``start(...)`` starts a worker with these options; its file is ``tmp_path / "data"``."""

    def start(**options: Any) -> Harness:
        return poolsrv_harness(Resp, {"file": "data", **options}, folder=tmp_path)

    return start


def ask(harness: Harness, *requests: str) -> bytes:
    """The answers to inline commands, on a connection of its own."""
    client = harness.connect()
    client.send("".join(f"{one}\r\n" for one in requests))
    answers = client.take()
    client.close()
    return answers


@pytest.mark.parametrize(
    ("requests", "answers"),
    [
        (["PING", "ping hello", "ECHO x"], b"+PONG\r\n$5\r\nhello\r\n$1\r\nx\r\n"),
        (["GET a", "SET a 1", "GET a"], b"$-1\r\n+OK\r\n$1\r\n1\r\n"),
        (["set 'a b' \"\"", "get 'a b'"], b"+OK\r\n$0\r\n\r\n"),
        (["SET a 1 NX", "SET a 2 NX", "SET a 3 XX", "SET b 1 XX"], b"+OK\r\n$-1\r\n+OK\r\n$-1\r\n"),
        (["SET a 1", "SET a 2 GET", "SET a 3 NX GET"], b"+OK\r\n$1\r\n1\r\n$1\r\n2\r\n"),
        (["MSET a 1 b 2", "DEL a b c", "EXISTS a b"], b"+OK\r\n:2\r\n:0\r\n"),
        (["INCR n", "INCRBY n 41", "DECR n"], b":1\r\n:42\r\n:41\r\n"),
        (["SET a x", "INCR a"], b"+OK\r\n-ERR value is not an integer or out of range\r\n"),
        (["SET a 9223372036854775807", "INCR a"], b"+OK\r\n-ERR increment or decrement would overflow\r\n"),
        (["SET a 1 EX 0"], b"-ERR invalid expire time in 'set' command\r\n"),
        (["SET a 1 EX", "SET a 1 NX XX", "SET a 1 EX 1 PX 1"], b"-ERR syntax error\r\n" * 3),
        (["TTL a", "SET a 1", "TTL a", "EXPIRE a 9", "TTL a"], b":-2\r\n+OK\r\n:-1\r\n:1\r\n:9\r\n"),
        (["SET a 1 EX 9", "SET a 2 KEEPTTL", "TTL a", "PERSIST a", "TTL a"], b"+OK\r\n+OK\r\n:9\r\n:1\r\n:-1\r\n"),
        (["SET a 1", "EXPIRE a -1", "GET a"], b"+OK\r\n:1\r\n$-1\r\n"),
        (["CONFIG GET save", "COMMAND DOCS", "SELECT 0"], b"*2\r\n$4\r\nsave\r\n$0\r\n\r\n*0\r\n+OK\r\n"),
        (["HELLO 3"], b"-NOPROTO unsupported protocol version\r\n"),
        (["FOO bar", "GET"], b"-ERR unknown command 'FOO'\r\n-ERR wrong number of arguments for 'get' command\r\n"),
        (["", "QUIT", "PING"], b"+OK\r\n"),
    ],
)
def test_what_is_answered(start: Start, requests: list[str], answers: bytes) -> None:
    assert ask(start(), *requests) == answers


def test_requests_arrive_in_pieces_and_many_at_once(start: Start) -> None:
    client = start().connect()
    for byte in request(b"SET", b"a\r\n", b"\0" * 10):
        client.send(bytes([byte]))
    assert client.take() == b"+OK\r\n"
    client.send(request(b"GET", b"a\r\n") * 5000)
    client.send_eof()
    assert client.take() == b"$10\r\n" + (b"\0" * 10 + b"\r\n$10\r\n") * 4999 + b"\0" * 10 + b"\r\n"
    assert client.closed


def test_a_client_that_does_not_read_is_waited_for(start: Start) -> None:
    harness = start()
    client = harness.connect()
    client.send(request(b"SET", b"a", b"x" * 1_000_000))
    assert client.take() == b"+OK\r\n"
    client.stop_reading()
    client.send(request(b"GET", b"a") * 50)
    assert client.connection is not None
    assert client.connection.unsent < 3_000_000
    client.resume_reading()
    assert len(client.received) == 50 * (len(b"$1000000\r\n\r\n") + 1_000_000)


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"*1\r\n:1\r\n", b"expected '$', got ':'"),
        (b"*9\r\n", b"invalid multibulk length"),
        (b"*x\r\n", b"invalid multibulk length"),
        (b"*1\r\n$11\r\n", b"invalid bulk length"),
        (b"*1\r\n$-1\r\n", b"invalid bulk length"),
        (b"*4\r\n" + b"$10\r\n0123456789\r\n" * 2 + b"$9\r\n", b"invalid bulk length"),
        (b"x" * 70_000, b"too big inline request"),
        (b"set 'a\r\n", b"unbalanced quotes in request"),
    ],
)
def test_limits_and_what_is_no_request(start: Start, sent: bytes, answer: bytes) -> None:
    client = start(max_value=10, max_arguments=4, max_request=25).connect()
    client.send(b"PING\r\n" + sent)
    assert client.received == b"+PONG\r\n-ERR Protocol error: " + answer + b"\r\n"
    assert client.closed


def test_memory_has_a_limit(start: Start) -> None:
    harness = start(max_memory=10)
    assert ask(harness, "SET a 0123456789", "SET b 1", "DEL a", "SET b 1").splitlines()[1][:5] == b"-OOM "
    assert ask(harness, "GET b") == b"$1\r\n1\r\n"


def test_keys_expire_also_if_nobody_asks(start: Start) -> None:
    harness = start()
    assert ask(harness, "SET a 1 EX 1000", "SET b 1 PX 500", "SET c 1") == b"+OK\r\n" * 3
    harness.advance(900)
    assert ask(harness, "DBSIZE") == b":2\r\n"
    assert 50 < int(ask(harness, "TTL a")[1:-2]) <= 100
    harness.advance(101)
    assert ask(harness, "GET a", "DBSIZE") == b"$-1\r\n:1\r\n"


def test_all_comes_back_from_the_file(start: Start, tmp_path: Path) -> None:
    with start() as harness:
        ask(
            harness,
            "SET a 1",
            "SET b 2 EX 100",
            "INCR a",
            "SET c 3",
            "DEL c",
            "SET d 4 EX 1",
            "EXPIRE a 50",
            "PERSIST a",
        )
    with start() as harness:
        harness.advance(2)
        assert (
            ask(harness, "GET a", "GET b", "GET c", "GET d", "TTL a") == b"$1\r\n2\r\n$1\r\n2\r\n$-1\r\n$-1\r\n:-1\r\n"
        )
        ttl = int(ask(harness, "TTL b")[1:-2])
        assert 90 < ttl <= 100
        ask(harness, "FLUSHALL", "SET e 5")
    with start() as harness:
        assert ask(harness, "DBSIZE") == b":1\r\n"


def test_a_torn_end_is_removed_wherever_it_is_torn(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "data"
    whole, last = request(b"SET", b"a", b"1"), request(b"SET", b"b", b"2\r\n")
    for end in (*range(1, len(last)), None):
        file.write_bytes(whole + (last[:end] if end else bytes(100)))
        with start() as harness:
            assert ask(harness, "GET a", "EXISTS b") == b"$1\r\n1\r\n:0\r\n"
        assert file.read_bytes() == whole
    assert "the last change is not whole" in caplog.text


@pytest.mark.parametrize("damage", [b"garbage\r\n", b"*1\r\n$3\r\nFOO\r\n", b"*0\r\n", b"*1\r\n$4\r\nPINGxx*1"])
def test_a_damaged_file_is_not_overwritten(start: Start, tmp_path: Path, damage: bytes) -> None:
    data = request(b"SET", b"a", b"1") + damage + request(b"SET", b"b", b"2")
    (tmp_path / "data").write_bytes(data)
    with pytest.raises(Damaged, match="at byte 27"):
        start()
    assert (tmp_path / "data").read_bytes() == data


def test_the_file_has_one_user(start: Start) -> None:
    start()
    with pytest.raises(OSError, match="another process has"):
        start()


def test_the_file_is_compacted_while_clients_write(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A thread does it, which gets a CPU when it does: they write until it has."""
    caplog.set_level("INFO")
    file = tmp_path / "data"
    harness = start(compact_from=3000, fsync="always")
    client = harness.connect()
    last = 0

    def written_and_compacted() -> bool:
        nonlocal last
        last += 100
        numbers = range(last - 100, last)
        client.send(b"".join(request(b"SET", b"key%d" % (number % 10), b"%d" % number) for number in numbers))
        assert client.take() == b"+OK\r\n" * 100
        return caplog.text.count("data: compacted, from") >= 3

    assert harness.run(written_and_compacted, timeout=60.0)
    assert file.stat().st_size < last * len(request(b"SET", b"key0", b"0"))
    assert ask(harness, "SET last 1") == b"+OK\r\n"

    started: list[bytes] = []

    def has_started() -> bool:
        """Once the one that the last writes have begun is done."""
        if not started and (answer := ask(harness, "BGREWRITEAOF")).startswith(b"+Background"):
            started.append(answer)
        return started == [b"+Background append only file rewriting started\r\n"]

    assert harness.run(has_started, timeout=60.0)
    assert harness.run(lambda: file.stat().st_size < 1000, timeout=60.0)
    harness.close()
    with start() as harness:
        answer = b":11\r\n$%d\r\n%d\r\n$1\r\n1\r\n" % (len(str(last - 7)), last - 7)
        assert ask(harness, "DBSIZE", "GET key3", "GET last") == answer


def test_what_can_t_be_written_is_not_acknowledged(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    harness = start(fsync="no")
    client, other = harness.connect(), harness.connect()

    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        client.send("SET a 1\r\n")
    assert client.take() == b""
    assert client.was_reset
    other.send("SET b 1\r\nGET b\r\n")
    assert other.take().startswith(b"-MISCONF ")
    assert other.take() == b""


def test_on_a_reload_idle_clients_are_let_go(start: Start) -> None:
    harness = start()
    client = harness.connect()
    client.send("SET a 1\r\n*1\r\n")
    harness.drain()
    client.send("$4\r\nPING\r\n*1\r\n")  # it was under way
    assert client.received == b"+OK\r\n+PONG\r\n"
    assert not client.closed
    harness.advance(1)
    assert client.end == "restart"


def test_conformance() -> None:
    """However the network cuts it, with half-closes, resets, drains, faults and reloads."""
    dialogue = [
        (request(b"SET", b"a", b"x\r\ny"), b"+OK\r\n"),
        (b"get a\r\n", b"$4\r\nx\r\ny\r\n"),
        (request(b"SET", b"n", b"1"), b"+OK\r\n"),
        (request(b"INCR", b"n"), b":2\r\n"),
        (request(b"TTL", b"n") + b"\r\nPING\r\n", b":-1\r\n+PONG\r\n"),
        (request(b"DEL", b"a", b"n"), b":2\r\n"),
    ]
    assert_conforms(Resp, dialogue, {"file": "data"}, points=16, bulk=65536)


def test_options(tmp_path: Path) -> None:
    assert load_options(Resp, {"file": "x"}, folder=tmp_path).file == tmp_path / "x"
    with pytest.raises(ConfigErrors, match='fsync: got "never" '):
        load_options(Resp, {"fsync": "never"})
    with pytest.raises(ConfigErrors, match=r"file: .* is no directory"):
        Harness(Resp, {"file": "nowhere/x"}, folder=tmp_path)
