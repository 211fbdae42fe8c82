"""A config that a command's arguments say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from poolsrv.config.arguments import Arguments, Setting, from_fields, parse_setting, to_fields
from poolsrv.config.errors import ConfigErrors
from poolsrv.config.from_arguments import read
from poolsrv.plugins.loader import load_plugins
from poolsrv.worker.spec import ServerSpec
from tests.helpers.distributions import install

PLUGINS = """
    from pathlib import Path
    import msgspec
    from poolsrv import hookimpl

    class Limits(msgspec.Struct, frozen=True):
        cpu: int = 1

    class Options(msgspec.Struct, frozen=True):
        text: str = ""
        number: float = 0.0
        either: int | str = 0
        path: Path | None = None
        table: dict[str, str] = {}
        names: tuple[str, ...] = ()
        limits: Limits | None = None

    class One:
        Options = Options

        def __init__(self, options: Options) -> None:
            self.options = options

        @hookimpl
        def on_readable(self, conn): ...

    class Two(One): ...
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site", "argued", {"one": "argued:One", "two": "argued:Two"}, PLUGINS)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(__import__("sys").modules, "argued", raising=False)


def arguments(*settings: str, directory: str = "/srv", **further: Any) -> Arguments:
    said = {"handler": "one", "bind": (":0",), "plugins": ("two",), **further}
    parsed = tuple(map(parse_setting, settings))
    passed = to_fields(Arguments(command="poolsrv run", directory=directory, listener="a", settings=parsed, **said))
    return from_fields(json.loads(json.dumps(passed)))  # as the supervisor passes them on


def load(*settings: str, **further: Any) -> ServerSpec:
    return load_plugins(read(arguments(*settings, **further)))


def options(*settings: str, plugin: str = "one", **further: Any) -> Any:
    hooks = load(*settings, **further).listeners[0].hooks
    return next(named.instance for named in hooks.plugins if named.name == plugin).options  # type: ignore[attr-defined]


def errors(*settings: str, **further: Any) -> list[str]:
    with pytest.raises(ConfigErrors) as caught:
        load(*settings, **further)
    return [line.removeprefix("poolsrv run: ") for line in str(caught.value).splitlines()]


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("idle_timeout=5", ("idle_timeout",), "5"),
        ("limits.cpu = 5", ("limits", "cpu"), " 5"),
        ('aliases."/a=b"=/c=d', ("aliases", "/a=b"), "/c=d"),
        ("environment.A=", ("environment", "A"), ""),
        ("text=a\nb=c", ("text",), "a\nb=c"),
    ],
)
def test_a_setting_is_a_dotted_key_and_a_text(text: str, key: tuple[str, ...], value: str) -> None:
    assert parse_setting(text) == Setting(key, value)


@pytest.mark.parametrize("text", ["", "text", "=x", "a b=x", "a.=x", "/git=x", 'a."b=x', "a\nb=x"])
def test_what_is_no_setting(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_setting(text)


def test_values_are_toml_and_text_needs_no_quotes() -> None:
    found = options(
        "text=5", "number=5", "either=5", "path=x/y", "table.A=1", "names=['a', 'b']", "limits.cpu=7", directory="/d"
    )
    assert (found.text, found.number, found.either, found.path) == ("5", 5.0, 5, Path("/d/x/y"))
    assert (found.table, found.names, found.limits.cpu) == ({"A": "1"}, ("a", "b"), 7)


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", "true"), ('"quoted"', "quoted"), ("a # b", "a # b"), ("", ""), ("a\nb = 1", "a\nb = 1"), ("[", "[")],
)
def test_text_that_looks_like_something_else(text: str, value: str) -> None:
    assert options(f"text={text}").text == value


def test_keys_of_the_listener_the_pool_and_the_log() -> None:
    config = load("idle_timeout=7", "allow=['127.0.0.1']", "pool.user=0", "pool.umask=027", "log.level=debug").config
    (listener,) = config.listeners
    assert (listener.idle_timeout, [str(network) for network in listener.allow]) == (7.0, ["127.0.0.1/32"])
    assert (config.pool.user, config.pool.umask, config.log.level) == (0, 0o027, "debug")
    assert load("socket_mode=660", bind=("unix:/tmp/x",)).config.listeners[0].socket_mode == 0o660


def test_a_further_plugin_has_its_name_before_its_option_and_the_handler_may() -> None:
    both = ("two.text=a", "one.text=b")
    assert (options(*both).text, options(*both, plugin="two").text) == ("b", "a")


def test_the_last_of_two_values_counts() -> None:
    assert options("text=a", "text=b", options={"text": "c"}).text == "b"
    assert options(options={"text": "c"}).text == "c"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("number=x", '--set number: got "x" (a string), expected a number'),
        ("idle_timeout=5s", '--set idle_timeout: got "5s" (a string), expected a number of seconds, from 0 to'
         " 1000000000 (times are in seconds: write 5.0)"),
        ("txt=x", '--set txt: unknown key (did you mean "text"?): `poolsrv plugins one` lists the options'),
        ("idle_timout=5", '--set idle_timout: unknown key (did you mean "idle_timeout"?): `poolsrv plugins one` lists'
         " the options"),
        ("two.txt=x", '--set two.txt: unknown key (did you mean "text"?), expected text, number, either, path, table,'
         " names or limits"),
        ("pool.usr=x", '--set pool.usr: unknown key (did you mean "user"?), expected workers, dispatch, '),
        ("graceful_timeout=1", "--set graceful_timeout: not a key of a listener, expected --set pool.graceful_timeout"),
        ("limits=1 limits.cpu=2", "--set limits.cpu: limits has a value already, expected one of the two"),
        ("tls.key=x", "--set tls.certificate: missing, expected a path"),
        ("limits.cpus=2", '--set limits.cpus: unknown key (did you mean "cpu"?), expected cpu'),
    ],
)  # fmt: skip
def test_errors_name_the_argument(settings: str, expected: str) -> None:
    found = errors(*settings.split())
    assert found[0].startswith(expected)


def test_other_arguments_are_named_too() -> None:
    assert errors(bind=(":0", "7007"))[0].startswith('--bind: "7007" is a port alone, expected ":7007"')
    assert errors(handler="on")[0].startswith('HANDLER: no plugin "on" is installed (did you mean "one"?)')
    assert errors(plugins=("tow",))[0].startswith('--plugin: no plugin "tow" is installed (did you mean "two"?)')
    assert errors(workers=2000) == ['--workers: got 2000, expected a whole number from 1 to 1024 or "auto"']
    (error,) = errors(options={"number": "x"}, flags={"number": "DIR"})
    assert error == 'DIR: got "x" (a string), expected a number'


def test_bytes_that_are_no_text_pass() -> None:
    assert options("path=/a\udcff").path == Path("/a\udcff")
