"""An upgrade under load: the supervisor of one version, and a pool of another, from wheels."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.http import cgi_listener, pool, write_programs
from tests.helpers.load import Load
from tests.helpers.puppet import address_of
from tests.helpers.server import ServerProcess, wait_until

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
# The sources of a wheel. A build must not leave anything in the tree, nor pick up what was left there.
SOURCES = ("poolsrv", "plugins", "tools", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"


def copy_of_the_sources(folder: Path) -> Path:
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            folder.mkdir(exist_ok=True)
            shutil.copy(source, folder / name)
    return folder


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def wheel(sources: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, sources)
    (built,) = folder.glob("poolsrv-*.whl")
    return built


@pytest.fixture
def wheels(tmp_path: Path) -> tuple[Path, Path]:
    """The wheel of this tree, and one of a later version, whose echo shouts and whose supervisor can't start."""
    sources = copy_of_the_sources(tmp_path / "sources")
    now = wheel(sources, tmp_path / "now")
    edit(sources / "pyproject.toml", 'version = "', 'version = "99.')
    (sources / "poolsrv" / "supervisor" / "process.py").write_text("raise ImportError('the one that runs goes on')\n")
    echo = sources / "plugins" / "poolsrv_echo" / "__init__.py"
    edit(echo, "conn.send(conn.recv())", "conn.send(conn.recv().upper())")
    return now, wheel(sources, tmp_path / "later")


def test_an_upgrade_loses_no_request_and_the_old_supervisor_runs_the_new_pool(
    tmp_path: Path, wheels: tuple[Path, Path]
) -> None:
    now, later = wheels
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", now)
    root = write_programs(tmp_path / "bin", {"hello.sh": "printf 'Content-Type: text/plain\\n\\nhello'"})
    text = pool(workers=2) + cgi_listener(root=root) + '[listeners.echo]\nbind = "127.0.0.1:0"\nhandler = "echo"\n'
    server = ServerProcess(text, tmp_path, program=(str(tmp_path / "venv" / "bin" / "poolsrv"),))
    try:
        server.wait_ready()
        assert server.exchange("echo", b"hello") == b"hello"
        with Load(address_of(server, "www"), "/hello.sh") as load:
            wait_until(lambda: load.count > 20, "some load")
            run(python, "-m", "pip", "install", "--quiet", "--no-deps", later)
            server.reload()
            before = load.count
            wait_until(lambda: load.has_gone_on(before + 20), "more load")
        assert load.failures == []
        assert server.exchange("echo", b"hello") == b"HELLO"
        assert server.stop() == 0
        assert "ERROR" not in server.log
    finally:
        server.close()
