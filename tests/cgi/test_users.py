"""The options `user` and `group`: programs as users of their own, on a server that root has started."""

from __future__ import annotations

import gc
import grp
import os
import pwd
import re
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import pytest
from poolsrv_cgi.options import Options, problems

from poolsrv.cli.status import as_text
from poolsrv.config import program_users, reader
from poolsrv.config.errors import ConfigErrors
from poolsrv.core.capabilities import KILL, SETGID, SETUID, SYS_ADMIN
from poolsrv.ipc.stats import Status
from poolsrv.plugins import loader
from tests.helpers.command_line import invoke
from tests.helpers.control import query
from tests.helpers.http import Client, cgi_listener, pool, write_programs
from tests.helpers.server import ServerProcess, children_of, is_alive, wait_until
from tests.helpers.strangers import ROOT, open_tmp

Serve = Callable[..., ServerProcess]
__all__ = ["open_tmp"]

PROGRAMS = {
    "id.sh": """printf 'Content-Type: text/plain\\n\\n'
        id -un; id -gn; id -G; grep -c '^Cap[EPA].*:.0*$' /proc/self/status; grep -c 'NoNewPrivs:.1' /proc/self/status
        ulimit -n; cat""",
    "forth.sh": "printf 'Content-Type: text/plain\\n\\n'; for pid; do kill -0 $pid 2>/dev/null && echo $pid; done",
    "signal.sh": """printf 'Content-Type: text/plain\\n\\n'
        for pid in $(echo "$QUERY_STRING" | tr + ' '); do
            kill -0 $pid && echo "signals $pid"; head -c 1 /proc/$pid/environ && echo "reads $pid"
        done 2>/dev/null
        echo done""",
    "stay.sh": """setsid sleep 1000 </dev/null >/dev/null 2>&1 &
        printf 'Content-Type: text/plain\\n\\n%s %s\\n' $$ $!; sleep 1000""",
    "status.sh": "printf 'Content-Type: text/plain\\n\\n'; exit 7",
    "launcher.sh": "kill -$QUERY_STRING $PPID; sleep 1000",
    "limits.sh": """printf 'Content-Type: text/plain\\n\\n'; grep ^Gid /proc/self/status
        for one in nproc nofile as; do prlimit --pid $PPID --$one=0:0 && echo $one; done 2>/dev/null; echo done""",
    "slow.sh": "renice -n 19 -p $PPID >&2; taskset -p 1 $PPID >&2; printf 'Content-Type: text/plain\\n\\nslow'",
    "share.sh": "printf 'Content-Type: text/plain\\n\\n'; nice; taskset -p $$ | sed 's/.*: //'",
    "line.sh": "id -un",
    "broken": "#!/no/such/interpreter\n",
}


TMP = """printf 'Content-Type: text/plain\\n\\n'
    ls -A /tmp; echo hello >/tmp/file; cat /tmp/file; head -c 200000 /dev/zero 2>/dev/null >/tmp/big || echo full
    echo x 2>/dev/null >/var/tmp/none || echo nowhere else; stat -c %U /tmp/file /etc/passwd"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with TemporaryDirectory(prefix="poolsrv-test-") as name:
        Path(name).chmod(0o755)
        write_programs(Path(name).resolve(), PROGRAMS)
        yield Path(name).resolve()


@pytest.fixture(scope="module")
def elsewhere() -> Iterator[Path]:
    """A folder of programs that is not below /tmp."""
    with TemporaryDirectory(prefix="poolsrv-test-", dir="/var/tmp") as name:
        Path(name).chmod(0o755)
        yield write_programs(Path(name).resolve(), {"tmp.sh": TMP})


@pytest.fixture(scope="module")
def server(folder: Path, elsewhere: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("log") / "access"
    config = pool(user="daemon") + cgi_listener(root=folder, user="games", limits={"open_files": 77}, timeout=600.0)
    config += cgi_listener("short", root=folder, user="games", timeout=0.5)
    config += cgi_listener("group", root=folder, group="games")
    config += cgi_listener("nobody", root=folder, user="nobody", sandbox="strict")
    config += cgi_listener("line", root=folder, user="games", protocol="line")
    config += cgi_listener("inetd", program=["/usr/bin/id", "-un"], user="games", protocol="inetd")
    config += cgi_listener("plain", root=folder)
    config += cgi_listener("tmp", root=elsewhere, user="games", sandbox={"private_tmp": 100000})
    config += cgi_listener("own-tmp", root=elsewhere, sandbox={"private_tmp": 100000})
    log.parent.chmod(0o777)
    with ServerProcess(config, tmp_path_factory.mktemp("server")) as running:
        yield running.wait_ready()


def get(server: ServerProcess, target: str, listener: str = "www", body: bytes | None = None) -> tuple[int, str]:
    with Client(server, listener) as client:
        answer = client.get(target, method="GET" if body is None else "POST", body=body)
    return answer.status, answer.body.decode()


def pids_from(client: Client) -> list[int]:
    """What `stay.sh` prints, in its first chunk: its own pid, and that of what it has left its group with."""
    size = b""
    while not size.endswith(b"\r\n"):
        size += client.take(1)
    return list(map(int, client.take(int(size, 16)).split()))


def spawner_of(server: ServerProcess) -> int:
    (pid,) = [pid for pid in children_of(server.dispatcher_pid) if pid not in server.worker_pids()]
    return pid


def status_of(pid: int, field: str) -> str:
    return re.search(rf"^{field}:\s*(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)[1]  # type: ignore[index]


@ROOT
@pytest.mark.server
def test_programs_have_their_user(server: ServerProcess) -> None:
    """With its groups, without capabilities and without a way to more; with their input, limits and sandbox."""
    games = pwd.getpwnam("games")
    groups = " ".join(map(str, os.getgrouplist("games", games.pw_gid)))
    assert get(server, "/id.sh", body=b"the body") == (200, f"games\ngames\n{groups}\n3\n1\n77\nthe body")
    assert get(server, "/id.sh", "group")[1].split()[:2] == ["daemon", "games"]
    assert get(server, "/id.sh", "nobody")[1].split()[0] == "nobody"
    assert get(server, "/id.sh", "plain")[1].split()[0] == "daemon"
    assert server.exchange("line", b"line.sh\n") == b"games\n"
    assert server.exchange("inetd", b"") == b"games\n"


@ROOT
@pytest.mark.server
def test_a_tmp_of_its_own(server: ServerProcess) -> None:
    """Each program finds /tmp empty, may fill it up to its size, and leaves nothing in the real one."""
    before = set(os.listdir("/tmp"))
    for listener, user in (("tmp", "games"), ("tmp", "games"), ("own-tmp", "daemon")):
        assert get(server, "/tmp.sh", listener) == (200, f"hello\nfull\nnowhere else\n{user}\nnobody\n")
    assert "file" not in set(os.listdir("/tmp")) - before


@ROOT
@pytest.mark.server
def test_who_may_do_what(server: ServerProcess) -> None:
    """The pool has its user, the spawner three capabilities, a launcher none; a program reaches none of them."""
    get(server, "/status.sh")
    spawner = spawner_of(server)
    kept = f"{1 << SETUID | 1 << SETGID | 1 << KILL:016x}"
    for set_of in ("CapPrm", "CapEff"):
        assert status_of(spawner, set_of) == kept
        others = {pid: os.readlink(f"/proc/{pid}/ns/user") for pid in (*children_of(spawner), *server.worker_pids())}
        here = [pid for pid, space in others.items() if space == os.readlink("/proc/self/ns/user")]
        assert {status_of(pid, set_of) for pid in here} == {"0" * 16}
        # A launcher that mounts may do that in a name space of its own, over nothing else.
        assert {status_of(pid, set_of) for pid in others if pid not in here} <= {f"{1 << SYS_ADMIN:016x}"}
    assert status_of(spawner, "NoNewPrivs") == "1"
    assert {status_of(pid, "Uid").split()[0] for pid in children_of(spawner)} <= {
        str(pwd.getpwnam(name).pw_uid) for name in ("games", "daemon", "nobody")
    }
    of_the_server = [server.pid, server.dispatcher_pid, spawner, *server.worker_pids()]
    query = "+".join(map(str, of_the_server))
    assert get(server, f"/signal.sh?{query}") == (200, "done\n")
    assert get(server, f"/signal.sh?{query}", "plain")[1] != "done\n"  # these have the pool's user


@ROOT
@pytest.mark.server
def test_what_can_t_be_started(server: ServerProcess) -> None:
    assert get(server, "/broken")[0] == 500
    server.wait_for_line(r"can't start .*/broken: its interpreter /no/such/interpreter .* does not exist")
    assert get(server, "/status.sh")[0] == 200  # the launcher goes on


@ROOT
@pytest.mark.server
def test_their_end(server: ServerProcess) -> None:
    """By a timeout, with the whole group; and with their client."""

    def is_ended_by_the_timeout() -> bool:
        with Client(server, "short") as client:
            client.request("/stay.sh")
            if client.head().startswith(b"HTTP/1.1 504"):
                return False  # a busy machine: it had not begun
            pid = pids_from(client)[0]
            wait_until(lambda: not is_alive(pid), "the end by the timeout")
            return True

    wait_until(is_ended_by_the_timeout, "a program that begins in time")
    with Client(server) as client:
        client.request("/stay.sh")
        client.head()
        pid = pids_from(client)[0]
        assert is_alive(pid)
        client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    wait_until(lambda: not is_alive(pid), "the end with the client")


@ROOT
@pytest.mark.server
def test_a_launcher_that_is_killed_is_replaced(server: ServerProcess) -> None:
    """A program can kill the launcher, which has its user. That ends its own requests in this worker, and no others."""
    with Client(server) as client:
        client.request("/stay.sh")
        client.head()
        pids = pids_from(client)
        assert get(server, "/launcher.sh?KILL")[0] in (500, 502)  # before it has said that it has started it, or after
        server.wait_for_line(r"www: the launcher of its programs has ended")
        wait_until(lambda: not any(map(is_alive, pids)), "the end of what the launcher had started")
    assert get(server, "/id.sh")[0] == 200


@ROOT
@pytest.mark.server
def test_a_launcher_keeps_its_limits(server: ServerProcess) -> None:
    """A program that could lower them would keep its launcher from starting others, for as long as that lives."""
    for listener, group in (("www", "games"), ("nobody", "nogroup")):  # the latter in a sandbox, which forbids it too
        status, text = get(server, "/limits.sh", listener)
        assert (status, text.split()) == (200, ["Gid:", *[str(grp.getgrnam(group).gr_gid)] * 4, "done"])
    assert get(server, "/id.sh")[0] == 200


@ROOT
@pytest.mark.server
def test_no_program_changes_what_later_ones_get(server: ServerProcess) -> None:
    """Of the CPUs, which its launcher hands down; and none of the later requests fails. Its own does on a busy machine,
    if it is done before the launcher has said that it runs."""
    before = get(server, "/share.sh")
    assert get(server, "/slow.sh")[0] in (200, 500)
    assert get(server, "/share.sh") == before
    server.wait_for_line(r"www: the launcher of its programs has (had its share of the CPUs changed|been slowed down)")


@ROOT
@pytest.mark.server
def test_status_shows_launchers(serve: Serve, folder: Path) -> None:
    """With what they have started."""
    config = pool(user="daemon", control="run/ctl") + cgi_listener(root=folder, user="games", timeout=600.0)
    server = serve(config)
    with Client(server) as client:
        client.request("/stay.sh")
        client.head()
        pids = pids_from(client)
        wait_until(lambda: query(server)["status"]["launchers"] != [], "what the spawner tells of the launcher")
        found = query(server)["status"]
        (launcher,) = found["launchers"]
        assert {key: launcher[key] for key in ("listener", "user", "worker", "worker_pid", "programs")} == {
            "listener": "www", "user": "games", "worker": 0, "worker_pid": server.worker_pids()[0], "programs": 1
        }  # fmt: skip
        (program,) = found["programs"]
        assert (program["pid"], program["launcher"], program["worker"]) == (pids[0], launcher["pid"], 0)
        assert found["totals"]["programs"] == 1
        text = as_text(msgspec.convert(found, Status))
        assert re.search(rf"^ *{launcher['pid']} +0 .* 1  www +games$", text, re.MULTILINE), text
        os.kill(launcher["pid"], signal.SIGKILL)
        wait_until(lambda: query(server)["status"]["launchers"] == [], "the launcher's end")


@ROOT
@pytest.mark.server
def test_nothing_is_left_behind(serve: Serve, folder: Path) -> None:
    """Whichever process is killed, and if the server stops: programs end, even those in sessions of their own."""
    server = serve(pool(user="daemon", graceful_timeout=0.0) + cgi_listener(root=folder, user="games"))
    for which in ("worker", "dispatcher", "spawner", "stop"):
        spawner, after = spawner_of(server), len(server.lines)
        with Client(server) as client:
            client.request("/stay.sh")
            client.head()
            pids = pids_from(client)
            assert all(map(is_alive, pids))
            if which == "stop":
                assert server.stop() == 0
            elif which == "worker":
                os.kill(server.worker_pids()[0], signal.SIGKILL)
                server.wait_for_line(r"worker 0 \(pid \d+\) serves", after=after)
            else:
                os.kill(server.dispatcher_pid if which == "dispatcher" else spawner, signal.SIGKILL)
                server.wait_for_line(" ready: ", after=after)
            wait_until(lambda: not any(map(is_alive, pids)), "the end of programs")  # noqa: B023
        wait_until(lambda: which == "worker" or not is_alive(spawner), "the end of the spawner")  # noqa: B023


@ROOT
@pytest.mark.server
def test_root_without_a_capability(serve: Serve, folder: Path) -> None:
    """In a container, or with a CapabilityBoundingSet= of systemd: it says which."""
    config = pool(user="daemon") + cgi_listener(root=folder, user="games")
    server = serve(config, ready=False, prefix=("setpriv", "--bounding-set=-kill"))
    assert server.wait() == 1
    (line,) = server.lines
    assert "no CAP_KILL: programs with a user or a /tmp of their own take CAP_SETUID, CAP_SETGID and CAP_KILL" in line


@ROOT
@pytest.mark.server
def test_reload(serve: Serve, folder: Path) -> None:
    """Each pool has the users of the config that root has read at its start. A bad user changes nothing."""
    server = serve(pool(user="daemon") + cgi_listener(root=folder, user="games"))
    assert get(server, "/id.sh")[1].startswith("games\n")
    server.file.write_text(pool(user="daemon") + cgi_listener(root=folder, user="nobody"))
    server.reload()
    assert get(server, "/id.sh")[1].startswith("nobody\n")
    server.file.write_text(pool(user="daemon") + cgi_listener(root=folder, user="gamess"))
    server.signal(signal.SIGHUP)
    server.wait_for_line(r'www\.cgi\.user: no user "gamess" on this machine, .* \(did you mean "games"\?\)')
    assert get(server, "/id.sh")[1].startswith("nobody\n")


def errors(tmp_path: Path, **options: Any) -> list[str]:
    file = tmp_path / "poolsrv.toml"
    file.write_text(cgi_listener(root=tmp_path, **options))
    problems: list[str] = []
    try:
        loader.load_plugins(reader.read(file))
    except ConfigErrors as found:
        problems = [str(problem).removeprefix(f"{file}: listeners.www.cgi.") for problem in found.problems]
    gc.collect()  # the plugin has descriptors
    return problems


def test_mistakes(tmp_path: Path) -> None:
    (unknown,) = errors(tmp_path, user="nobodyy")
    assert re.fullmatch(r'user: no user "nobodyy" on this machine, .*\(did you mean "nobody"\?\)', unknown)
    assert errors(tmp_path, user="root") == ["user: programs can't be given root's rights, expected an ordinary user"]
    assert errors(tmp_path, user=3000000) == [
        "user: user 3000000 is not in the user database, expected `group` beside it"
    ]
    (wrong,) = errors(tmp_path, user=["games"])
    assert wrong.startswith("user: got a list, expected a string or a whole number")
    assert [key for key, _ in problems(Options(root=tmp_path, user="games", warm=True))] == ["warm"]


def test_root_s_programs_get_no_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes another user: of the server, or of the programs."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    options = {"sandbox": {"private_tmp": 100000}}
    with TemporaryDirectory(prefix="poolsrv-test-", dir="/var/tmp") as name:
        (message,) = errors(Path(name), **options)
        assert message == (
            "sandbox.private_tmp: can't be given to programs of root, expected `user` beside the sandbox, or in [pool]"
        )
        assert errors(Path(name), **options, user="games") == []


def test_only_root_can(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an ordinary user it is an error of the config, with its place; one's own user is fine."""
    monkeypatch.setattr(os, "geteuid", lambda: 45001)
    (found,) = errors(tmp_path, user="games")
    assert found == (
        'user: only root can run programs as user "games", and this is user 45001:'
        " expected poolsrv to be started as root"
    )
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam("games").pw_uid)
    monkeypatch.setattr(os, "getgid", lambda: pwd.getpwnam("games").pw_gid)
    assert errors(tmp_path, user="games") == []


def test_others_than_root_may_look_at_the_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's user, for example, who replays a capture. `check` warns."""
    monkeypatch.setattr(os, "geteuid", lambda: 45001)
    (tmp_path / "poolsrv.toml").write_text(cgi_listener(root=tmp_path, user="games"))
    result = invoke("explain", "--listener", "www", "/x", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    result = invoke("check", cwd=tmp_path)
    assert result.returncode == 0
    assert 'warning: listeners.www.cgi.user: only root can run programs as user "games"' in result.stderr


def test_the_pool_s_own_user_needs_no_spawner(tmp_path: Path) -> None:
    file = tmp_path / "poolsrv.toml"
    file.write_text('[pool]\nuser = "games"\n' + cgi_listener(root=tmp_path, user="games"))
    assert program_users.users(reader.read(file).finish()) == {}
