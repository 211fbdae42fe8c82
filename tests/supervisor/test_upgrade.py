"""An upgrade under load: the supervisor of one version, and a pool of another, from wheels."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import wheels
from tests.helpers.http import cgi_listener, pool, write_programs
from tests.helpers.load import Load
from tests.helpers.puppet import address_of
from tests.helpers.server import ServerProcess, wait_until

pytestmark = pytest.mark.server


def edit(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


@pytest.fixture
def later(tmp_path: Path) -> Path:
    """The wheel of a later version, whose echo shouts and whose supervisor can't start."""
    sources = wheels.copy_of_the_sources(tmp_path / "sources")
    edit(sources / "pyproject.toml", 'version = "', 'version = "99.')
    (sources / "poolsrv" / "supervisor" / "process.py").write_text("raise ImportError('the one that runs goes on')\n")
    echo = sources / "plugins" / "poolsrv_echo" / "__init__.py"
    edit(echo, "conn.send(conn.recv())", "conn.send(conn.recv().upper())")
    return wheels.build_wheel(sources, tmp_path / "later")


@pytest.mark.long
def test_an_upgrade_loses_no_request_and_the_old_supervisor_runs_the_new_pool(
    tmp_path: Path, wheel: Path, later: Path
) -> None:
    programs = wheels.environment(tmp_path / "venv", wheel)
    root = write_programs(tmp_path / "bin", {"hello.sh": "printf 'Content-Type: text/plain\\n\\nhello'"})
    text = pool(workers=2) + cgi_listener(root=root) + '[listeners.echo]\nbind = "127.0.0.1:0"\nhandler = "echo"\n'
    with ServerProcess(text, tmp_path, program=(str(programs / "poolsrv"),)) as server:
        server.wait_ready()
        assert server.exchange("echo", b"hello") == b"hello"
        with Load(address_of(server, "www"), "/hello.sh") as load:
            wait_until(lambda: load.count > 20, "some load")
            wheels.pip_install(programs, later)
            server.reload()
            before = load.count
            wait_until(lambda: load.has_gone_on(before + 20), "more load")
        assert load.failures == []
        assert server.exchange("echo", b"hello") == b"HELLO"
        assert server.stop() == 0
        assert "ERROR" not in server.log
