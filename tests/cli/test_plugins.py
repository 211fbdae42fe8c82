"""``poolsrv plugins NAME``: one plugin, and what its options mean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.command_line import invoke
from tests.helpers.distributions import install
from tests.helpers.server import TIMEOUT


def plugins(*arguments: str, site: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))
    return subprocess.run(
        [sys.executable, "-m", "poolsrv", "plugins", *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    install(
        site,
        "rich",
        {"rich": "rich:Rich", "bare": "rich:Bare"},
        '''
        from __future__ import annotations
        from pathlib import Path
        import msgspec
        from poolsrv import hookimpl

        class Limits(msgspec.Struct, frozen=True):
            """Limits.

            :ivar files: open files.
            """
            files: int = 5
            deeper: Limits | None = None

        class Place(msgspec.Struct):
            path: Path

        class Base(msgspec.Struct, kw_only=True):
            """
            Options of many.

            :ivar timeout: seconds until
                the end. 0: never.
            :ivar overridden: of the base.
            """
            timeout: float = 30.0
            overridden: str = ""

        class Bare:
            """Takes nothing."""
            @hookimpl
            def on_readable(self, conn): ...

        class Rich(Bare):
            """Has options.

            And more to say.
            """
            class Options(Base, kw_only=True):
                """For every protocol:

                :ivar root_folder: the `root`.

                For some:

                :ivar overridden: of the plugin.
                :param other: nothing.
                """
                root_folder: Path = msgspec.field(name="root")
                limits: Limits = Limits()
                places: list[Place] = []
        ''',
        version="2.1",
    )
    install(site, "failing", {"failing": "failing:Failing"}, "1 / 0")
    return site


def test_each_option_is_explained(site: Path) -> None:
    result = plugins("rich", site=site)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        "rich  (rich 2.1, rich:Rich)\n"
        "  Has options.\n"
        "  hooks: on_readable\n"
        "\n"
        "options, in [listeners.NAME.rich]:\n"
        "\n"
        "  root  a path; required\n"
        "      The `root`.\n"
        "\n"
        "  limits  a table; default {files = 5}\n"
        "\n"
        "  limits.files  a whole number; default 5\n"
        "      Open files.\n"
        "\n"
        "  limits.deeper  a table; default not set\n"
        "\n"
        "  places  a list of tables; default []\n"
        "\n"
        "  places.path  a path; required\n"
        "\n"
        "  timeout  a number; default 30.0\n"
        "      Seconds until the end. 0: never.\n"
        "\n"
        '  overridden  a string; default ""\n'
        "      Of the plugin.\n"
    )


def test_a_plugin_without_options(site: Path) -> None:
    result = plugins("bare", site=site)
    expected = "bare  (rich 2.1, rich:Bare)\n  Takes nothing.\n  hooks: on_readable\n"
    assert (result.returncode, result.stdout, result.stderr) == (0, expected, "")


def test_one_plugin_as_json(site: Path) -> None:
    entry = json.loads(plugins("rich", "--json", site=site).stdout)
    assert entry["name"] == "rich"
    options = {option["name"]: option for option in entry["options"]}
    assert options["timeout"]["meaning"] == "seconds until the end. 0: never."
    assert options["root"] == {
        "name": "root",
        "type": "a path",
        "required": True,
        "default": None,
        "meaning": "the `root`.",
        "members": [],
    }
    assert [member["name"] for member in options["limits"]["members"]] == ["files", "deeper"]


def test_a_broken_plugin_is_exit_1(site: Path) -> None:
    result = plugins("failing", site=site)
    assert (result.returncode, result.stderr) == (1, "")
    assert result.stdout == (
        "failing  (failing 1.0, failing:Failing)\n"
        f"  broken: it can't be imported: ZeroDivisionError: division by zero ({site}/failing.py, line 1)\n"
    )


def test_a_plugin_that_is_not_installed_is_exit_2(site: Path) -> None:
    result = plugins("rihc", site=site)
    assert (result.returncode, result.stdout) == (2, "")
    start = 'poolsrv: no plugin "rihc" is installed (did you mean "rich"?), expected "bare", "cgi", "echo", "failing"'
    assert result.stderr.startswith(start)


@pytest.mark.parametrize("name", ["cgi", "echo", "files"])
def test_every_option_of_the_bundled_plugins_has_a_meaning(name: str, tmp_path: Path) -> None:
    entry = json.loads(invoke("plugins", name, "--json", cwd=tmp_path).stdout)
    options = list(entry["options"])
    for option in options:
        assert option["meaning"], option["name"]
        options += option["members"]


def test_a_class_in_the_current_directory_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "from poolsrv import hookimpl\n\nclass Plain:\n    'Mine.'\n"
        "    @hookimpl\n    def on_readable(self, conn): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    result = plugins("mine:Plain", site=tmp_path / "none")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "plain  (not installed, mine:Plain)\n  Mine.\n  hooks: on_readable\n"
    result = plugins("mine:Plan", site=tmp_path / "none")
    assert (result.returncode, 'mine has no "Plan" (did you mean "Plain"?)' in result.stdout) == (1, True)
    result = plugins("mine.py:Plain", site=tmp_path / "none")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == 'poolsrv: "mine.py:Plain" is the name of a file, expected the module\'s: "mine:Plain"\n'
