"""Plugins that a config names as ``module:Class``."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.plugin_configs import errors, serve

SHOUT = """
    import msgspec
    from poolsrv import hookimpl
    from beside import END

    class Shout:
        class Options(msgspec.Struct, frozen=True):
            times: int = 1

        def __init__(self, options: Options) -> None:
            self.end, self.times = END, options.times

        @hookimpl
        def on_readable(self, conn): ...

    class Helper: ...
"""

WWW = '[listeners.www]\nbind = ":0"\nhandler = "shouting:Shout"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of the config, with a plugin of two modules."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", sys.dont_write_bytecode)
    (tmp_path / "shouting.py").write_text(textwrap.dedent(SHOUT))
    (tmp_path / "beside.py").write_text('END = "!"\n')
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (getattr(module, "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_a_class_beside_the_config_is_a_handler_with_the_options_in_a_table_of_its_name(folder: Path) -> None:
    server = serve(folder, f"{WWW}[listeners.www.shout]\ntimes = 3")
    (plugin,) = server.listeners[0].hooks.plugins
    assert (plugin.name, plugin.instance.times, plugin.instance.end) == ("shout", 3, "!")  # type: ignore[attr-defined]
    assert server.config.listeners[0].handler == "shouting:Shout"


def test_it_may_be_a_further_plugin_and_in_a_package(folder: Path) -> None:
    package = folder / "pack"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "inner.py").write_text("from shouting import Shout\nclass Other(Shout): ...\n")
    server = serve(folder, 'handler = "echo"\nplugins = ["pack.inner:Other", "shouting:Shout"]')
    assert [plugin.name for plugin in server.listeners[0].hooks.plugins] == ["other", "shout", "echo"]


def test_the_module_beside_the_config_comes_before_an_installed_one_and_leaves_no_byte_code(folder: Path) -> None:
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "shouting.py").write_text("wrong")
    sys.path.insert(0, str(elsewhere))
    sys.dont_write_bytecode = False
    serve(folder, 'handler = "shouting:Shout"')
    assert not sys.dont_write_bytecode
    assert not (folder / "__pycache__").exists()


def test_an_installed_class_needs_no_file_beside_the_config(folder: Path) -> None:
    before = list(sys.path)
    serve(folder, 'handler = "poolsrv_echo:Echo"')
    assert sys.path == before


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        ("shoting:Shout", 'the plugin {} can\'t be imported: there is no module "shoting" in FOLDER (did you mean'
         ' "shouting"?), and none is installed'),
        ("shouting:Shot", 'the plugin {} can\'t be imported: shouting has no "Shot" (did you mean "Shout"?)'),
        ("shouting:Helper", "the plugin {} can't be a handler: it has neither of the hooks on_connection_init and"
         " on_readable, expected one of them"),
        ("shouting.py:Shout", '"{}" is the name of a file, expected the module\'s: "shouting:Shout"'),
        ("./shouting.py", '"{}" is the name of a file, expected the module\'s: "shouting:CLASS"'),
        ("shouting:", '"{}" is not the name of a class, expected "module:Class", such as "my_plugin:Shout"'),
        ("a b:Shout", '"{}" is not the name of a class, expected "module:Class", such as "my_plugin:Shout"'),
        ("shouting:msgspec", "the plugin {} is a module, expected a class, such as shouting:Shout"),
        ("sys:Tls", 'the plugin {} would be named "tls", which is one of a listener\'s own keys, expected another name'
         " for its class"),
    ],
)  # fmt: skip
def test_a_misspelt_class_is_told(folder: Path, handler: str, message: str) -> None:
    expected = message.replace("{}", handler).replace("FOLDER", str(folder))
    assert errors(folder, f'handler = "{handler}"') == [f"listeners.www.handler: {expected}"]


@pytest.mark.parametrize("handler", ["shouting", "shouting.Shout", "shouting.Shot"])
def test_a_module_in_place_of_a_class_is_told_with_the_class_that_was_meant(folder: Path, handler: str) -> None:
    (error,) = errors(folder, f'handler = "{handler}"')
    assert f'no plugin "{handler}" is installed (did you mean "shouting:Shout"?)' in error


def test_a_module_that_is_loaded_already_is_not_taken_for_another_one(folder: Path) -> None:
    (folder / "queue.py").write_text("class Chat: ...\n")
    import queue  # noqa: F401

    (error,) = errors(folder, 'handler = "queue:Chat"')
    assert error == (
        'listeners.www.handler: the plugin queue:Chat can\'t be imported: a module "queue" of Python or poolsrv is'
        f" loaded already, expected another name for that in {folder}"
    )


def test_two_classes_of_one_name_need_a_listener_each(folder: Path) -> None:
    (folder / "other.py").write_text((folder / "shouting.py").read_text())
    assert errors(folder, 'handler = "shouting:Shout"\nplugins = ["other:Shout"]') == [
        'listeners.www.handler: "shouting:Shout" and "other:Shout" are both named "shout", expected different names'
    ]
    two = '[listeners.a]\nbind = ":0"\nhandler = "shouting:Shout"\n[listeners.b]\nbind = ":0"\nhandler = "other:Shout"'
    modules = [type(spec.hooks.plugins[0].instance).__module__ for spec in serve(folder, two).listeners]
    assert modules == ["shouting", "other"]


def test_a_table_of_another_name_is_told_with_the_right_one(folder: Path) -> None:
    assert errors(folder, f'{WWW}[listeners.www."shouting:Shout"]\ntimes = 2') == [
        'listeners.www."shouting:Shout": unknown table, expected [listeners.www.shout]'
    ]  # fmt: skip


def test_an_error_in_the_module_names_its_line(folder: Path) -> None:
    (folder / "beside.py").write_text("END =\n")
    (error,) = errors(folder, 'handler = "shouting:Shout"')
    assert error == (
        "listeners.www.handler: the plugin shouting:Shout can't be imported: SyntaxError: invalid syntax"
        f" ({folder}/beside.py, line 1)"
    )
