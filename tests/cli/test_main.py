from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from poolsrv.core import logs
from tests.helpers import kinds
from tests.helpers.command_line import invoke
from tests.helpers.distributions import install

ROOT = Path(__file__).parents[2]
PLAIN = "from poolsrv import hookimpl\n\nclass Plain:\n    @hookimpl\n    def on_readable(self, conn): ...\n"


def poolsrv(*arguments: str, site: Path | None = None, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, with the plugins in ``site`` besides the installed ones."""
    path = os.pathsep.join(filter(None, [str(site) if site else "", os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-m", "poolsrv", *arguments],
        env={**os.environ, "PYTHONPATH": path, "COLUMNS": "100"},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_check_prints_a_summary_of_a_right_config(tmp_path: Path) -> None:
    write(
        tmp_path / "a.toml",
        '[pool]\nworkers = 2\n[listeners.hello]\nbind = ["127.0.0.1:7007", ":7009"]\nhandler = "echo"\n'
        '[listeners.more]\nbind = "[::1]:7007"\nhandler = "echo"\n',
    )
    result = poolsrv("check", "--config", "a.toml", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "a.toml: ok\n"
        "2 workers, round-robin\n"
        "listener  plugins  addresses\n"
        "hello     echo     127.0.0.1:7007, :7009\n"
        "more      echo     [::1]:7007\n"
    )


def test_check_shows_further_plugins_in_calling_order(tmp_path: Path) -> None:
    install(tmp_path / "site", "two", {"one": "two:Plain", "two": "two:Plain"}, PLAIN)
    config = write(tmp_path / "a.toml", '[listeners.a]\nbind = ":0"\nhandler = "echo"\nplugins = ["two", "one"]\n')
    assert "a         two > one > echo  :0\n" in poolsrv("check", "-c", str(config), site=tmp_path / "site").stdout


def test_check_does_not_import_the_engine(tmp_path: Path) -> None:
    config = write(tmp_path / "a.toml", '[listeners.a]\nbind = ":0"\nhandler = "echo"\n')
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "poolsrv", "--version"], capture_output=True, text=True, check=True
    )
    assert "poolsrv.plugins.loader" not in result.stderr
    assert "poolsrv.net.stream" not in result.stderr
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "poolsrv", "check", "-c", config],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "poolsrv.plugins.loader" in result.stderr
    for module in ("dispatcher.process", "supervisor.process"):
        assert f"poolsrv.{module}" not in result.stderr
    assert "asyncio" not in result.stderr


def test_the_names_for_plugins_are_imported_on_demand() -> None:
    program = (
        "import sys, msgspec, poolsrv\n"
        "assert set(poolsrv.__all__) <= set(dir(poolsrv))\n"
        "assert 'poolsrv.net.stream' not in sys.modules\n"
        "from poolsrv import *\n"
        "assert all(globals()[name] is getattr(poolsrv, name) for name in poolsrv.__all__)\n"
        "assert Connection.__module__ == 'poolsrv'\n"
        "msgspec.json.Decoder(ClientTls, dec_hook=lambda kind, value: value)\n"
        "poolsrv.Conection"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    last = result.stderr.splitlines()[-1]
    assert last == "AttributeError: module 'poolsrv' has no attribute 'Conection'. Did you mean: 'Connection'?"


BROKEN = """\
[pool]
dispatch = "round_robin"
[listeners.a]
bind = 7007
handler = "ecoh"
[listeners.b]
bind = ":0"
handler = "failing"
"""


@pytest.mark.parametrize("command", [("check", "--config"), ("--config",)])
def test_every_error_is_one_line_and_exit_2(command: tuple[str, ...], tmp_path: Path) -> None:
    site = tmp_path / "site"
    install(site, "failing", {"failing": "failing:Failing"}, "class Failing:\n    x = 1 / 0\n")
    write(tmp_path / "b.toml", BROKEN)
    result = poolsrv(*command, "b.toml", site=site, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    first, second, third, fourth = result.stderr.splitlines()
    assert first == (
        'b.toml: pool.dispatch: got "round_robin" (did you mean "round-robin"?), expected "round-robin",'
        ' "least-connections" or "kernel"'
    )
    assert second == (
        "b.toml: listeners.a.bind: got 7007 (a number), expected a string with an address: "
        '":7007" for every address, or "127.0.0.1:7007"'
    )
    assert third.startswith(
        'b.toml: listeners.a.handler: no plugin "ecoh" is installed (did you mean "echo"?), expected "'
    )
    assert fourth == (
        'b.toml: listeners.b.handler: the plugin "failing" (failing:Failing, of failing 1.0) can\'t be imported: '
        f"ZeroDivisionError: division by zero ({site}/failing.py, line 2)"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file, expected a config file"),
        ("a = \n", "line 1, column 5: Invalid value"),
        ("", "no listeners, expected at least one table [listeners.NAME] with `bind` and `handler`"),
    ],
)
def test_a_file_that_is_not_a_config_is_one_line_and_exit_2(content: str | None, message: str, tmp_path: Path) -> None:
    if content is not None:
        write(tmp_path / "c.toml", content)
    result = poolsrv("--config", "c.toml", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (2, "", f"c.toml: {message}\n")


def test_an_address_in_use_is_exit_1(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        write(tmp_path / "a.toml", f'[listeners.a]\nbind = "{address}"\nhandler = "echo"\n')
        result = poolsrv("--config", "a.toml", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"poolsrv: listeners.a: can't listen on {address}: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("chek",), 'no command "chek" (did you mean "check"?)'),
        (("pluggins",), 'no command "pluggins" (did you mean "plugins"?)'),
        (("xyz",), 'no command "xyz"'),
        (("my.toml",), 'no command "my.toml" (did you mean --config my.toml?)'),
        (("--confg", "x"), "No such option '--confg'. Did you mean '--config'?"),
        (("check",), "Missing option '--config' / '-c'."),
        (("check", "--config"), "Option '--config' requires an argument."),
        (
            ("--config", "a.toml", "check"),
            "--config goes after the command: poolsrv check --config a.toml",
        ),
    ],
)
def test_wrong_usage_is_exit_2_with_a_suggestion(arguments: tuple[str, ...], message: str, tmp_path: Path) -> None:
    result = invoke(*arguments, cwd=tmp_path, POOLSRV_CONFIG=None, COLUMNS="100")
    assert (result.returncode, result.stdout) == (2, "")
    assert re.sub(r"['.]", "", result.stderr.splitlines()[-1]).startswith(re.sub(r"['.]", "", f"Error: {message}"))


def test_no_arguments_and_no_config_print_the_help_and_exit_2(tmp_path: Path) -> None:
    bare, asked = poolsrv(cwd=tmp_path), poolsrv("--help")
    assert (bare.returncode, bare.stdout) == (2, "")
    assert (asked.returncode, asked.stderr) == (0, "")
    assert bare.stderr == asked.stdout


def test_help_has_commands_config_signals_and_exit_codes() -> None:
    text = invoke("--help", cwd=ROOT, COLUMNS="100").stdout
    for part in ["poolsrv --config poolsrv.toml", "poolsrv check", "poolsrv plugins", "[listeners.hello]", "Signals:"]:
        assert part in text
    for command in ("check", "status", "top", "reload", "stop", "plugins"):  # each on a line of its own
        assert re.search(rf"^    poolsrv {command} .*   \S", text, re.MULTILINE), command
    for part in ["TERM, INT", "HUP", "Exit codes:", "FILE: key.path: what is wrong, what was expected", "docs/"]:
        assert part in text


def test_version() -> None:
    result = poolsrv("--version")
    assert (result.returncode, result.stderr) == (0, "")
    assert re.fullmatch(rf"poolsrv \d+\.\d+\.\d+\n{kinds.EXPECTED}\n", result.stdout)


def test_the_sample_config_is_right() -> None:
    assert invoke("check", "--config", "poolsrv.toml", cwd=ROOT).returncode == 0


@pytest.fixture
def site_with_all_kinds(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    install(
        site,
        "rich",
        {"rich": "rich:Rich", "absent": "rich:Absent", "unmarked": "rich:Unmarked", "workers": "rich:Rich"},
        '''
        from __future__ import annotations
        from pathlib import Path
        from typing import Annotated, Literal
        import msgspec
        from poolsrv import hookimpl

        class Limits(msgspec.Struct, frozen=True):
            files: int = 5
            memory: int | None = None

        class Rich:
            """Has options.

            And more to say.
            """
            class Options(msgspec.Struct):
                root: Path
                protocol: Literal["http", "line"] = "http"
                timeout: Annotated[float, msgspec.Meta(ge=0)] = 30.0
                env: dict[str, str] = {}
                user: str | None = None
                plain: bool = False
                limits: Limits = Limits()

            @hookimpl
            def on_readable(self, conn): ...

            @hookimpl
            def on_connection_init(self, conn): ...

        class Unmarked:
            def on_readable(self, conn): ...
        ''',
        version="2.1",
    )
    install(site, "failing", {"failing": "failing:Failing"}, "1 / 0")
    return site


def test_plugins_lists_all_with_hooks_and_options_and_broken_ones_with_their_error(site_with_all_kinds: Path) -> None:
    result = poolsrv("plugins", site=site_with_all_kinds)
    assert (result.returncode, result.stderr) == (0, "")
    entries = {entry.split(" ")[0]: entry for entry in result.stdout.rstrip("\n").split("\n\n")}
    assert list(entries) == sorted(entries)
    assert re.fullmatch(
        r"echo  \(poolsrv \d+\.\d+\.\d+, poolsrv_echo:Echo\)\n"
        r"  Sends back what it receives\.\n"
        r"  hooks: on_readable",
        entries["echo"],
    )
    assert entries["rich"] == (
        "rich  (rich 2.1, rich:Rich)\n"
        "  Has options.\n"
        "  hooks: on_connection_init, on_readable\n"
        "  options:\n"
        "    root      a path; required\n"
        '    protocol  "http" or "line"; default "http"\n'
        "    timeout   a number from 0; default 30.0\n"
        "    env       a table of strings; default {}\n"
        "    user      a string; default not set\n"
        "    plain     true or false; default false\n"
        "    limits    a table; default {files = 5}"
    )
    assert entries["absent"] == (
        'absent  (rich 2.1, rich:Absent)\n  broken: it can\'t be imported: rich has no "Absent"'
    )
    assert entries["unmarked"] == (
        "unmarked  (rich 2.1, rich:Unmarked)\n"
        "  broken: it has a method on_readable that is not marked as a hook, expected @hookimpl above it"
    )
    assert entries["workers"] == (
        "workers  (rich 2.1, rich:Rich)\n"
        "  broken: it has the name of one of a listener's own keys, expected another name"
    )
    assert entries["failing"] == (
        "failing  (failing 1.0, failing:Failing)\n"
        "  broken: it can't be imported: ZeroDivisionError: division by zero"
        f" ({site_with_all_kinds}/failing.py, line 1)"
    )


def test_plugins_as_json(site_with_all_kinds: Path) -> None:
    entries = {
        entry["name"]: entry for entry in json.loads(poolsrv("plugins", "--json", site=site_with_all_kinds).stdout)
    }
    assert entries["rich"]["hooks"] == ["on_connection_init", "on_readable"]
    assert entries["rich"]["options"][:2] == [
        {"name": "root", "type": "a path", "required": True, "default": None, "meaning": "", "members": []},
        {
            "name": "protocol",
            "type": '"http" or "line"',
            "required": False,
            "default": '"http"',
            "meaning": "",
            "members": [],
        },
    ]
    assert entries["rich"]["error"] is None
    assert entries["failing"]["error"].startswith("can't be imported: ZeroDivisionError")


def test_the_log_has_one_line_per_event_with_time_level_role_and_pid(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logs, "_role", "poolsrv")
    level = logging.root.level
    try:
        logs.set_up("info")
        logs.set_role("worker", 3)
        logging.getLogger("poolsrv.x").info("from %s", "a\r\n\x1b[31mclient\x85é\t.")
        logging.getLogger("poolsrv.x").debug("not shown")
    finally:
        logging.captureWarnings(False)
        logging.root.setLevel(level)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} INFO    "
        rf"worker 3\[{os.getpid()}\] from a\\x0d\\x0a\\x1b\[31mclient\\x85é\t\.\n",
        capfd.readouterr().err,
    )
