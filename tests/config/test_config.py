from __future__ import annotations

import os
import re
import socket
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

import msgspec
import pytest

from poolsrv.config.describe import to_toml
from poolsrv.config.errors import ConfigErrors
from poolsrv.config.model import (
    LISTENER_KEYS,
    POOL_KEYS,
    Config,
    LimitsConfig,
    ListenerConfig,
    LogConfig,
    PoolConfig,
    PoolTable,
    TlsTable,
)
from poolsrv.config.reader import read
from poolsrv.core import cgroups
from poolsrv.core.words import shortlist
from poolsrv.net.addresses import Address, parse

FORMS = '"127.0.0.1:7007", "[::1]:7007", ":7007" or "unix:run/hello.sock"'
SECONDS = "a number of seconds, from 0 to 1000000000"


def errors(tmp_path: Path, text: str) -> list[str]:
    """The messages of a config, without the file's name; none if it is right."""
    path = tmp_path / "test.toml"
    path.write_text(text)
    try:
        read(path).finish()
    except ConfigErrors as error:
        return [line.removeprefix(f"{path}: ") for line in str(error).splitlines()]
    return []


def error_of_listener(tmp_path: Path, lines: str) -> list[str]:
    """The messages of a config with one listener, which has these lines too."""
    defaults = {"bind": '":7007"', "handler": '"echo"'}
    for key, value in defaults.items():
        if not any(line.startswith(f"{key} ") for line in lines.splitlines()):
            lines = f"{key} = {value}\n{lines}"
    return errors(tmp_path, f"[listeners.www]\n{lines}")


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
    )


def test_what_is_left_out_has_its_default(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("mode", ["0o640", '"0640"', '"640"', '"0o640"'])
def test_a_socket_mode_is_octal_in_each_way_of_writing(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "mode.toml"
    path.write_text(f'[listeners.a]\nbind = "unix:a"\nhandler = "echo"\nsocket_mode = {mode}\n')
    assert read(path).finish().listeners[0].socket_mode == 0o640


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


UNIX = 'bind = "unix:a.sock"\n'
ABOUT_TCP = "is about TCP, and this listener has only unix sockets"
FOR_SYSTEMD = "comes too late for sockets of systemd, expected ReusePort= in their unit"


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        ("keepalive = 32768", ["keepalive: got 32768, expected a whole number from 0 to 32767"]),
        ("keepalive = 1.5", ["keepalive: got 1.5, expected a whole number from 0 to 32767"]),
        (
            "tcp_user_timeout = 2147484",
            ["tcp_user_timeout: got 2147484, expected a number of seconds, from 0 to 2147483"],
        ),
        ("tcp_nodelay = 1", ["tcp_nodelay: got 1 (a number), expected true or false"]),
        (UNIX + "tcp_nodelay = true", [f"tcp_nodelay: {ABOUT_TCP}"]),
        (
            UNIX + "keepalive = 1\ntcp_user_timeout = 1\nreuse_port = true",
            [f"{name}: {ABOUT_TCP}" for name in ("keepalive", "tcp_user_timeout", "reuse_port")],
        ),
        (UNIX + "tcp_nodelay = false\nkeepalive = 0\nreuse_port = false", []),
        ('bind = "systemd:a"\nreuse_port = true', [f"reuse_port: {FOR_SYSTEMD}"]),
        ('bind = ["systemd:a", ":0"]\nreuse_port = true', []),
    ],
)
def test_options_of_tcp(lines: str, messages: list[str], tmp_path: Path) -> None:
    assert error_of_listener(tmp_path, lines) == [f"listeners.www.{message}" for message in messages]


NO_PROXIES = (
    'listeners.www.trusted_proxies: missing, expected the networks of the proxies, such as "192.0.2.0/24", "192.0.2.7"'
    ' or "2001:db8::/32": what they say is believed'
)
ABOUT_NOTHING = "has no effect alone, expected `proxy_protocol` beside it"


@pytest.mark.parametrize(
    ("lines", "messages"),
    [
        ("proxy_protocol = true", [NO_PROXIES]),
        ("proxy_protocol = true\ntrusted_proxies = []", [NO_PROXIES]),
        ('proxy_protocol = true\nbind = ["unix:a.sock", "[::1]:0"]', [NO_PROXIES]),
        ('proxy_protocol = true\nbind = "unix:a.sock"', []),
        ('proxy_protocol = true\nbind = "unix:a.sock"\nmax_per_source = 2\nallow = ["::1"]', []),
        ('proxy_protocol = true\nbind = "systemd:a"', []),
        ("proxy_protocol = false", []),
        ('proxy_protocol = false\ntrusted_proxies = ["::/0"]\nproxy_header_timeout = 1', []),
        (
            "proxy_protocol = true\ntrusted_proxies = 3",
            ["listeners.www.trusted_proxies: got 3 (a number), expected a list of strings"],
        ),
        (
            'proxy_protocol = 1\ntrusted_proxies = ["::/0"]',
            ["listeners.www.proxy_protocol: got 1 (a number), expected true or false"],
        ),
        (
            'trusted_proxies = ["192.0.2.0/24"]\nproxy_header_timeout = 1',
            [f"listeners.www.proxy_header_timeout: {ABOUT_NOTHING}"],  # of trusted_proxies the plugins have to be asked
        ),
        (
            'proxy_protocol = true\ntrusted_proxies = ["192.0.2.0/24", "proxy.example"]',
            [
                'listeners.www.trusted_proxies[1]: "proxy.example" is a host name, which is not looked up, expected a'
                ' network such as "192.0.2.0/24", "192.0.2.7" or "2001:db8::/32"'
            ],
        ),
    ],
)
def test_proxies(lines: str, messages: list[str], tmp_path: Path) -> None:
    assert error_of_listener(tmp_path, lines) == messages


LISTENER = '[listeners.a]\nbind = ":7007"\nhandler = "echo"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no listeners, expected at least one table [listeners.NAME] with `bind` and `handler`"),
        ("[listeners]", "no listeners, expected at least one table [listeners.NAME] with `bind` and `handler`"),
        ("listeners = 3", "listeners: got 3 (a number), expected a table for each listener: [listeners.NAME]"),
        (f"{LISTENER}[pool]\nworkers = 0", 'pool.workers: got 0, expected a whole number from 1 to 1024 or "auto"'),
        (
            f'{LISTENER}[pool]\nworkers = "atuo"',
            'pool.workers: got "atuo" (did you mean "auto"?), expected a whole number from 1 to 1024 or "auto"',
        ),
        (
            f'{LISTENER}[pool]\ndispatch = "round_robin"',
            'pool.dispatch: got "round_robin" (did you mean "round-robin"?), expected "round-robin" or'
            ' "least-connections"',
        ),
        (
            f"{LISTENER}[pool]\ngracefull_timeout = 3",
            f'pool.gracefull_timeout: unknown key (did you mean "graceful_timeout"?), expected {shortlist(POOL_KEYS)}',
        ),
        (f'{LISTENER}[pool]\nbind = ":1"', "pool.bind: `bind` belongs in [listeners.NAME]"),
        (f"pool = 3\n{LISTENER}", "pool: got 3 (a number), expected a table: [pool]"),
        (f"dispatch = 3\n{LISTENER}", "dispatch: `dispatch` belongs in [pool]"),
        (f"idle_timeout = 3\n{LISTENER}", "idle_timeout: `idle_timeout` belongs in [listeners.NAME]"),
        (f"workers = 3\n{LISTENER}", "workers: `workers` belongs in [pool] or [listeners.NAME]"),
        (
            f"dispach = 3\n{LISTENER}",
            'dispach: unknown key (did you mean "dispatch"?), expected the tables [pool], [limits], [log] and'
            " [listeners.NAME]",
        ),
        ('[listener.x]\nbind = ":7007"', "listener: unknown table [listener.x], expected [listeners.x]"),
        (
            f"{LISTENER}[Pool]",
            'Pool: unknown table [Pool] (did you mean "pool"?), expected [pool], [limits], [log] or [listeners.NAME]',
        ),
        (f"log = 3\n{LISTENER}", "log: got 3 (a number), expected a table: [log]"),
        (f'{LISTENER}[log]\nformat = "xml"', 'log.format: got "xml", expected "text" or "json"'),
        (
            f'{LISTENER}[log]\nlevel = "warn"',
            'log.level: got "warn" (did you mean "warning"?), expected "debug", "info", "warning" or "error"',
        ),
        (f"{LISTENER}[log]\nfile = 3", "log.file: got 3 (a number), expected a path"),
        (f"{LISTENER}[log]\npidfile = 3", "log.pidfile: `pidfile` belongs in [pool]"),
        (f"{LISTENER}[log]\nfiel = 3", 'log.fiel: unknown key (did you mean "file"?), expected format, level or file'),
        (f'{LISTENER}[log]\nfile = "/"', "log.file: / is a directory, expected a file"),
        (f"{LISTENER}[server]", "server: unknown table [server], expected [pool], [limits], [log] or [listeners.NAME]"),
        (
            f"{LISTENER}[echo]\nx = 1",
            "echo: no place for a plugin's options, expected them on a listener: [listeners.NAME.echo]",
        ),
        ("[listeners]\na = 3", "listeners.a: got 3 (a number), expected a table: [listeners.a]"),
        ('[listeners]\nbind = ":1"', "listeners.bind: `bind` belongs in the table of one listener: [listeners.NAME]"),
        (
            "[[listeners.x]]",
            "listeners.x: got a list of tables (double brackets), expected a table: [listeners.x]",
        ),
        (
            '[listeners."a b"]\nbind = ":7007"\nhandler = "echo"',
            'listeners."a b": not a name for a listener, expected letters, digits, - and _',
        ),
        (
            f"{LISTENER}workers = 3\n[pool]\nworkers = 2",
            "listeners.a.workers: got 3, expected at most the 2 of [pool]",
        ),
        (
            f'{LISTENER}[listeners.b]\nbind = "127.0.0.1:7007"\nhandler = "echo"',
            'listeners.b.bind: "127.0.0.1:7007" overlaps with ":7007" of [listeners.a], expected each address once',
        ),
        (
            f'{LISTENER}[listeners.b]\nbind = ":7007"\nhandler = "echo"',
            'listeners.b.bind: ":7007" is an address of [listeners.a] too, expected each address once',
        ),
        (
            '[listeners.a]\nhandler = "echo"',
            f"listeners.a.bind: missing, expected a string with an address, such as {FORMS}",
        ),
        (
            '[listeners.a]\nbind = ":7007"',
            "listeners.a.handler: missing, expected the name of a plugin (`poolsrv plugins` lists them)",
        ),
    ],
)
def test_a_mistake_in_the_shape_of_the_file(text: str, message: str, tmp_path: Path) -> None:
    assert errors(tmp_path, text) == [message]


def test_port_0_never_overlaps(tmp_path: Path) -> None:
    text = '[listeners.a]\nbind = ":0"\nhandler = "echo"\n[listeners.b]\nbind = [":0", "127.0.0.1:0"]\nhandler = "echo"'
    assert errors(tmp_path, text) == []


def test_all_errors_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    found = errors(
        tmp_path,
        """
        idle_timeout = 1
        [listeners.b]
        handler = 3
        bind = [":1", 2, "x:3"]
        [pool]
        hang_timeout = true
        workers = -1
        [listeners.a]
        max_unsent = "x"
        """,
    )
    assert [message.split(": ")[0] for message in found] == [
        "idle_timeout",
        "listeners.b.handler",
        "listeners.b.bind[1]",
        "listeners.b.bind[2]",
        "listeners.a.bind",
        "listeners.a.handler",
        "listeners.a.max_unsent",
        "pool.hang_timeout",
        "pool.workers",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = 1\nb = ", "line 2, column 5: Invalid value"),
        (b"a = 1\n\nb == 1", "line 3, column 4: Invalid value"),
        (b"[pool\n", "line 1, column 6: Expected ']' at the end of a table declaration"),
        (b"a = [1,\n 2", "line 2, column 3: Unclosed array"),
        (b"[listeners.a]\n[listeners.a]\n", "line 2, column 13: Cannot declare listeners.a twice"),
        (b"# \xc3\xa9\nb = \xff", "line 2, column 5: not UTF-8, expected TOML, which is always in UTF-8"),
    ],
)
def test_what_is_not_toml_is_an_error_with_line_and_column(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigErrors) as error:
        read(path)
    assert str(error.value) == f"{path}: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bind = 127.0.0.1:7007", 'line 1, column 13: text without quotes, expected bind = "127.0.0.1:7007"'),
        ("bind = 127.0.0.1:7007  # here", 'line 1, column 13: text without quotes, expected bind = "127.0.0.1:7007"'),
        ("bind = :8080", 'line 1, column 8: text without quotes, expected bind = ":8080"'),
        ("bind = [::1]:80", 'line 1, column 9: text without quotes, expected bind = "[::1]:80"'),
        ('bind = ["a", :80]', 'line 1, column 14: text without quotes, expected bind = ["a", ":80"]'),
        ("bind = [\n  127.0.0.1:80,\n]", 'line 2, column 8: text without quotes, expected "127.0.0.1:80"'),
        ("[a]\nb.root = /srv", 'line 2, column 10: text without quotes, expected b.root = "/srv"'),
        ("user = www-data", 'line 1, column 8: text without quotes, expected user = "www-data"'),
        ("a = yes", "line 1, column 5: yes is no value, expected a = true"),
        ("umask = 027", "line 1, column 10: a number with a zero in front, expected umask = 0o27"),
        (
            "a = 30s",
            "line 1, column 7: a number with a unit (times are in seconds, sizes in bytes), expected a = 30",
        ),
        ("workers: 4", "line 1, column 8: a colon after the key, expected workers = 4"),
        ("a = \u201cecho\u201d", 'line 1, column 5: typographic quotation marks, expected straight ones: "echo"'),
        ("a\u00a0= 1", "line 1, column 2: U+00A0 (no-break space), expected TOML: `key = value`, or a [table]"),
        ("a = 1\n\ufeffb = 2", "line 2, column 1: a byte order mark (U+FEFF), expected none, or one at the start"),
        ("a = b = c", "line 1, column 5: Invalid value"),
        ("a = " + "[" * 5000, "can't be read: it is nested too deeply"),
    ],
)
def test_what_was_probably_meant_comes_first(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(ConfigErrors) as error:
        read(path)
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_byte_order_mark_at_the_start_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(b'\xef\xbb\xbf[listeners.a]\r\nbind = ":1"\r\nhandler = "echo"\r\n')
    assert read(path).finish().listeners[0].handler == "echo"
    path.write_bytes(b"\xef\xbb\xbfa = 1\nb = \xff")
    assert errors_of(path) == ["line 2, column 5: not UTF-8, expected TOML, which is always in UTF-8"]
    path.write_bytes("a = 1".encode("utf-16"))
    assert errors_of(path) == ["line 1, column 1: in UTF-16, expected TOML, which is always in UTF-8"]


@pytest.mark.parametrize("key", ["umask", "socket_mode"])
@pytest.mark.parametrize(
    ("written", "mode"),
    [("0o22", 0o22), ("0x1b4", 0o664), ("0b110", 0o6), ("7", 7), ("0", 0), ("0o777", 0o777), ('"022"', 0o22)],
)
def test_permission_bits_that_are_clear(key: str, written: str, mode: int, tmp_path: Path) -> None:
    assert errors(tmp_path, with_mode(key, written)) == []
    config = read(tmp_path / "test.toml").finish()
    assert (config.pool.umask if key == "umask" else config.listeners[0].socket_mode) == mode


@pytest.mark.parametrize("key", ["umask", "socket_mode"])
@pytest.mark.parametrize(
    ("written", "hint"),
    [("22", " (write 0o022)"), ("440", " (write 0o440)"), ("27 # 0o27", " (write 0o027)"), ("18", ""), ("0o1000", "")],
)
def test_permission_bits_in_decimal_are_an_error_with_a_hint(key: str, written: str, hint: str, tmp_path: Path) -> None:
    example = "0o022" if key == "umask" else "0o660"
    (message,) = errors(tmp_path, with_mode(key, written))
    assert message.endswith(f", expected permission bits in octal, such as {example}{hint}")


def with_mode(key: str, written: str) -> str:
    pool, own = (f"umask = {written}", "") if key == "umask" else ("", f"socket_mode = {written}")
    return f'[pool]\n{pool}\n[listeners.a]\nbind = "unix:a"\nhandler = "echo"\n{own}\n'


def test_the_notation_of_permission_bits_is_found_in_every_way_of_writing_tables(tmp_path: Path) -> None:
    listener = '[listeners.a]\nbind = ":1"\nhandler = "echo"\n'
    for written in ("pool.umask = 22\n", "pool = { workers = 1, umask = 22 }\n", '[pool]\n"umask" = 22\n'):
        assert len(errors(tmp_path, written + listener)) == 1, written
        assert errors(tmp_path, written.replace("22", "0o22") + listener) == [], written


@pytest.mark.parametrize("key", ["pool.pidfile", "log.file", "pool.chdir"])
def test_a_directory_that_is_missing_is_an_error(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    name = "" if key == "pool.chdir" else "/name"
    table, _, own = key.partition(".")
    listener = '[listeners.a]\nbind = ":1"\nhandler = "echo"\n'
    config = f'[{table}]\n{own} = "{{}}{name}"\n{listener}'
    assert errors(tmp_path, config.format("gone")) == [f"{key}: there is no directory {tmp_path}/gone, expected one"]
    assert errors(tmp_path, config.format("file")) == [f"{key}: {tmp_path}/file is not a directory, expected one"]
    assert errors(tmp_path, config.format(".")) == []
    assert not (tmp_path / "gone").exists()


def test_the_directory_of_the_control_socket_is_made(tmp_path: Path) -> None:
    listener = '[listeners.a]\nbind = ":1"\nhandler = "echo"\n'
    assert errors(tmp_path, f'[pool]\npidfile = "run/pid"\ncontrol = "run/ctl"\n{listener}') == []


def errors_of(path: Path) -> list[str]:
    with pytest.raises(ConfigErrors) as error:
        read(path)
    return [line.removeprefix(f"{path}: ") for line in str(error.value).splitlines()]


def test_what_can_not_be_read_says_why(tmp_path: Path) -> None:
    for path, message in [
        (tmp_path / "nothere.toml", "no such file, expected a config file"),
        (tmp_path, "a directory, expected a config file"),
        (Path("/proc/self/mem"), "can't be read: Input/output error"),
        (tmp_path / "a\0b", "can't be read: embedded null byte"),
    ]:
        with pytest.raises(ConfigErrors) as error:
            read(path)
        assert str(error.value) == f"{path}: {message}"


def test_auto_is_the_affinity_mask() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cgroups.usable() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("membership", "mount", "files", "expected"),
    [
        ("0::/", "/ {root} rw - cgroup2 cgroup2 rw", {"cpu.max": "150000 100000"}, [1.5]),
        ("0::/", "/ {root} rw - cgroup2 cgroup2 rw", {"cpu.max": "max 100000"}, []),
        # The tightest on the way up counts.
        (
            "0::/a/b",
            "/ {root} rw - cgroup2 cgroup2 rw",
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"},
            [2.0],
        ),
        # A container that sees only its own part of the tree.
        ("0::/outer/inner", "/outer {root} rw - cgroup2 cgroup2 rw", {"inner/cpu.max": "50000 100000"}, [0.5]),
        ("0::/elsewhere", "/outer {root} rw - cgroup2 cgroup2 rw", {"cpu.max": "300000 100000"}, [3.0]),
        (
            "4:cpu,cpuacct:/a\n3:memory:/b",
            "/ {root} rw - cgroup cgroup rw,cpu,cpuacct",
            {"a/cpu.cfs_quota_us": "250000", "a/cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1"},
            [2.5],
        ),
        ("3:memory:/b", "/ {root} rw - cgroup cgroup rw,memory", {}, []),
    ],
)
def test_a_cgroup_quota_is_found(
    membership: str, mount: str, files: dict[str, str], expected: list[float], tmp_path: Path
) -> None:
    process, root = tmp_path / "proc", tmp_path / "cgroup"
    process.mkdir()
    root.mkdir()
    (process / "cgroup").write_text(membership + "\n")
    (process / "mountinfo").write_text(f"24 1 8:1 / / rw - ext4 /dev/sda rw\n31 24 0:27 {mount.format(root=root)}\n")
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")
    assert list(cgroups._quotas(process)) == expected


@pytest.mark.parametrize(
    ("schema", "section"),
    [
        (PoolTable, "[pool]"),
        (LimitsConfig, "[limits]"),
        (LogConfig, "[log]"),
        (TlsTable, "[listeners.NAME.tls]"),
        (ListenerConfig, "[listeners.NAME]"),
    ],
)
def test_the_reference_has_every_key_with_its_default(schema: type[msgspec.Struct], section: str) -> None:
    text = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()
    body = text.split(f"## `{section}`\n")[1].split("\n## ")[0].split("\n### ")[0]
    documented = {}
    for row in re.findall(r"^\| `(\w+)` \| .* \| (.*?) \| [^|]*\|$", body, re.MULTILINE):
        documented[row[0]] = row[1]
    in_words = {"bind": "required", "handler": "required", "workers": "all", "half_close": "the handler's"}
    in_words |= dict.fromkeys(("user", "umask", "chdir", "open_files", "core_size"), "as it was started")
    in_words |= {"no_new_privs": "`true` with `user`", "group": "the user's", "alpn": "`[]`", "sni": "`[]`"}
    in_words |= {
        "socket_mode": "as the umask has it",
        "plugins": "`[]`",
        "allow": "`[]`",
        "deny": "`[]`",
        "trusted_proxies": "`[]`",
        "pidfile": "none",
        "tls": "none",
        "certificate": "required",
    }
    in_words |= {"key": "in `certificate`", "client_ca": "none", "client_certificate": "required"}
    in_words |= {"file": "standard error", "control": "none"}
    expected = {}
    for field in msgspec.structs.fields(schema):
        if schema is ListenerConfig and field.name not in LISTENER_KEYS:
            continue
        has_default = field.default is not msgspec.NODEFAULT and field.default is not None
        expected[field.name] = f"`{to_toml(field.default)}`" if has_default else in_words[field.name]
    assert documented == expected
