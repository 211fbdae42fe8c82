"""The pool's user: bind as root, serve as another user. What needs root is tried if the tests run as root."""

from __future__ import annotations

import importlib
import os
import pwd
import re
import resource
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from poolsrv.core import privileges
from poolsrv.errors import StartError
from poolsrv.plugins.loader import load
from tests.helpers.configs import errors
from tests.helpers.distributions import install
from tests.helpers.http import Client, cgi_listener, write_programs
from tests.helpers.server import ServerProcess, is_alive, wait_until
from tests.helpers.strangers import ROOT, open_tmp

Serve = Callable[..., ServerProcess]

__all__ = ["open_tmp"]
NOBODY = pwd.getpwnam("nobody")
ECHO = '[listeners.hello]\nbind = "127.0.0.1:0"\nhandler = "echo"\n'


def status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


# --- another user


@pytest.mark.server
@ROOT
def test_the_addresses_are_roots_and_all_else_is_somebody_elses(serve: Serve, open_tmp: Path) -> None:
    port = 7  # below 1024
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            pytest.skip("another process listens on port 7")
    root = write_programs(
        open_tmp / "bin", {"id.sh": "printf 'Content-Type: text/plain\\n\\n'; id; cat /proc/self/status"}
    )
    text = '[pool]\nworkers = 1\nuser = "nobody"\n' + cgi_listener(bind=f"127.0.0.1:{port}", root=root)
    server = serve(text)
    for pid in (server.dispatcher_pid, *server.worker_pids()):
        found = status(pid)
        assert found["Uid"].split() == [str(NOBODY.pw_uid)] * 4  # real, effective, saved, file system
        assert found["Gid"].split() == [str(NOBODY.pw_gid)] * 4
        assert set(found["Groups"].split()) <= {str(gid) for gid in os.getgrouplist("nobody", NOBODY.pw_gid)}
        assert {int(found[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
        assert found["NoNewPrivs"] == "1"
    assert status(server.pid)["Uid"].split() == ["0"] * 4
    with Client(server) as client:
        answer = client.get("/id.sh").body.decode()
    assert answer.startswith(f"uid={NOBODY.pw_uid}(nobody) gid={NOBODY.pw_gid}(")
    assert "NoNewPrivs:\t1" in answer
    before = server.dispatcher_pid
    server.reload()  # for which the supervisor still is root
    assert server.dispatcher_pid != before
    assert status(server.dispatcher_pid)["Uid"].split() == [str(NOBODY.pw_uid)] * 4
    victim = server.worker_pids()[0]
    os.kill(victim, 9)
    wait_until(lambda: not is_alive(victim), "a worker's end")
    server.wait_for_line(r"worker 0 .* serves", count=3)
    assert server.stop() == 0
    assert "ERROR" not in server.log.replace("killed by SIGKILL", "").replace("ERROR   dispatcher", "")


@pytest.mark.server
@ROOT
def test_a_bare_number_and_a_group_of_its_own(serve: Serve) -> None:
    server = serve("[pool]\nworkers = 1\nuser = 54321\ngroup = 12345\nno_new_privs = false\n" + ECHO)
    found = status(server.worker_pids()[0])
    assert found["Uid"].split() == ["54321"] * 4
    assert found["Gid"].split() == ["12345"] * 4
    assert found["Groups"].split() == ["12345"]
    assert found["NoNewPrivs"] == "0"
    assert server.exchange("hello", b"hello") == b"hello"


@pytest.mark.server
@ROOT
def test_unix_sockets_belong_to_the_pools_user(serve: Serve, open_tmp: Path) -> None:
    path = open_tmp / "s"
    text = (
        '[pool]\nworkers = 1\nuser = "nobody"\n' + ECHO.replace("127.0.0.1:0", f"unix:{path}") + "socket_mode = 0o660\n"
    )
    server = serve(text)
    found = path.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (NOBODY.pw_uid, NOBODY.pw_gid, 0o660)
    assert server.stop() == 0
    assert not path.exists()


def test_only_root_can_become_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(StartError, match=r"^pool\.user: only root can become another user, and this is user \d+$"):
        privileges.become(privileges.Identity(os.getuid() + 1, os.getgid()))
    with pytest.raises(StartError, match=r"^pool\.group: only root"):
        privileges.become(privileges.Identity(None, os.getgid() + 1))


@ROOT
def test_what_python_imports_from_can_be_read_until_plugins_are_imported(
    open_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = open_tmp / "roots"
    folder.mkdir(mode=0o700)
    (folder / "module.py").write_text("import os\n")
    importlib.import_module("termios")  # which a change of user takes, and would not find there
    monkeypatch.setattr(sys, "path", [str(open_tmp), str(folder)])
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = [privileges.become_for_imports(privileges.Identity(NOBODY.pw_uid, NOBODY.pw_gid))]
            said.append((folder / "module.py").read_text().strip())
            said.append(attempt(lambda: (folder / "new").touch()))
            said.append(attempt(lambda: os.setuid(0)))
            privileges.stop_reading()
            said.append(attempt(lambda: (folder / "module.py").read_text()))
            said.append(status(os.getpid())["CapPrm"].strip("0"))
            os.write(writer, "\n".join(said).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader) as file:
        said = file.read().split("\n")
    os.waitpid(pid, 0)
    assert said == [str(folder), "import os", "PermissionError", "PermissionError", "PermissionError", ""]


def attempt(call: Callable[[], object]) -> str:
    """Return the name of the error that a call raises, or "done"."""
    try:
        call()
    except OSError as error:
        return type(error).__name__
    return "done"


@pytest.mark.server
def test_to_be_oneself_needs_nothing(serve: Serve) -> None:
    server = serve(f"[pool]\nworkers = 1\nuser = {os.getuid()}\ngroup = {os.getgid()}\n" + ECHO)
    assert server.exchange("hello", b"hello") == b"hello"
    assert status(server.worker_pids()[0])["NoNewPrivs"] == "1"


@pytest.mark.server
def test_without_a_user_nothing_is_given_up(serve: Serve) -> None:
    server = serve("[pool]\nworkers = 1\n" + ECHO)
    mine, its = status(os.getpid()), status(server.worker_pids()[0])
    for name in ("Uid", "Gid", "Groups", "CapEff", "NoNewPrivs"):
        assert mine[name] == its[name]


# --- mask, folder, limits


@pytest.mark.server
def test_the_umask_holds_for_sockets_and_programs(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "s"
    root = write_programs(tmp_path / "bin", {"umask.sh": "printf 'Content-Type: text/plain\\n\\n'; umask"})
    text = "[pool]\nworkers = 1\numask = 0o027\n" + cgi_listener(root=root)
    server = serve(text + ECHO.replace("127.0.0.1:0", f"unix:{path}"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~0o027
    with Client(server) as client:
        assert client.get("/umask.sh").body.strip() == b"0027"


@pytest.mark.server
def test_the_working_folder_is_the_pools_and_not_the_supervisors(serve: Serve, tmp_path: Path) -> None:
    server = serve(f'[pool]\nworkers = 1\nchdir = "{tmp_path}"\n' + ECHO)
    assert Path(f"/proc/{server.worker_pids()[0]}/cwd").readlink() == tmp_path
    assert Path(f"/proc/{server.pid}/cwd").readlink() == server.folder
    server.reload()
    assert server.exchange("hello", b"hello") == b"hello"


BLOCKING = """
import os
from poolsrv import hookimpl

class Blocking:
    @hookimpl
    def on_readable(self, conn):
        if conn.recv():
            conn.run_blocking(os.getcwd, done=lambda future: conn.close() if conn.send(future.result().encode()) else 0)
"""


@pytest.mark.server
@ROOT
def test_started_where_the_user_can_not_go(serve: Serve, open_tmp: Path) -> None:
    """Only root can enter the folder of the config, which is the working directory, and perhaps Python's."""
    site = open_tmp / "site"
    install(site, "poolsrv-blocking", {"blocking": "poolsrv_blocking:Blocking"}, BLOCKING)
    script = "printf 'Content-Type: text/plain\\n\\n'; pwd"
    root = write_programs(open_tmp / "bin", {"pwd.sh": script})
    text = "[pool]\nworkers = 1\nuser = 54321\ngroup = 54321\n" + cgi_listener(root=root)
    text += cgi_listener("line", root=root, protocol="line")
    text += cgi_listener("inetd", protocol="inetd", program=["/bin/sh", "-c", "pwd"])
    text += '[listeners.blocking]\nbind = "127.0.0.1:0"\nhandler = "blocking"\n'
    server = serve(text, paths=(site,), prefix=("/bin/sh", "-c", 'chmod 700 . && exec "$@"', "sh"))
    for _ in range(2):
        assert Path(f"/proc/{server.dispatcher_pid}/cwd").readlink() == Path("/")
        assert Path(f"/proc/{server.worker_pids()[0]}/cwd").readlink() == Path("/")
        with Client(server) as client:
            for _ in range(2):
                assert client.get("/pwd.sh").body.decode().strip() == str(root)
        assert server.exchange("line", b"pwd.sh\n").decode().endswith(f"{root}\n")
        assert server.exchange("inetd", b"") == b"/\n"
        assert server.exchange("blocking", b"x") == b"/"
        server.reload()
    server.wait_for_line("the working directory is / from now on: user 54321 can't enter the one where the server was")
    assert server.stop() == 0


def test_paths_count_from_the_folder_of_the_config_wherever_the_pool_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "poolsrv.toml").write_text(ECHO)
    monkeypatch.chdir(tmp_path)
    server = load(Path("poolsrv.toml"))
    assert server.base == tmp_path


@pytest.mark.server
def test_a_folder_that_can_not_be_entered(serve: Serve, tmp_path: Path) -> None:
    server = serve(f'[pool]\nchdir = "{tmp_path}/none"\n' + ECHO, ready=False)
    assert server.wait() == 2
    assert server.lines == [f"{server.file}: pool.chdir: there is no directory {tmp_path}/none, expected one"]


@pytest.mark.server
def test_limits(serve: Serve) -> None:
    server = serve("[pool]\nworkers = 1\n[limits]\nopen_files = 200\ncore_size = 0\n" + ECHO)
    for pid in (server.dispatcher_pid, *server.worker_pids()):
        assert resource.prlimit(pid, resource.RLIMIT_NOFILE)[0] == 200
        assert resource.prlimit(pid, resource.RLIMIT_CORE)[0] == 0


@pytest.mark.server
def test_a_limit_that_is_too_low_to_start_with(serve: Serve) -> None:
    server = serve("[pool]\nworkers = 2\n[limits]\nopen_files = 20\n" + ECHO, ready=False)
    assert server.wait() == 1
    assert re.fullmatch(r"poolsrv: the limit of open descriptors is 20, and \d+ are needed .*", server.lines[0])


@pytest.mark.server
@ROOT
def test_a_limit_above_what_one_may_have(serve: Serve) -> None:
    prefix = ("prlimit", "--nofile=500:500", "setpriv", "--bounding-set=-sys_resource")
    server = serve("[limits]\nopen_files = 1000\n" + ECHO, ready=False, prefix=prefix)
    assert server.wait() == 1
    assert server.lines == ["poolsrv: limits.open_files: 1000 is more than the 500 that this user may have at most"]


# --- mistakes


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('user = "nobdy"', r'pool\.user: no user "nobdy" on this machine, .* \(did you mean "nobody"\?\)'),
        ('group = "no-such"', r'pool\.group: no group "no-such" on this machine, expected a group\'s name or number'),
        ("user = -1", r"pool\.user: got -1, expected"),
        ("user = 54321", r"pool\.group: missing, expected one: user 54321 is not in the user database"),
        ("umask = 999", r"pool\.umask: got 999, expected permission bits in octal"),
        ("chdir = 1", r"pool\.chdir: got 1 \(a number\), expected a path"),
        ('no_new_privs = "yes"', r'pool\.no_new_privs: got "yes" \(a string\), expected'),
        ("[limits]\nopen_file = 3", r"limits\.open_file: unknown key \(did you mean \"open_files\"\?\), expected "),
        ("[limits]\nopen_files = 0", r"limits\.open_files: got 0, expected"),
        ("open_files = 3", r"pool\.open_files: `open_files` belongs in \[limits\]"),
    ],
)
def test_mistakes_in_the_config(tmp_path: Path, line: str, message: str) -> None:
    assert re.search(message, "\n".join(errors(tmp_path, f"[pool]\n{line}\n{ECHO}")))
