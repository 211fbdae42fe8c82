"""The option `sandbox.private_tmp` where programs have the server's own user, on a server that is not root."""

from __future__ import annotations

import os
import pwd
import signal
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from poolsrv.config import program_users, reader
from poolsrv.core import private_tmp
from tests.helpers.http import Client, cgi_listener, pool, write_programs
from tests.helpers.server import ServerProcess, children_of, is_alive, wait_until

SIZE = 1000000
# The server may have to read a Python that is where only root can enter.
CAPABILITY = "+dac_read_search"
AS_GAMES = (
    "setpriv", "--reuid=games", "--regid=games", "--clear-groups", f"--inh-caps={CAPABILITY}",
    f"--ambient-caps={CAPABILITY}",
)  # fmt: skip
PROGRAMS = {
    "tmp.sh": """printf 'Content-Type: text/plain\\n\\n'
        ls -A /tmp; echo hello >/tmp/file; cat /tmp/file; echo x 2>/dev/null >/var/tmp/none || echo nowhere else
        grep -c '^Cap[EPA].*:.0*$' /proc/self/status; cat""",
    "many.sh": """printf 'Content-Type: text/plain\\n\\n'
        i=0; while [ $i -lt 3000 ] && true >/tmp/$i; do i=$((i + 1)); done 2>/dev/null; echo $i""",
    "limit.sh": """printf 'Content-Type: text/plain\\n\\n'; prlimit --pid $PPID --$QUERY_STRING && echo limited""",
    "limits.sh": "printf 'Content-Type: text/plain\\n\\n'; ulimit -f",
    "stay.sh": "printf 'Content-Type: text/plain\\n\\n'; echo $$; exec sleep 1000",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Started by an ordinary user. Its programs are not below /tmp, which is hidden from them."""
    prefix, user = (AS_GAMES, "games") if os.geteuid() == 0 else ((), os.geteuid())
    with TemporaryDirectory(prefix="poolsrv-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        folder = write_programs(Path(name).resolve(), PROGRAMS)
        config = pool() + cgi_listener(root=folder, sandbox={"private_tmp": SIZE})
        config += cgi_listener("free", root=folder, sandbox={"private_tmp": SIZE, "system_calls": "all"})
        config += cgi_listener("named", root=folder, user=user, group=user, sandbox={"private_tmp": SIZE})
        server = ServerProcess(config, tmp_path_factory.mktemp("server"), prefix=prefix).wait_ready()
        yield server
        server.close()


@pytest.mark.server
def test_without_root(server: ServerProcess) -> None:
    """Each program finds /tmp empty, and has no capability; also where `user` is the one who has started it."""
    for listener in ("www", "www", "named"):
        with Client(server, listener) as client:
            answer = client.get("/tmp.sh", method="POST", body=b"the body")
        assert (answer.status, answer.body) == (200, b"hello\nnowhere else\n3\nthe body"), listener
    assert not os.path.exists("/tmp/file")
    (spawner,) = set(children_of(server.dispatcher_pid)) - set(server.worker_pids())
    assert "CapPrm:\t0000000000000000" in Path(f"/proc/{spawner}/status").read_text()


@pytest.mark.server
def test_the_size_bounds_what_is_empty_too(server: ServerProcess) -> None:
    """The kernel needs memory for each file, which it does not count as the file's size."""
    with Client(server) as client:
        assert 500 < int(client.get("/many.sh").body) < 2000


@pytest.mark.server
@pytest.mark.parametrize("limit", ["fsize=512:512", "nproc=0:0"])
def test_no_program_changes_what_later_ones_get(server: ServerProcess, limit: str) -> None:
    """Without root, and without a filter of system calls, a program may limit its launcher. That is replaced."""

    def get(target: str) -> tuple[int, bytes]:
        with Client(server, "free") as client:
            answer = client.get(target)
        return answer.status, answer.body

    before = get("/limits.sh")
    assert get(f"/limit.sh?{limit}") == (200, b"limited\n")
    assert get("/limits.sh") == before
    server.wait_for_line(r"free: the launcher of its programs has had its resource limits changed")


@pytest.mark.server
def test_nothing_is_left_behind(server: ServerProcess) -> None:
    """Of a worker that is killed, without a capability to kill what its launcher has started."""
    with Client(server) as client:
        client.request("/stay.sh")
        client.head()
        program = int(client.take(int(client.take(3), 16)))
        os.kill(server.worker_pids()[0], signal.SIGKILL)
        wait_until(lambda: not is_alive(program), "the end of the program")


def users(folder: Path, text: str) -> dict[str, Any]:
    file = folder / "poolsrv.toml"
    file.write_text(text + cgi_listener(root="/usr/bin", sandbox={"private_tmp": SIZE}))
    return program_users.users(reader.read(file).finish())


def test_who_needs_a_launcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool's own user, with its groups, if its programs have a /tmp. Root's programs get none, and need none."""
    games = pwd.getpwnam("games")
    plain = cgi_listener("plain", root="/usr/bin", sandbox="strict")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    expected = (games.pw_uid, games.pw_gid, os.getgrouplist("games", games.pw_gid))
    assert users(tmp_path, '[pool]\nuser = "games"\n' + plain) == {"www": expected}
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert users(tmp_path, plain) == {}
    for name in ("geteuid", "getuid"):
        monkeypatch.setattr(os, name, lambda: 45001)
    assert users(tmp_path, plain) == {"www": (45001, os.getgid(), os.getgroups())}


def test_the_check_opens_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that tries whether the machine allows it is a copy of one that has TLS keys."""
    reader, writer = os.pipe()
    monkeypatch.setattr(private_tmp, "set_dumpable", lambda value: value and os.write(writer, b"x"))
    assert private_tmp.why_not() == ""
    os.close(writer)
    with open(reader, "rb") as file:
        assert file.read() == b""
