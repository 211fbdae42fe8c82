"""The plugin `files` in all the ways in which a network, a client or a server may have it."""

from __future__ import annotations

import gc
import os
import re
from pathlib import Path

from poolsrv_files import Files

from poolsrv.testing import Dialogue, Harness, assert_conforms

REQUESTS = ["/sub/", "/large HTTP/1.1\r\nRange: bytes=5-40000", "/missing"]


def comparable(received: bytes) -> bytes:
    """Without the time, and without what a worker that drains says."""
    return re.sub(rb"(Date: [^\r]*|Connection: close)\r\n", b"", received)


def test_files_conform(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/index.html").write_text("index")
    (tmp_path / "large").write_bytes(os.urandom(50_000))  # more than goes out with the header
    options = {"root": str(tmp_path)}
    requests = [f"GET {text if ' ' in text else f'{text} HTTP/1.1'}\r\nHost: a\r\n\r\n".encode() for text in REQUESTS]
    steps = answers(options, requests)
    assert [int(answer[9:12]) for _, answer in steps] == [200, 206, 404]
    assert_conforms(Files, Dialogue(steps, normalize=comparable), options, points=4, bulk=4096)
    gc.collect()


def answers(options: dict[str, str], requests: list[bytes]) -> list[tuple[bytes, bytes]]:
    with Harness(Files, options) as harness:
        client = harness.connect()
        steps = []
        for request in requests:
            client.send(request)
            steps.append((request, comparable(client.take())))
    return steps
