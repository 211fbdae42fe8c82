"""Which files ``--dev`` watches. What it does when one changes is in test_run.py."""

from __future__ import annotations

import os
from pathlib import Path

import poolsrv_echo
import pytest

from poolsrv.cli.dev_mode import PluginFiles
from tests.helpers.distributions import install


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (
        "single.py", "beside.py", "notes.txt", "other/inner.py", "a.toml",
        "pack/__init__.py", "pack/page.html", "pack/in/code.py", "pack/.code.py.swp", "pack/code.py~",
        "pack/__pycache__/code.pyc", "pack/.git/config",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    return tmp_path


def watched(folder: Path, *names: str, config: Path | None = None) -> tuple[set[str], set[str]]:
    """The files and directories, relative to the folder."""
    files = PluginFiles(folder, config, lambda: list(names))
    found = {os.path.relpath(name, folder) for name in files.snapshot()}
    return found, {os.path.relpath(directory, folder) for directory in files.directories()}


def test_of_a_module_it_and_those_beside_it(folder: Path) -> None:
    assert watched(folder, "single:Plugin") == ({"single.py", "beside.py"}, {"."})


def test_of_a_package_all_but_what_python_and_editors_keep(folder: Path) -> None:
    files = {f"pack/{name}" for name in ("__init__.py", "page.html", "in/code.py")}
    assert watched(folder, "pack.in.code:Plugin") == (files, {"pack", "pack/in"})


def test_of_an_installed_plugin_its_module_or_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = folder / "site-packages"
    install(site, "bundle", {"bundled": "bundle:Plugin"})
    (site / "unrelated.py").write_text("")
    monkeypatch.syspath_prepend(str(site))
    assert watched(folder, "bundled") == ({"site-packages/bundle.py"}, {"site-packages"})
    echo = os.path.relpath(Path(poolsrv_echo.__file__).parent, folder)
    assert watched(folder, "echo")[1] == {echo}


def test_the_config_and_what_it_names_now(folder: Path) -> None:
    config = folder / "a.toml"
    assert watched(folder, config=config) == ({"a.toml"}, {"."})
    assert "pack" in watched(folder, "pack:Plugin", config=config)[1]


def test_a_plugin_that_is_not_there_has_no_files(folder: Path) -> None:
    assert watched(folder, "none:Plugin", "no-such-plugin", "os.path:x", "sys:x")[1] - {"."} <= {
        os.path.relpath(Path(os.__file__).parent, folder)
    }


def test_an_edit_a_new_file_and_one_that_is_gone_are_told_apart(folder: Path) -> None:
    files = PluginFiles(folder, None, lambda: ["single:Plugin"])
    before = files.snapshot()
    assert files.snapshot() == before
    os.utime(folder / "single.py", ns=(1, 1))
    (folder / "beside.py").unlink()
    (folder / "fresh.py").write_text("")
    now = files.snapshot()
    changed = {Path(name).name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
    assert changed == {"single.py", "beside.py", "fresh.py"}
