"""The kernel's accept queue of TCP and unix sockets."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from poolsrv.core.accept_queue import accept_queue


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6, socket.AF_UNIX])
def test_the_queue_is_what_waits(family: socket.AddressFamily, tmp_path: Path) -> None:
    addresses: dict[int, Any] = {socket.AF_INET: ("127.0.0.1", 0), socket.AF_INET6: ("::1", 0)}
    addresses[socket.AF_UNIX] = str(tmp_path / "s")
    with socket.socket(family) as listening:
        listening.bind(addresses[family])
        listening.listen(7)
        clients = [socket.socket(family) for _ in range(3)]
        for number, client in enumerate(clients):
            assert accept_queue(listening) == (number, 7)
            client.connect(listening.getsockname())
        accepted, _ = listening.accept()
        assert accept_queue(listening) == (2, 7)
        for sock in (*clients, accepted):
            sock.close()


def test_of_what_is_closed_nothing_is_told() -> None:
    for family in (socket.AF_INET, socket.AF_UNIX):
        sock = socket.socket(family)
        sock.close()
        assert accept_queue(sock) is None
