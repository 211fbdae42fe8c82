"""Warnings about a status that more clients see than was meant."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from poolsrv.config.exposure import warnings
from poolsrv.config.model import Config, ListenerConfig, PoolConfig, TlsTable
from poolsrv.net import access_list, addresses

PUBLIC = "192.0.2.1:9187"


def found(*bind: str, apart: bool = True, **keys: Any) -> list[str]:
    places = tuple(addresses.parse(text, Path("/")) for text in bind)
    listener = ListenerConfig("s", places, "status", apart=apart, **keys)
    return list(warnings(Config(Path("x.toml"), PoolConfig(workers=1), (listener,))))


@pytest.mark.parametrize("bind", [(PUBLIC,), (":9187",), ("[::]:9187", "127.0.0.1:9187"), ("0.0.0.0:9187",)])
def test_an_address_that_others_reach(bind: tuple[str, ...]) -> None:
    assert found(*bind) == [
        f"listeners.s.bind: every client that reaches {bind[0]} sees the server's status: `allow` or `tls.client_ca`"
        " would restrict it"
    ]


def test_addresses_of_this_machine_alone_and_what_restricts_clients() -> None:
    assert not found("127.0.0.1:1", "127.5.0.1:1", "[::1]:1", "unix:/run/s", "systemd:s")
    assert not found(PUBLIC, apart=False)
    assert not found(PUBLIC, allow=(access_list.parse("10.0.0.0/8"),))
    assert not found(PUBLIC, tls=TlsTable(Path("c"), client_ca=Path("ca")))
    assert found(PUBLIC, tls=TlsTable(Path("c")))
