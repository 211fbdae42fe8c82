"""Reading a config file: values, defaults, and the errors of single values."""

from __future__ import annotations

import socket
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import pytest

from poolsrv.config.model import (
    Config,
    ListenerConfig,
    LogConfig,
    PoolConfig,
)
from poolsrv.config.reader import read
from poolsrv.core import cgroups
from poolsrv.net.addresses import Address, parse
from tests.helpers.configs import FORMS, error_of_listener

SECONDS = "a number of seconds, from 0 to 1000000000"


def test_every_key_is_read(tmp_path: Path) -> None:
    path = tmp_path / "all.toml"
    path.write_text(
        """
        [pool]
        workers = 3
        dispatch = "least-connections"
        graceful_timeout = 5
        hang_timeout = 2.5
        [log]
        format = "json"
        level = "debug"
        file = "server.log"
        [listeners.www]
        bind = ["127.0.0.1:7007", "unix:run/a.sock"]
        handler = "cgi"
        plugins = ["deny", "count"]
        workers = 2
        backlog = 100
        max_connections = 10
        connection_rate = 2.5
        connection_rate_burst = 20
        when_full = "refuse"
        max_per_source = 3
        rate_per_source = 1
        rate_per_source_burst = 5
        ipv6_prefix = 56
        allow = ["192.0.2.0/24", "::1"]
        deny = ["192.0.2.7"]
        idle_timeout = 0
        first_byte_timeout = 2.5
        connection_lifetime = 3600
        half_close = "abort"
        max_unsent = 1000
        socket_mode = 0o660
        tcp_nodelay = false
        keepalive = 60
        tcp_user_timeout = 2.5
        reuse_port = true
        proxy_protocol = true
        trusted_proxies = ["192.0.2.0/24", "2001:db8::7"]
        proxy_header_timeout = 3
        [listeners.www.cgi]
        root = "programs"
        """
    )
    assert read(path).finish() == Config(
        path=path,
        pool=PoolConfig(workers=3, dispatch="least-connections", graceful_timeout=5.0, hang_timeout=2.5),
        listeners=(
            ListenerConfig(
                name="www",
                bind=(
                    Address(socket.AF_INET, "127.0.0.1", 7007),
                    Address(socket.AF_UNIX, path=f"{tmp_path}/run/a.sock"),
                ),
                handler="cgi",
                plugins=("deny", "count"),
                workers=2,
                backlog=100,
                max_connections=10,
                connection_rate=2.5,
                connection_rate_burst=20,
                when_full="refuse",
                max_per_source=3,
                rate_per_source=1.0,
                rate_per_source_burst=5,
                ipv6_prefix=56,
                allow=(IPv4Network("192.0.2.0/24"), IPv6Network("::1")),
                deny=(IPv4Network("192.0.2.7"),),
                idle_timeout=0.0,
                first_byte_timeout=2.5,
                connection_lifetime=3600.0,
                half_close="abort",
                max_unsent=1000,
                socket_mode=0o660,
                tcp_nodelay=False,
                keepalive=60,
                tcp_user_timeout=2.5,
                reuse_port=True,
                proxy_protocol=True,
                trusted_proxies=(IPv4Network("192.0.2.0/24"), IPv6Network("2001:db8::7/128")),
                proxy_header_timeout=3.0,
                plugin_options={"cgi": {"root": "programs"}},
            ),
        ),
        log=LogConfig(format="json", level="debug", file=tmp_path / "server.log"),
        place=str(path),
    )


def test_a_key_that_is_left_out_has_its_default(tmp_path: Path) -> None:
    path = tmp_path / "short.toml"
    path.write_text('[listeners.hello]\nbind = ":7007"\nhandler = "echo"\n')
    assert read(path).finish() == Config(
        path=path,
        pool=PoolConfig(workers=cgroups.usable(), dispatch="round-robin", graceful_timeout=30.0, hang_timeout=0.0),
        listeners=(
            ListenerConfig(
                name="hello",
                bind=(parse(":7007", tmp_path),),
                handler="echo",
                plugins=(),
                workers=None,
                backlog=4096,
                max_connections=0,
                connection_rate=0.0,
                connection_rate_burst=0,
                when_full="wait",
                max_per_source=0,
                rate_per_source=0.0,
                rate_per_source_burst=0,
                ipv6_prefix=64,
                allow=(),
                deny=(),
                idle_timeout=60.0,
                first_byte_timeout=0.0,
                connection_lifetime=0.0,
                half_close=None,
                max_unsent=16777216,
                socket_mode=None,
                tcp_nodelay=True,
                keepalive=300,
                tcp_user_timeout=0.0,
                reuse_port=False,
                proxy_protocol=False,
                trusted_proxies=(),
                proxy_header_timeout=5.0,
                plugin_options={},
            ),
        ),
        place=str(path),
    )


def test_relative_paths_are_relative_to_the_file_not_to_the_directory_of_the_caller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "a.toml").write_text('[listeners.a]\nbind = "unix:a.sock"\nhandler = "echo"\n')
    monkeypatch.chdir(tmp_path)
    config = read(Path("etc/a.toml")).finish()
    assert config.path == Path("etc/a.toml")
    assert config.listeners[0].bind[0].path == f"{tmp_path}/etc/a.sock"


def test_auto_gives_a_listener_that_wants_more_workers_all_of_them(tmp_path: Path) -> None:
    path = tmp_path / "auto.toml"
    path.write_text('[listeners.a]\nbind = ":7007"\nhandler = "echo"\nworkers = 1000\n')
    assert read(path).finish().listeners[0].workers == cgroups.usable()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            "bind = 7007",
            "bind: got 7007 (a number), expected a string with an address: "
            '":7007" for every address, or "127.0.0.1:7007"',
        ),
        (
            "bind = 70077",
            f"bind: got 70077 (a number), expected a string with an address, such as {FORMS}, or a list of these",
        ),
        ("bind = true", f"bind: got true, expected a string with an address, such as {FORMS}, or a list of these"),
        ("bind = []", f"bind: got an empty list, expected at least one address, such as {FORMS}"),
        (
            'bind = [":7007", "localhost:80"]',
            'bind[1]: "localhost:80" has a host name, which is not looked up, expected "127.0.0.1:80" or "[::1]:80"',
        ),
        (
            'bind = [":7007", "127.0.0.1:7007"]',
            'bind[1]: "127.0.0.1:7007" overlaps with ":7007" of this listener, expected each address once',
        ),
        ("handler = 3", "handler: got 3 (a number), expected a string"),
        ('plugins = "deny"', 'plugins: got "deny", expected a list of strings (write ["deny"])'),
        ('plugins = ["deny", 3]', "plugins[1]: got 3 (a number), expected a string"),
        (
            'plugins = ["deny", "deny"]',
            'plugins[1]: the plugin "deny" is named a second time, expected each plugin once',
        ),
        (
            'plugins = ["echo"]',
            'handler: the plugin "echo" is named a second time (it is the handler), expected each plugin once',
        ),
        (
            'handler = "workers"',
            "handler: a plugin can't be named \"workers\": that is one of a listener's own keys",
        ),
        ("workers = 0", "workers: got 0, expected a whole number from 1 to 1024"),
        ("workers = true", "workers: got true, expected a whole number from 1 to 1024"),
        ('workers = "auto"', 'workers: got "auto" (a string), expected a whole number from 1 to 1024'),
        ("max_connections = -1", "max_connections: got -1, expected a whole number from 0"),
        ("backlog = 0", "backlog: got 0, expected a whole number from 1 to 65535"),
        (
            'connection_rate = "10/s"',
            'connection_rate: got "10/s" (a string), expected a number a second, from 0 to 1000000',
        ),
        (
            "connection_rate_burst = 5",
            "connection_rate_burst: has no effect alone, expected `connection_rate` beside it",
        ),
        (
            'when_full = "refuse"',
            "when_full: has no effect alone, expected `max_connections` or `connection_rate` beside it",
        ),
        ('max_connections = 1\nwhen_full = "drop"', 'when_full: got "drop", expected "wait" or "refuse"'),
        ("max_per_source = 1\nipv6_prefix = 0", "ipv6_prefix: got 0, expected a whole number from 1 to 128"),
        ('deny = "192.0.2.1"', 'deny: got "192.0.2.1", expected a list of strings (write ["192.0.2.1"])'),
        (
            'deny = ["::1", "192.0.2.1/24"]',
            'deny[1]: "192.0.2.1/24" has bits set beyond its prefix, expected the network "192.0.2.0/24", or the'
            ' address "192.0.2.1" alone',
        ),
        (
            'allow = ["192.0.2.1"]\ndeny = ["::1", "192.0.2.1/32"]',
            'deny[1]: "192.0.2.1/32" is in `allow` too, expected it in one of them',
        ),
        (
            'bind = "unix:a.sock"\nallow = ["::1"]',
            "allow: is about IP addresses, and this listener has only unix sockets: see `socket_mode`",
        ),
        ("max_connections = 1.5", "max_connections: got 1.5, expected a whole number from 0"),
        (
            'max_connections = "1000"',
            'max_connections: got "1000" (a string), expected a whole number from 0 (write 1000, without quotes)',
        ),
        (
            'idle_timeout = "30s"',
            f'idle_timeout: got "30s" (a string), expected {SECONDS} (times are in seconds: write 30.0)',
        ),
        (
            'idle_timeout = "5 min"',
            f'idle_timeout: got "5 min" (a string), expected {SECONDS} (times are in seconds: write 300.0)',
        ),
        ("idle_timeout = -1.0", f"idle_timeout: got -1.0, expected {SECONDS}"),
        ("idle_timeout = nan", f"idle_timeout: got nan, expected {SECONDS}"),
        ("idle_timeout = inf", f"idle_timeout: got inf, expected {SECONDS}"),
        ("idle_timeout = -inf", f"idle_timeout: got -inf, expected {SECONDS}"),
        ("idle_timeout = 1979-05-27", f"idle_timeout: got 1979-05-27 (a date), expected {SECONDS}"),
        ("idle_timeout = [1]", f"idle_timeout: got a list, expected {SECONDS}"),
        ("[listeners.www.idle_timeout]", f"idle_timeout: got a table, expected {SECONDS}"),
        (
            'half_close = "abrot"',
            'half_close: got "abrot" (did you mean "abort"?), expected "finish", "abort" or "timely"',
        ),
        ("half_close = true", 'half_close: got true, expected "finish", "abort" or "timely"'),
        ("max_unsent = 0", "max_unsent: got 0, expected a whole number from 1"),
        (
            'max_unsent = "16MiB"',
            'max_unsent: got "16MiB" (a string), expected a whole number from 1 (sizes are in bytes: write 16777216)',
        ),
        (
            "socket_mode = 660",
            "socket_mode: got 660, expected permission bits in octal, such as 0o660 (write 0o660)",
        ),
        ("socket_mode = true", "socket_mode: got true, expected permission bits in octal, such as 0o660"),
        ('socket_mode = "rw"', 'socket_mode: got "rw", expected permission bits in octal, such as 0o660'),
    ],
)
def test_a_wrong_value_of_a_listener(lines: str, message: str, tmp_path: Path) -> None:
    assert error_of_listener(tmp_path, lines) == [f"listeners.www.{message}"]
