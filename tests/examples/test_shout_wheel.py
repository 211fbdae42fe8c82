"""A third party's plugin, from wheels, in an environment that has never seen this tree."""

from __future__ import annotations

import re
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers import wheels
from tests.helpers.server_mark import server_starts

pytestmark = [pytest.mark.server, pytest.mark.long]

ROOT = Path(__file__).parents[2]
SHOUT = ROOT / "examples" / "poolsrv-shout"
PATIENCE = 60.0  # seconds for what takes a moment; a test that needs it all has failed


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory, wheel: Path) -> Path:
    """A fresh virtual environment with both wheels; its directory of programs."""
    server_starts()
    directory = tmp_path_factory.mktemp("wheels")
    # Built from a copy: a build must not leave anything in the tree, nor find anything that was left there.
    sources = directory / "shout"
    shutil.copytree(SHOUT, sources, ignore=shutil.ignore_patterns("dist", "build", "__pycache__"))
    shout = wheels.build_wheel(sources, directory / "built")
    assert [each.name.split("-")[0] for each in (wheel, shout)] == ["poolsrv", "poolsrv_shout"]
    return wheels.environment(directory / "venv", wheel, shout)


@pytest.fixture
def server(environment: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """The installed program, with the example's config edited."""
    text = (SHOUT / "poolsrv.toml").read_text()
    assert "127.0.0.1:7009" in text
    text = text.replace("127.0.0.1:7009", "127.0.0.1:0").replace('ending = "!!"', 'ending = "?"')
    (tmp_path / "edited.toml").write_text("[pool]\nworkers = 2\n" + text)
    process = subprocess.Popen(
        [environment / "poolsrv", "--config", "edited.toml"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    watchdog = threading.Timer(PATIENCE, process.kill)
    watchdog.start()
    try:
        yield process
    finally:
        watchdog.cancel()
        watchdog.join()
        process.kill()
        process.communicate()


def test_the_installed_plugin_is_listed_with_its_options(environment: Path, tmp_path: Path) -> None:
    assert (
        "shout  (poolsrv-shout 1.0.0, poolsrv_shout:Shout)\n"
        "  Sends every line back in capitals.\n"
        "  hooks: on_readable\n"
        "  options:\n"
        '    ending        a string; default "!"\n'
        "    longest_line  a whole number from 1; default 4096\n"
    ) in wheels.run(environment / "poolsrv", "plugins", cwd=tmp_path) + "\n"


def test_the_installed_plugin_refuses_a_wrong_option(environment: Path, tmp_path: Path) -> None:
    text = (SHOUT / "poolsrv.toml").read_text().replace('"!!"', '"\\n"')
    (tmp_path / "wrong.toml").write_text(text)
    result = subprocess.run(
        [environment / "poolsrv", "check", "--config", "wrong.toml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (
        2,
        "wrong.toml: listeners.loud.shout.ending: has a line break, expected none: each answer is one line\n",
    )


def test_the_installed_server_talks(server: subprocess.Popen[str]) -> None:
    assert server.stderr is not None
    log = ""
    for line in server.stderr:
        log += line
        if "ready" in line:
            break
    address = re.search(r"ready.*127\.0\.0\.1:(\d+)", log)
    assert address, log
    with socket.create_connection(("127.0.0.1", int(address[1])), timeout=PATIENCE) as client:
        client.sendall(b"hello\r\nagain\nlast")
        client.shutdown(socket.SHUT_WR)
        assert client.makefile("rb").read() == b"HELLO?\nAGAIN?\nLAST?\n"
    server.send_signal(signal.SIGTERM)
    assert server.wait(PATIENCE) == 0
