"""Errors that several keys make together, and errors in the structure of the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolsrv.config.model import POOL_KEYS
from poolsrv.core.words import shortlist
from tests.helpers.configs import FORMS, LISTENER, error_of_listener, errors

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
def test_socket_options(lines: str, messages: list[str], tmp_path: Path) -> None:
    assert error_of_listener(tmp_path, lines) == [f"listeners.www.{message}" for message in messages]


NO_PROXIES = (
    'listeners.www.trusted_proxies: missing, expected the networks of the proxies, such as "192.0.2.0/24", "192.0.2.7"'
    ' or "2001:db8::/32": what they say is believed'
)


NO_EFFECT = "has no effect alone, expected `proxy_protocol` beside it"


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
            [
                f"listeners.www.proxy_header_timeout: {NO_EFFECT}"
            ],  # whether trusted_proxies has an effect depends on the plugins
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
            'pool.dispatch: got "round_robin" (did you mean "round-robin"?), expected "round-robin",'
            ' "least-connections" or "kernel"',
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
            "listeners.a.handler: missing, expected the name of a plugin (`poolsrv plugins` lists them), or"
            ' "module:Class"',
        ),
    ],
)
def test_a_mistake_in_the_structure_of_the_file(text: str, message: str, tmp_path: Path) -> None:
    assert errors(tmp_path, text) == [message]


def test_port_0_never_overlaps(tmp_path: Path) -> None:
    text = '[listeners.a]\nbind = ":0"\nhandler = "echo"\n[listeners.b]\nbind = [":0", "127.0.0.1:0"]\nhandler = "echo"'
    assert errors(tmp_path, text) == []


def test_all_errors_are_reported_in_the_order_of_the_file(tmp_path: Path) -> None:
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


@pytest.mark.parametrize("key", ["pool.pidfile", "log.file", "pool.chdir"])
def test_a_missing_directory_is_an_error(key: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    name = "" if key == "pool.chdir" else "/name"
    table, _, own = key.partition(".")
    listener = '[listeners.a]\nbind = ":1"\nhandler = "echo"\n'
    config = f'[{table}]\n{own} = "{{}}{name}"\n{listener}'
    assert errors(tmp_path, config.format("gone")) == [f"{key}: there is no directory {tmp_path}/gone, expected one"]
    assert errors(tmp_path, config.format("file")) == [f"{key}: {tmp_path}/file is not a directory, expected one"]
    assert errors(tmp_path, config.format(".")) == []
    assert not (tmp_path / "gone").exists()


def test_a_missing_directory_of_the_control_socket_is_no_error(tmp_path: Path) -> None:
    listener = '[listeners.a]\nbind = ":1"\nhandler = "echo"\n'
    assert errors(tmp_path, f'[pool]\npidfile = "run/pid"\ncontrol = "run/ctl"\n{listener}') == []
