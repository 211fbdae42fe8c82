"""The echo plugin, as a whole server."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Callable

import pytest

from tests.helpers.server import ServerProcess, receive_all, receive_exactly

pytestmark = pytest.mark.server

CONFIG = """
[pool]
workers = 2
[listeners.hello]
bind = "127.0.0.1:0"
handler = "echo"
"""


def test_echo_answers_and_closes_at_end_of_stream(serve: Callable[..., ServerProcess]) -> None:
    server = serve(CONFIG)
    assert server.exchange("hello", b"hello\n") == b"hello\n"
    assert server.stop() == 0


def test_echo_with_a_client_that_others_wrote(serve: Callable[..., ServerProcess]) -> None:
    server = serve(CONFIG)
    port = server.addresses("hello")[0].rpartition(":")[2]
    answer = subprocess.run(
        ["nc", "-N", "127.0.0.1", port], input=b"hello\n", capture_output=True, timeout=30, check=True
    )
    assert answer.stdout == b"hello\n"


def test_echo_is_complete_for_a_client_that_sends_before_it_reads(serve: Callable[..., ServerProcess]) -> None:
    server = serve(CONFIG)
    data = bytes(range(256)) * 4096
    with server.connect("hello") as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        assert receive_exactly(sock, len(data)) == data
        assert receive_all(sock) == b""
