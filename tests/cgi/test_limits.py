"""Limits of the cgi plugin that are options: what is within them passes, what is beyond them is refused, and the log
names the option."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.helpers.http import PROGRAMS, Client, cgi_listener, pool, write_programs
from tests.helpers.server import ServerProcess

pytestmark = pytest.mark.server

FIELDS = """#!/bin/sh
printf 'Content-Type: text/plain\n'
i=1; while [ $i -lt $QUERY_STRING ]; do printf 'X-%s: y\n' $i; i=$((i + 1)); done
printf '\nhello'
"""
# Redirects as often as the query says.
REDIRECTS = """#!/bin/sh
if [ $QUERY_STRING -gt 0 ]; then printf 'Location: /redirects.sh?%s\n\n' $((QUERY_STRING - 1)); exit; fi
printf 'Content-Type: text/plain\n\nhello'
"""
RAISED: dict[str, Any] = {
    "max_header_fields": 3000,
    "max_header_size": 1 << 20,
    "max_target_size": 60000,
    "max_chunk_extensions": 60000,
    "max_local_redirects": 20,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("limits")
    root = write_programs(folder / "root", PROGRAMS | {"fields.sh": FIELDS, "redirects.sh": REDIRECTS})
    config = pool() + cgi_listener(root=root) + cgi_listener("raised", root=root, **RAISED)
    with ServerProcess(config, folder) as running:
        yield running.wait_ready()


def status(server: ServerProcess, listener: str, data: bytes) -> int:
    with Client(server, listener) as client:
        return client.send(data).response().status


def refused(server: ServerProcess, data: bytes, expected: int, option: str) -> None:
    """Beyond the default, whose option the log names with its value; within what the other listener has."""
    assert status(server, "www", data) == expected
    server.wait_for_line(rf"{option} \(\d+( bytes)?\)")
    assert status(server, "raised", data) == 200


def fields(count: int) -> bytes:
    return b"GET /hello.sh HTTP/1.1\r\nHost: a\r\n" + b"X: y\r\n" * (count - 1) + b"\r\n"


def body(chunks: bytes) -> bytes:
    return b"POST /cat.sh HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks


def test_fields_of_a_request(server: ServerProcess) -> None:
    """RFC 6585 section 5: 101 fields are nothing that needs an option."""
    for count in (101, 500):
        assert status(server, "www", fields(count)) == 200
    refused(server, fields(501), 431, "max_header_fields")


def test_fields_of_a_program(server: ServerProcess) -> None:
    """RFC 9110 section 15.6.3: that many are not the program's fault."""
    with Client(server) as client:
        answer = client.get("/fields.sh?400")
        assert (answer.status, answer.body, answer.headers[b"x-399"]) == (200, b"hello", b"y")
    refused(server, b"GET /fields.sh?501 HTTP/1.1\r\nHost: a\r\n\r\n", 502, "max_header_fields")


def test_size_of_a_request(server: ServerProcess) -> None:
    """RFC 6585 section 5, RFC 9110 section 15.5.15."""
    refused(server, b"GET /hello.sh HTTP/1.1\r\nHost: a\r\nX: " + b"y" * 40000 + b"\r\n\r\n", 431, "max_header_size")
    refused(server, b"GET /hello.sh?" + b"y" * 50000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414, "max_target_size")


def test_chunk_extensions_and_trailers(server: ServerProcess) -> None:
    """RFC 9112 sections 7.1.1 and 7.1.2."""
    refused(server, body(b"1;" + b"y" * 20000 + b"\r\na\r\n0\r\n\r\n"), 400, "max_chunk_extensions")
    refused(server, body(b"1;aaaaaaaaa\r\na\r\n" * 2000 + b"0\r\n\r\n"), 400, "max_chunk_extensions")
    refused(server, body(b"0\r\n" + b"X: y\r\n" * 501 + b"\r\n"), 431, "max_header_fields")
    refused(server, body(b"0\r\nX: " + b"y" * 40000 + b"\r\n\r\n"), 431, "max_header_size")
    refused(server, body(b"0\r\n" + b"X: " * 11000 + b"\r\n\r\n"), 431, "max_header_size")
    assert status(server, "www", body(b"0\r\n" + b"X: y\r\n" * 500 + b"\r\n")) == 200


def test_local_redirects(server: ServerProcess) -> None:
    """RFC 3875 section 6.2.2."""
    assert status(server, "www", b"GET /redirects.sh?10 HTTP/1.1\r\nHost: a\r\n\r\n") == 200
    refused(server, b"GET /redirects.sh?11 HTTP/1.1\r\nHost: a\r\n\r\n", 502, "max_local_redirects")


def test_the_body(server: ServerProcess) -> None:
    """RFC 9110 section 15.5.14: the option is named for a body of either kind."""
    assert status(server, "www", b"POST /cat.sh HTTP/1.1\r\nHost: a\r\nContent-Length: 1099511627776\r\n\r\n") == 413
    server.wait_for_line(re.escape("max_body_size (1073741824 bytes)"))
    assert status(server, "raised", body(b"fffffffffff\r\n")) == 413
