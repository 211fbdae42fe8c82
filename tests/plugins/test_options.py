"""Options of plugins, and keys in the wrong place."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolsrv.cli import plugin_list
from poolsrv.config.model import LISTENER_KEYS
from poolsrv.core.words import shortlist
from tests.helpers.distributions import install
from tests.helpers.plugin_configs import PLAIN, errors

OPTIONS = """
    from __future__ import annotations
    from pathlib import Path
    from typing import Annotated, Any, Literal
    import msgspec
    from poolsrv import ConfigError, hookimpl

    class Limits(msgspec.Struct):
        cpu: float = 1.0
        files: Annotated[int, msgspec.Meta(ge=3, le=100)] = 10

    class Opt:
        class Options(msgspec.Struct):
            root: Path
            protocol: Literal["http", "line"] = "http"
            timeout: Annotated[float, msgspec.Meta(ge=0)] = 30.0
            arguments: bool = False
            env: dict[str, str] = {}
            limits: Limits = msgspec.field(default_factory=Limits)
            places: list[Limits] = []
            roots: dict[str, list[Path]] = {}
            pair: tuple[int, str] | None = None
            name: Annotated[str, msgspec.Meta(min_length=2, pattern="^[a-z]+$")] = "ab"
            few: Annotated[list[int], msgspec.Meta(max_length=2)] = []
            either: int | list[str] = 3
            anything: Any = None

            def __post_init__(self):
                if self.timeout == 13:
                    raise ValueError("13 brings bad luck, expected another number")

        def __init__(self, options):
            if options.env.get("deny") == "root":
                raise ConfigError("root", "no such directory,\\nexpected one")
            if options.env.get("deny") == "cpu":
                raise ConfigError("limits.cpu", "too much")
            if options.env.get("deny") == "all":
                raise ConfigError("", "these don't go together")

        @hookimpl
        def on_readable(self, conn):
            return None
"""


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("root = 3", "root: got 3 (a number), expected a path"),
        ('root = ""', 'root: got "", expected a path'),
        ('root = "a\\u0000b"', 'root: got "a\\u0000b", expected a path'),
        ('protocol = "lin"', 'protocol: got "lin" (did you mean "line"?), expected "http" or "line"'),
        (
            'protocl = "line"',
            'protocl: unknown key (did you mean "protocol"?): `poolsrv plugins opt` lists the options',
        ),
        (
            "zzz = 1",
            "zzz: unknown key, expected root, protocol, timeout, arguments, env, limits or one of 7 others",
        ),
        (
            'timeout = "5m"',
            'timeout: got "5m" (a string), expected a number from 0 (times are in seconds: write 300.0)',
        ),
        ("timeout = nan", "timeout: got nan, expected a number from 0"),
        ("timeout = 13", "13 brings bad luck, expected another number"),
        ("arguments = 1", "arguments: got 1 (a number), expected true or false"),
        ('arguments = "true"', 'arguments: got "true" (a string), expected true or false'),
        ("env = { A = 1 }", "env.A: got 1 (a number), expected a string"),
        ('env = { "a b" = 1 }', 'env."a b": got 1 (a number), expected a string'),
        ("env = [1]", "env: got a list, expected a table of strings"),
        ("limits = { cpu = true }", "limits.cpu: got true, expected a number"),
        ("limits = { files = 2 }", "limits.files: got 2, expected a whole number from 3 to 100"),
        ("limits = { fiels = 3 }", 'limits.fiels: unknown key (did you mean "files"?), expected cpu or files'),
        ("limits = 3", "limits: got 3 (a number), expected a table"),
        ('places = [{}, { cpu = "x" }]', 'places[1].cpu: got "x" (a string), expected a number'),
        ('roots = { a = ["x", 3] }', "roots.a[1]: got 3 (a number), expected a path"),
        ("pair = [1, 2]", "pair[1]: got 2 (a number), expected a string"),
        ("pair = [1]", "pair: got a list, expected a list of 2: a whole number and a string"),
        (
            'name = "A"',
            'name: got "A", expected a string that matches ^[a-z]+$ with at least 2 characters',
        ),
        ("few = [1, 2, 3]", "few: got a list, expected a list of whole numbers with at most 2 members"),
        ("either = [3]", "either[0]: got 3 (a number), expected a string"),
        ("either = true", "either: got true, expected a whole number or a list of strings"),
        ("idle_timeout = 3", "idle_timeout: `idle_timeout` belongs in [listeners.www], above [listeners.www.opt]"),
        ('env = { deny = "root" }', "root: no such directory, expected one"),
        ('env = { deny = "cpu" }', "limits.cpu: too much"),
        ('env = { deny = "all" }', "these don't go together"),
    ],
)
def test_a_wrong_option_has_its_full_place(line: str, message: str, site: Path, tmp_path: Path) -> None:
    install(site, "opt", {"opt": "opt:Opt"}, OPTIONS)
    root = "" if line.startswith("root =") else 'root = "."'
    found = errors(tmp_path, f'[listeners.www]\nbind = ":0"\nhandler = "opt"\n[listeners.www.opt]\n{root}\n{line}')
    dot = "." if ": " in message and not message[0].isdigit() else ": "
    assert found == [f"listeners.www.opt{dot}{message}"]


HEIR = """
    from opt import Opt

    class Heir(Opt):
        class Options(Opt.Options):
            late: bool = False
            timeout: float = 1.0
            later: bool = False
"""


def test_a_plugins_own_options_come_before_those_that_it_inherits(site: Path, tmp_path: Path) -> None:
    install(site, "opt", {"opt": "opt:Opt"}, OPTIONS)
    install(site, "heir", {"heir": "heir:Heir"}, HEIR)
    found = errors(tmp_path, '[listeners.www]\nbind = ":0"\nhandler = "heir"\n[listeners.www.heir]\nroot="."\nzzz = 1')
    expected = "expected late, timeout, later, root, protocol, arguments or one of 9 others"
    assert found == [f"listeners.www.heir.zzz: unknown key, {expected}"]
    options = [option.name for option in plugin_list.entry("heir").options]
    assert options[:5] == ["late", "timeout", "later", "root", "protocol"]
    assert len(options) == 15


@pytest.mark.parametrize(
    ("handler", "table", "count"),
    [("ehco", "echo", 1), ("ehco", "opt", 2), ("zzz", "echo", 2), ("ehco", "ehco", 1)],
)
def test_the_table_of_a_plugin_whose_name_is_misspelt_is_no_second_error(
    handler: str, table: str, count: int, site: Path, tmp_path: Path
) -> None:
    install(site, "opt", {"opt": "opt:Opt"}, OPTIONS)
    found = errors(tmp_path, f'[listeners.a]\nbind = ":0"\nhandler = "{handler}"\n[listeners.a.{table}]\nx = 1')
    assert len(found) == count, found
    assert f'no plugin "{handler}" is installed' in found[0]
    assert all(f'the plugin "{table}" is not on this listener' in message for message in found[1:])


def test_a_missing_required_option_is_an_error_with_and_without_the_table(site: Path, tmp_path: Path) -> None:
    install(site, "opt", {"opt": "opt:Opt"}, OPTIONS)
    expected = ["listeners.www.opt.root: missing, expected a path"]
    assert errors(tmp_path, 'handler = "opt"') == expected
    assert errors(tmp_path, '[listeners.www]\nbind = ":0"\nhandler = "opt"\n[listeners.www.opt]') == expected


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('root = "x"', "root: `root` belongs in [listeners.www.opt]"),
        ("[listeners.www.env]\nA = 'b'", "env: `env` belongs in [listeners.www.opt]"),
        ("dispatch = 3", "dispatch: `dispatch` belongs in [pool]"),
        ("opt = 3", "opt: got 3 (a number), expected a table: [listeners.www.opt]"),
        (
            "idle_timeot = 3",
            f'idle_timeot: unknown key (did you mean "idle_timeout"?), expected {shortlist(LISTENER_KEYS)}',
        ),
        (
            "protocl = 3",
            'protocl: unknown key (did you mean "protocol" in [listeners.www.opt]?), expected '
            + shortlist(LISTENER_KEYS),
        ),
        (
            "[listeners.www.echo]\nx = 3",
            'echo: the plugin "echo" is not on this listener, expected it as `handler` or among `plugins`'
            " of [listeners.www]",
        ),
        (
            "[listeners.www.otp]\nx = 3",
            'otp: unknown table (did you mean "opt"?), expected [listeners.www.plain] or [listeners.www.opt]',
        ),
        (
            "[listeners.www.plain]\nx = 3",
            'plain: the plugin "plain" takes no options, expected no table [listeners.www.plain]',
        ),
        (
            "[listeners.www.plain]",
            'plain: the plugin "plain" takes no options, expected no table [listeners.www.plain]',
        ),
    ],
)
def test_a_key_in_the_wrong_place_is_told_the_right_one(lines: str, message: str, site: Path, tmp_path: Path) -> None:
    install(site, "opt", {"opt": "opt:Opt"}, OPTIONS)
    install(site, "plain-one", {"plain": "plain_one:Plain"}, PLAIN)
    found = errors(
        tmp_path,
        f'[listeners.www]\nbind = ":0"\nhandler = "opt"\nplugins = ["plain"]\n{lines}\n'
        + ("" if lines.startswith("opt") else '[listeners.www.opt]\nroot = "."\n'),
    )
    assert found[0] == f"listeners.www.{message}"
    assert found[1:] == (["listeners.www.opt.root: missing, expected a path"] if lines.startswith("opt") else [])


def test_errors_of_file_imports_options_and_init_are_reported_together(site: Path, tmp_path: Path) -> None:
    install(site, "opt", {"opt": "opt:Opt"}, OPTIONS)
    install(site, "bad", {"bad": "bad:Bad"}, "1 / 0")
    found = errors(
        tmp_path,
        """
        [pool]
        workers = 0
        [listeners.a]
        bind = 7007
        handler = "bad"
        [listeners.b]
        bind = ":0"
        handler = "opt"
        [listeners.b.opt]
        root = "."
        env = { deny = "root" }
        [listeners.c]
        bind = ":0"
        handler = "opt"
        [listeners.c.opt]
        timeout = "x"
        """,
    )
    assert [message.split(": ")[0] for message in found] == [
        "pool.workers",
        "listeners.a.bind",
        "listeners.a.handler",
        "listeners.b.opt.root",
        "listeners.c.opt.root",
        "listeners.c.opt.timeout",
    ]
