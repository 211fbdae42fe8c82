"""`poolsrv new`: what it makes works, is clean, and overwrites nothing."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from poolsrv.cli import new_plugin
from poolsrv.cli.main import cli
from poolsrv.config import reader
from tests.helpers.server_mark import server_starts

ROOT = Path(__file__).parents[2]


def new(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["new", *arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a plugin of each kind."""
    folder = tmp_path_factory.mktemp("new")
    before = os.getcwd()
    os.chdir(folder)
    try:
        for arguments, target in (
            (("shout",), "poolsrv_shout:Shout"),
            (("my-web", "--http"), "poolsrv_my_web:MyWeb"),
        ):
            result = new(*arguments)
            last = result.stdout.splitlines()[-1]
            assert (result.exit_code, re.split("  +", last)) == (
                0,
                [f"poolsrv run {target}", "# with --dev it reloads whenever a file is saved"],
            )
            assert f"\n{last}\n" in (folder / f"poolsrv-{arguments[0]}" / "README.md").read_text()
    finally:
        os.chdir(before)
    return folder


def run(*command: str | Path, cwd: Path) -> str:
    result = subprocess.run([sys.executable, "-m", *command], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.mark.server
@pytest.mark.parametrize(("distribution", "tests"), [("poolsrv-shout", 6), ("poolsrv-my-web", 7)])
@pytest.mark.long
def test_its_tests_pass_at_once(made: Path, distribution: str, tests: int) -> None:
    server_starts()
    assert f"{tests} passed" in run("pytest", "-p", "no:cacheprovider", cwd=made / distribution)


@pytest.mark.server
def test_poolsrv_run_serves_it(made: Path) -> None:
    server_starts()
    command = [sys.executable, "-m", "poolsrv", "run", "poolsrv_shout:Shout", "--bind", "127.0.0.1:0"]
    with subprocess.Popen(command, cwd=made / "poolsrv-shout", stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        ready = next(line for line in process.stderr if " ready: " in line)
        address = re.search(r"127\.0\.0\.1:(\d+)", ready)
        assert address is not None
        with socket.create_connection(("127.0.0.1", int(address[1])), 30) as sock:
            sock.sendall(b"world\n")
            assert sock.recv(100) == b"hello, world\n"
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
        assert process.wait(30) == 0


@pytest.mark.parametrize("distribution", ["poolsrv-shout", "poolsrv-my-web"])
def test_its_config_is_right(made: Path, distribution: str) -> None:
    assert "ok\n" in run("poolsrv", "check", cwd=made / distribution)


@pytest.mark.parametrize("distribution", ["poolsrv-shout", "poolsrv-my-web"])
def test_status_reload_and_stop_are_one_uncommenting_away(made: Path, distribution: str, tmp_path: Path) -> None:
    text = (made / distribution / "poolsrv.toml").read_text()
    config = tmp_path / "with.toml"
    config.write_text(re.sub("^# (?=pidfile|control)", "", text, flags=re.MULTILINE))
    draft = reader.read(config)
    assert not draft.problems
    assert draft.document["pool"] == {"pidfile": "poolsrv.pid", "control": "poolsrv.ctl"}


@pytest.mark.long
def test_it_is_clean(made: Path) -> None:
    run("ruff", "check", "--no-cache", cwd=made)
    run("ruff", "format", "--check", "--no-cache", cwd=made)
    files = [path for path in made.rglob("*.py") if path.name == "__init__.py" or path.parent.name == "tests"]
    assert len(files) == 4
    # With the options of `make lint`, so that what that knows of the engine already holds here too.
    options = ("--config-file", ROOT / "pyproject.toml", "--cache-dir", ROOT / ".mypy_cache")
    run("mypy", "--strict", *options, *files, cwd=made)


@pytest.mark.server
def test_it_can_be_installed(made: Path, tmp_path: Path) -> None:
    """Without the network: what builds it is there already."""
    server_starts()
    target = tmp_path / "installed"
    sources = tmp_path / "sources"
    shutil.copytree(made / "poolsrv-my-web", sources, ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", target)
    run("pip", "install", *options, sources, cwd=tmp_path)
    assert (target / "poolsrv_my_web" / "py.typed").exists()
    shown = subprocess.run(
        [sys.executable, "-m", "poolsrv", "plugins", "myweb"],
        env={**os.environ, "PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "(poolsrv-my-web 0.1.0, poolsrv_my_web:MyWeb)" in shown
    assert "The beginning of every answer" in shown


def test_a_long_name_is_clean_too(tmp_path: Path) -> None:
    names = new_plugin.names_for("x" + "-very-long-name" * 2 + "-indeed")
    for http in (False, True):
        (tmp_path / str(http)).mkdir()
        new_plugin.make(names, tmp_path / str(http), http)
    run("ruff", "check", "--no-cache", cwd=tmp_path)
    run("ruff", "format", "--check", "--no-cache", cwd=tmp_path)


def test_it_asks_for_this_version_of_poolsrv(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (made / "poolsrv-shout" / "pyproject.toml").read_text()
    assert '"poolsrv>=0.1,<0.2"' in text
    assert 'shout = "poolsrv_shout:Shout"' in text
    for version, wanted in (("0.9.3", "poolsrv>=0.9,<0.10"), ("1.4.0", "poolsrv>=1.4,<2"), ("", "poolsrv>=0.1,<0.2")):
        monkeypatch.setattr("poolsrv.plugins.entry_points.version_of", lambda name, version=version: version)
        assert new_plugin._requirement() == wanted


def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poolsrv-shout").mkdir()
    (tmp_path / "poolsrv-shout" / "README.md").write_text("mine")
    result = new("shout")
    assert (result.exit_code, result.stderr) == (2, "poolsrv: poolsrv-shout exists already, expected a new directory\n")
    assert [path.name for path in (tmp_path / "poolsrv-shout").iterdir()] == ["README.md"]


def test_nothing_is_left_where_a_file_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("poolsrv.cli.new_plugin._filled", lambda *arguments: (_ for _ in ()).throw(OSError(28, "full")))
    result = new("shout")
    assert (result.exit_code, result.stderr) == (1, "poolsrv: can't make poolsrv-shout: full\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("shout", ("poolsrv-shout", "poolsrv_shout", "Shout", "shout")),
        ("poolsrv-shout", ("poolsrv-shout", "poolsrv_shout", "Shout", "shout")),
        ("my-proto", ("poolsrv-my-proto", "poolsrv_my_proto", "MyProto", "myproto")),
        ("my_proto2", ("poolsrv-my-proto2", "poolsrv_my_proto2", "MyProto2", "myproto2")),
        ("connection", ("poolsrv-connection", "poolsrv_connection", "ConnectionPlugin", "connectionplugin")),
        ("none", ("poolsrv-none", "poolsrv_none", "NonePlugin", "noneplugin")),
        ("class", ("poolsrv-class", "poolsrv_class", "Class", "class")),
    ],
)
def test_names(name: str, names: tuple[str, ...]) -> None:
    assert new_plugin.names_for(name) == names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "Shout",
            '"Shout" is not a plugin name (did you mean "shout"?), expected small letters, digits and -',
        ),
        ("../x", '"../x" is not a plugin name (did you mean "x"?)'),
        ("a b", '"a b" is not a plugin name (did you mean "a-b"?)'),
        ("1st", '"1st" is not a plugin name, expected'),
        ("", '"" is not a plugin name, expected'),
        ("a-", '"a-" is not a plugin name (did you mean "a"?)'),
        ("é", '"é" is not a plugin name, expected'),
        ("x" * 41, "the name has 41 characters, expected at most 40"),
        ("tls", '"tls" is one of a listener\'s own keys, expected another name'),
        ("echo", 'the plugin "echo" (poolsrv_echo:Echo, of poolsrv '),
        ("http", 'a module "poolsrv_http" is installed already, expected another name'),
    ],
)
def test_names_that_no_plugin_can_have(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = new("--", name)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"poolsrv: {message}")
    assert list(tmp_path.iterdir()) == []
