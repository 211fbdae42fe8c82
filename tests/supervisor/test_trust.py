"""A pool that an attacker has taken over: the supervisor trusts little of what it says, and replaces it.

A plugin's ``on_child_exit`` runs in the dispatcher, and can say to the supervisor whatever it likes.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.distributions import install
from tests.helpers.server import ServerProcess

Serve = Callable[..., ServerProcess]

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
OPEN = ("sh", "-c", 'chmod 777 . && exec "$@"', "sh")  # before a plugin may write to the server's folder
NOBODY = pwd.getpwnam("nobody")

# The file "words" has what it sends, as the arguments of a call.
TAKEN_OVER = """
    import gc, os
    from poolsrv import hookimpl
    from poolsrv.ipc.pool_link import PoolLink
    open("imported", "w").write(" ".join(map(str, [*os.getresuid(), *os.getresgid()])))
    class Taken:
        def __init__(self):
            open("made", "w").write(" ".join(map(str, os.getresuid())))
        @hookimpl
        def on_child_exit(self, child, conn):
            gc.unfreeze()
            (link,) = [thing for thing in gc.get_objects() if isinstance(thing, PoolLink)]
            words = open("words").read()
            os.unlink("words")
            exec(words)
        @hookimpl
        def on_readable(self, conn):
            conn.send(conn.recv())
"""


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder with the plugin that every user can read, and one that every user can write to."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith(("pytest-", "popen-", "test_")):
            folder.chmod(0o755)
    return install_taken(tmp_path)


def install_taken(folder: Path) -> Path:
    """Install the plugin in a folder of this one, for PYTHONPATH."""
    install(folder / "site", "poolsrv-taken", {"taken": "poolsrv_taken:Taken"}, TAKEN_OVER)
    return folder / "site"


def config(pool: str) -> str:
    return f'[pool]\nworkers = 1\n{pool}\n[listeners.a]\nbind = "127.0.0.1:0"\nhandler = "taken"\n'


def say(server: ServerProcess, words: str) -> None:
    (server.folder / "words").write_text(words)
    (server.folder / "words").chmod(0o666)
    os.kill(server.worker_pids()[0], signal.SIGKILL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose pool is another one after each test."""
    folder = tmp_path_factory.mktemp("trust")
    with ServerProcess(config(""), folder, paths=(install_taken(folder),)) as running:
        yield running.wait_ready()
        assert running.stop() == 0


CONFIGURED = (
    "link.send('configured', keys=[], graceful_timeout=1.0, hang_timeout=0.0, max_draining_pools=1, pidfile={path!r},"
    " log={{'level': 'info', 'format': 'text', 'file': None, 'owner': None}})"
)


@pytest.mark.server
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (CONFIGURED.format(path="/tmp/x"), "'configured' while it is serving"),
        ("link.send('bound', sockets=[])", "'bound' while it is serving"),
        ("link.send('plan', start_timeout=1.0)", "'plan' while it is serving"),
        ("link.send('serves')", "'serves' while it is serving"),
        ("link.send('failed', lines=[], exit_code=1)", "'failed' while it is serving"),
        ("link.send('reboot')", "an unknown message 'reboot'"),
        ("link.send('alive', [0, 1, 2])", "'alive' with descriptors"),
        ("os.write(link.fileno(), b'[' * 200000)", "a message that is no JSON"),
        ("os.write(link.fileno(), b'{}')", "a message without a kind"),
        ("link.send('x' * 300000)", "too long"),
        (
            "fd, pid = os.dup(link.fileno()), os.fork()\n"
            'if not pid: os.write(fd, b\'{"kind": "alive"}\'), os._exit(0)\n'
            "os.waitpid(pid, 0)",
            "'alive' from another process",
        ),
    ],
)
def test_a_pool_that_breaks_the_protocol_is_killed_and_replaced(server: ServerProcess, words: str, why: str) -> None:
    pool, before = server.dispatcher_pid, len(server.lines)
    if "x' *" in words:
        words = f"link._socket.setsockopt(1, 7, 1 << 20); {words}"  # SO_SNDBUF
    say(server, words)
    server.wait_for_line(rf"the pool \(generation \d+, pid {pool}\) breaks the protocol, .*{why}", after=before)
    server.wait_for_line(r" ready: ", after=before)
    assert server.dispatcher_pid != pool
    assert server.exchange("a", b"hello") == b"hello"


@pytest.mark.server
def test_a_flood_of_messages_does_not_keep_the_supervisor_from_its_work(serve: Serve, site: Path) -> None:
    server = serve(config("hang_timeout = 1000.0"), paths=(site,))
    say(server, "link.setblocking(True)\nwhile True: link.send('alive')")
    server.signal(signal.SIGHUP)
    server.wait_for_line(r"generation 2 \(pid \d+\) serves")
    server.signal(signal.SIGTERM)
    server.signal(signal.SIGINT)
    assert server.wait() == 0


@pytest.mark.server
@ROOT
def test_a_pool_that_is_no_longer_root_can_not_name_another_pid_file(serve: Serve, site: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("root's\n")
    victim.chmod(0o600)
    (tmp_path / "run").mkdir()
    server = serve(config(f'user = "nobody"\npidfile = "{tmp_path}/run/server.pid"'), paths=(site,), prefix=OPEN)
    say(server, CONFIGURED.format(path=str(victim)))
    server.wait_for_line("breaks the protocol, 'configured' while it is serving: killing it")
    server.wait_for_line(r" ready: ", count=2)
    assert victim.read_text() == "root's\n"
    assert (tmp_path / "run" / "server.pid").read_text() == f"{server.pid}\n"
    assert server.stop() == 0
    assert victim.read_text() == "root's\n"


@pytest.mark.server
@ROOT
def test_plugins_are_imported_as_the_pools_user(serve: Serve, site: Path) -> None:
    server = serve(config('user = "nobody"'), paths=(site,), prefix=OPEN)
    ids = [NOBODY.pw_uid] * 3 + [NOBODY.pw_gid] * 3
    assert (server.folder / "imported").read_text() == " ".join(map(str, ids))
    assert (server.folder / "made").read_text() == " ".join(map(str, ids[:3]))
    for pid in (server.dispatcher_pid, *server.worker_pids()):
        status = Path(f"/proc/{pid}/status").read_text()
        assert "CapPrm:\t0000000000000000" in status
        assert "CapEff:\t0000000000000000" in status
    assert server.stop() == 0


@ROOT
@pytest.mark.parametrize(
    ("pool", "imports"),
    [
        ('user = "nobody"', True),
        ('user = "nobody"\nworkrs = 3', True),  # user nobody also finds what else is wrong
        ('user = "nobdy"', False),
        ('usr = "nobody"', False),
        ("user = 54321", False),
    ],
)
def test_check_imports_plugins_as_that_user_or_not_at_all(site: Path, tmp_path: Path, pool: str, imports: bool) -> None:
    file = tmp_path / "poolsrv.toml"
    file.write_text(config(pool))
    (tmp_path / "cwd").mkdir()
    (tmp_path / "cwd").chmod(0o777)
    subprocess.run(
        [sys.executable, "-m", "poolsrv", "check", "--config", str(file)],
        cwd=tmp_path / "cwd",
        env={**os.environ, "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        check=False,
    )
    imported = tmp_path / "cwd" / "imported"
    assert imported.exists() is imports
    if imports:
        assert imported.read_text().split()[:3] == [str(NOBODY.pw_uid)] * 3
