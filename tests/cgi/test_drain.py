"""A worker that is to end, in the middle of the protocols without HTTP: a reload loses no client."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
from poolsrv_cgi import Cgi

from poolsrv.testing import Harness
from tests.helpers.http import write_programs


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """What a harness has open may be part of a cycle."""
    yield
    gc.collect()


def line(folder: Path) -> Harness:
    """The server is not a fixture: pytest would keep it beyond the comparison of descriptors."""
    root = write_programs(folder / "root", {"hello.sh": "echo hello"})
    return Harness(Cgi, {"protocol": "line", "root": str(root)})


def test_a_line_that_is_on_its_way_is_served(tmp_path: Path) -> None:
    with line(tmp_path) as harness:
        client = harness.connect()
        harness.drain()
        client.send(b"hel")
        client.send(b"lo.sh\n")
        assert client.receive_all() == b"hello\n"


def test_a_client_without_a_line_is_disconnected_soon(tmp_path: Path) -> None:
    with line(tmp_path) as harness:
        client = harness.connect()
        harness.drain()
        harness.advance(1.0)
        assert client.end == ""
        harness.advance(1.1)
        assert client.end == "drain"


def test_a_client_of_inetd_that_waits_for_its_program_gets_it(tmp_path: Path) -> None:
    options = {"protocol": "inetd", "program": ["cat"], "max_programs": 1}
    with Harness(Cgi, options) as harness:
        first, second = harness.connect(), harness.connect()
        harness.drain()
        for client in (first, second):
            client.send(b"hello")
            client.send_eof()
            assert client.receive_all() == b"hello"
