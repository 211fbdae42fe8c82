"""How files go out, in this process: slow clients, files that change, ends of all kinds, and hostile requests."""

from __future__ import annotations

import errno
import gc
import logging
import os
import re
import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from poolsrv_files import Files
from poolsrv_http import Response
from poolsrv_http.files.transfer import Transfer

from poolsrv.testing import Client, Harness
from tests.cgi.test_hostile import NEXT
from tests.helpers.hostile import CHAPTERS, Case, build_tree, bytes_of, check_each
from tests.helpers.http import read_response
from tests.helpers.server import open_descriptors

BIG = os.urandom(1 << 16) * 32  # 2 MiB: more than the kernel keeps
Make = Callable[..., Harness]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    (root / "big").write_bytes(BIG)
    (root / "small").write_bytes(b"0123456789")
    return root


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO)
    return caplog


@pytest.fixture(scope="module", autouse=True)
def first(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What is made once in a process is made here."""
    with Harness(Files, {"root": str(tmp_path_factory.mktemp("first"))}) as harness:
        harness.connect().send(get("/"))
    del harness
    gc.collect()


@pytest.fixture
def make(root: Path) -> Iterator[Make]:
    """A harness of the plugin; no descriptor is left open behind it."""
    made: list[Harness] = []

    def make(**options: Any) -> Harness:
        made.append(Harness(Files, {"root": str(root), **options}))
        return made[-1]

    yield make
    while made:
        made.pop().close()
    gc.collect()


def get(target: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/{version}", "Host: a", *fields, "", ""]).encode()


def begin(harness: Harness, target: str = "/big") -> Client:
    """A client that has asked for a file, and reads nothing of it."""
    client = harness.connect()
    client.stop_reading()
    client.send(get(target))
    return client


def is_open(name: str) -> bool:
    """Whether this process has a file of this name open."""
    return any(target.endswith(f"/root/{name}") for target in open_descriptors(os.getpid()))


def test_a_client_that_takes_nothing_is_reset(make: Make, log: pytest.LogCaptureFixture) -> None:
    """A slow reader keeps no descriptor for ever."""
    harness = make(send_timeout=10.0)
    client = begin(harness)
    assert is_open("big")
    harness.advance(18)
    assert client.end == "send_timeout"
    assert "the client has taken nothing of a file within send_timeout" in log.text
    assert not is_open("big")


def test_a_client_that_takes_a_little_now_and_then_is_not(make: Make) -> None:
    harness = make(send_timeout=10.0)
    client = begin(harness)
    taken = b""
    for _ in range(5):
        harness.advance(7)
        while select.select([client._sock], [], [], 0)[0]:
            taken += client._sock.recv(65536)
    assert not client.end
    client.resume_reading()
    assert (taken + client.received).endswith(BIG)


def test_no_time_limit(make: Make) -> None:
    harness = make(send_timeout=0.0)
    client = begin(harness)
    harness.advance(10_000)
    client.resume_reading()
    assert client.received.endswith(BIG)


def test_a_file_that_becomes_shorter(make: Make, root: Path, log: pytest.LogCaptureFixture) -> None:
    """The client can tell that it has not got all; nothing waits for what is not there."""
    harness = make()
    client = begin(harness)
    os.truncate(root / "big", 1000)
    client.resume_reading()
    head, _, body = client.received.partition(b"\r\n\r\n")
    assert f"content-length: {len(BIG)}".encode() in head.lower()
    assert len(body) < len(BIG)
    assert client.closed
    assert "a file was cut short after" in log.text
    other = harness.connect()
    other.send(get("/big"))
    assert len(other.received.partition(b"\r\n\r\n")[2]) == 1000


def test_a_file_that_grows_or_is_replaced(make: Make, root: Path) -> None:
    """What was announced is sent, of the file that was announced."""
    harness = make()
    client = begin(harness)
    with (root / "big").open("ab") as file:
        file.write(b"more")
    (root / "new").write_bytes(b"new")
    (root / "new").rename(root / "big")
    client.resume_reading()
    assert client.received.partition(b"\r\n\r\n")[2] == BIG
    client.take()
    client.send(get("/big"))
    assert client.received.endswith(b"\r\n\r\nnew")


@pytest.mark.parametrize("end", ["reset", "close"])
def test_a_client_that_goes_away(make: Make, end: str) -> None:
    harness = make()
    client = begin(harness)
    getattr(client, end)()
    harness.run(lambda: not harness.open_connections)
    assert not is_open("big")


def test_a_client_that_has_finished_sending_gets_its_file(make: Make) -> None:
    harness = make()
    client = begin(harness)
    client.send_eof()
    client.resume_reading()
    assert client.received.endswith(BIG)
    assert client.closed


def test_requests_one_behind_the_other(make: Make) -> None:
    """RFC 9112 section 9.3.2: answers in the order of the requests."""
    client = make().connect()
    client.stop_reading()
    wanted = ["/small", "/big", "/nothing", "/small", "/big", "/small"] * 3
    client.send(b"".join(map(get, wanted)))
    client.resume_reading()
    data = client.received
    for target in wanted:
        body = {"/small": b"0123456789", "/big": BIG, "/nothing": b"404 Not Found\n"}[target]
        _, _, data = data.partition(b"\r\n\r\n")
        assert data.startswith(body), target
        data = data[len(body) :]
    assert data == b""


def test_http_1_0(make: Make) -> None:
    client = make().connect()
    client.send(get("/big", version="1.0"))
    head, body, goes_on = read_response(client.received)
    assert (head.status_code, body == BIG, goes_on) == (200, True, False)
    assert client.closed


def test_a_worker_that_drains_finishes_its_files(make: Make) -> None:
    harness = make()
    client = begin(harness)
    harness.drain()
    client.resume_reading()
    assert client.received.endswith(BIG)


def test_no_descriptors_left(make: Make, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the server's fault, for now: RFC 9110 section 15.6.4."""
    harness = make()
    client = harness.connect()
    real = os.open

    def refuse(name: Any, *arguments: Any, **keywords: Any) -> int:
        if os.fsencode(name).startswith(os.fsencode(root)):
            raise OSError(errno.EMFILE, "Too many open files")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    client.send(get("/small"))
    head, _, _ = read_response(client.received, closed=False)
    assert (head.status_code, dict(head.headers)[b"retry-after"]) == (503, b"5")


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_a_file_that_can_not_be_opened(make: Make, root: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    client = make().connect()
    real = os.open

    def refuse(name: Any, *arguments: Any, **keywords: Any) -> int:
        if os.fsencode(name).startswith(b"/proc/self/fd/"):
            raise OSError(number, os.strerror(number))
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(os, "open", refuse)
    client.send(get("/small"))
    assert read_response(client.received, closed=False)[0].status_code == (403 if number == errno.EACCES else 500)
    assert not is_open("small")


def test_a_file_that_can_not_be_read(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    client = make().connect()

    def refuse(*arguments: object) -> bytes:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "pread", refuse)
    client.send(get("/small"))
    assert read_response(client.received, closed=False)[0].status_code == 500
    assert not is_open("small")


def test_a_request_leaves_no_reference_cycle_behind(make: Make) -> None:
    """They would have to wait for the garbage collector, with the file open."""
    client = make().connect()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for target, field in (("/small", "A: b"), ("/big", "A: b"), ("/big", "Range: bytes=0-0,5-5"), ("/no", "A: b")):
            client.send(get(target, field))
        client.send(get("/big", method="HEAD") + get("/big", method="POST"))
        gc.collect()
        left = [type(thing).__name__ for thing in gc.garbage if isinstance(thing, Transfer | Response)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert left == []


# --- the corpus of hostile requests

# By what the parser, the framing or the path decides: the same for files and for programs.
DECIDED_EARLY = {400, 408, 414, 417, 431, 501, 505}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Harness, Path]]:
    folder = tmp_path_factory.mktemp("hostile")
    root = build_tree(folder)
    (folder / "outside" / "secret.sh").write_text("SECRET")
    (root / ".hidden").write_text("SECRET")
    with Harness(Files, {"root": str(root), "listings": True}) as harness:
        client = harness.connect()
        client.send(get("/sub/"))  # so that the worker has the thread that makes listings
        assert harness.run(lambda: b"deeper" in client.received)
        client.close()
        assert harness.run(lambda: not harness.open_connections)
        gc.collect()
        yield harness, root


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_hostile_requests(chapter: str, hostile: tuple[Harness, Path]) -> None:
    check_each(chapter, lambda case: assert_its_answers(case, *hostile))


def assert_its_answers(case: Case, harness: Harness, root: Path) -> None:
    """What is no request for a program is none for a file; nothing leads out; no request hides in another one."""
    client = harness.connect()
    client.send(bytes_of(case) + NEXT)
    harness.run(lambda: not harness.busy)  # a thread makes listings
    harness.advance(60)
    assert b"SECRET" not in client.received
    assert os.fsencode(root) not in client.received
    statuses = [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", client.received)]
    expected = case["answers"]
    for status, wanted in zip(statuses, expected, strict=False):
        assert status < 500 or status == wanted
        if wanted in DECIDED_EARLY:
            assert status in (wanted, 405), f"{status} in the place of {wanted}"
    assert len(statuses) >= min(len(expected), 1)
    assert len(statuses) <= len(expected) + case["survives"]
    client.close()
    assert harness.run(lambda: not harness.open_connections)
