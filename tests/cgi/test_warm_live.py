"""Warm Python on a running server: scripts in children of a warm interpreter, as if each had a fresh Python."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import h11
import pytest

from tests.helpers.http import Client, cgi_listener, pool, write_programs
from tests.helpers.plugins import reset
from tests.helpers.server import ServerProcess, children_of, is_alive, wait_until

pytestmark = pytest.mark.server

HEAD = "print('Content-Type: text/plain\\n', flush=True)\n"
SCRIPTS = {
    "where.py": f"import os, sys\n{HEAD}print(os.getppid(), os.getpid(), os.getpgrp())\n",
    "tell.py": "import json, os, sys, resource\n"
    f"{HEAD}d = {{'argv': sys.argv, 'cwd': os.getcwd(), 'name': __name__, 'file': __file__, 'env': dict(os.environ),\n"
    "     'fds': sorted(os.listdir('/proc/self/fd')), 'path': sys.path, 'exe': sys.executable,\n"
    "     'in': os.readlink('/proc/self/fd/0'), 'files': resource.getrlimit(resource.RLIMIT_NOFILE),\n"
    "     'modules': 'decimal' in sys.modules, 'group': os.getpgrp() == os.getpid(),\n"
    "     'flags': sys.flags.dont_write_bytecode}\n"
    "print(json.dumps(d))\n",
    "echo.py": f"import sys\n{HEAD}sys.stdout.buffer.write(sys.stdin.buffer.read())\n",
    "exit.py": "import sys\nprint('Content-Type: text/plain\\nContent-Length: 2\\n\\nok')\nsys.exit(7)\n",
    "raise.py": f"{HEAD}1 / 0\n",
    "nothing.py": "import sys\nprint('a reason', file=sys.stderr)\n",
    "dies.py": f"import os\n{HEAD}os.kill(os.getpid(), 9)\n",
    "stubborn.py": "import os, signal, subprocess, time\nsignal.signal(15, signal.SIG_IGN)\n"
    f"p = subprocess.Popen(['sleep', '1000'])\n{HEAD}print(os.getpid(), p.pid, flush=True)\ntime.sleep(1000)\n",
    "big.py": "import sys\nprint('Content-Type: x/y\\n')\nfor i in range(300): sys.stdout.write('x' * 100000)\n",
    "changes.py": f"{HEAD}print('old')\n",
    "waits.py": f"import os, time\n{HEAD}print(os.getpid(), flush=True)\n"
    "while not os.path.exists(f'go.{os.getpid()}'): time.sleep(0.02)\nprint('end')\n",
    "local.py": "print('Location: /echo.py\\n')\n",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    write_programs(root, {name: f"#!{sys.executable}\n{text}" for name, text in SCRIPTS.items()})
    write_programs(
        root, {"flags.py": f"#!{sys.executable} -B\n{SCRIPTS['tell.py']}", "sh.sh": "echo Status: 299; echo"}
    )
    (root / "config.pyx").write_text(SCRIPTS["where.py"])
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[ServerProcess]:
    config = pool() + cgi_listener(root=root, warm=True, warm_modules=["decimal"], limits={"open_files": 77})
    config += cgi_listener("some", root=root, warm=["/tell*"])
    config += cgi_listener("timed", root=root, timeout=2.0)
    config += cgi_listener("cold", root=root, limits={"open_files": 77})
    config += cgi_listener("config", root=root, warm=True, interpreters={".pyx": [sys.executable]})
    log = tmp_path_factory.mktemp("log") / "log"
    config += cgi_listener("logged", root=root, warm=True, access_log=log, access_log_format="json")
    with ServerProcess(config, tmp_path_factory.mktemp("server")) as running:
        yield running.wait_ready()


def warm(server: ServerProcess, listener: str = "www", target: str = "/where.py") -> Client:
    """A client of a listener whose helper is ready: scripts' parent is no longer the worker."""
    client = Client(server, listener)
    workers = server.worker_pids()

    def is_warm() -> bool:
        parent, pid, group = map(int, client.get(target).body.split())
        assert pid == group
        return parent not in workers

    wait_until(is_warm, "a warm interpreter")
    return client


def test_a_script_can_not_tell(server: ServerProcess, root: Path) -> None:
    """It sees what it sees in a fresh Python; only the modules that the config names are there in addition."""
    with warm(server) as client, Client(server, "cold") as other:
        for target in ("/tell.py?q", "/tell.py/info"):
            seen, expected = (json.loads(one.get(target, "X-A: b").body) for one in (client, other))
            for of in (seen, expected):
                assert re.match(r"pipe:|/dev/null", of.pop("in"))
                for name in ("REMOTE_PORT", "SERVER_PORT"):
                    del of["env"][name]
            assert (seen.pop("modules"), expected.pop("modules")) == (True, False)
            assert seen == expected
            assert seen["files"] == [77, 77]
            assert seen["fds"] == ["0", "1", "2", "3"]


def test_the_interpreter_is_that_of_the_first_line(server: ServerProcess, root: Path) -> None:
    """With its flags; one helper for each, and programs that are not Python are started the ordinary way."""
    with warm(server) as client:
        assert client.get("/sh.sh").status == 299
        wait_until(lambda: json.loads(client.get("/flags.py").body)["flags"] == 1, "the flag -B")
        assert json.loads(client.get("/tell.py").body)["flags"] == 0
    warm(server, "config", "/config.pyx").sock.close()


def test_patterns_say_which_scripts_are_warm(server: ServerProcess) -> None:
    workers = server.worker_pids()
    with Client(server, "some") as client:
        for _ in range(10):
            client.get("/tell.py")
            assert int(client.get("/where.py").body.split()[0]) in workers


@pytest.mark.parametrize("size", [1, 100_000, 5_000_000])
def test_bodies(server: ServerProcess, size: int) -> None:
    """RFC 3875 section 4.2: input and output as pipes of the script's own."""
    with warm(server) as client:
        body = os.urandom(size)
        for _ in range(2):
            assert client.get("/echo.py", method="POST", body=body).body == body
        assert client.get("/local.py", method="POST", body=b"x").body == b""


def test_how_scripts_end(server: ServerProcess) -> None:
    """Exit status, signal, an exception with its traceback in the log, no header: as without warm."""
    with warm(server, "logged") as client:
        assert client.get("/exit.py").body == b"ok"
        assert client.get("/nothing.py").status == 502
        server.wait_for_line(r"/nothing.py\[\d+\]: 502: the program printed nothing; its last words: a reason")
        assert client.get("/raise.py").status == 200
        server.wait_for_line(r"/raise.py\[\d+\]: ZeroDivisionError")
        with pytest.raises(h11.RemoteProtocolError):
            client.get("/dies.py")
    log = Path(re.search(r'access_log = "(.*)"', server.file.read_text()).group(1))  # type: ignore[union-attr]
    wait_until(lambda: all(f'"/{name}.py"' in log.read_text() for name in ("exit", "raise", "dies")), "the log")
    ends = {}
    for line in log.read_text().splitlines():
        record = json.loads(line)
        ends[record["program"]] = record.get("exit", -record.get("signal", 0))
        assert record["cpu"] < 5
        assert "peak" not in record or record["program"] == "/where.py"
    assert (ends["/exit.py"], ends["/raise.py"], ends["/dies.py"]) == (7, 1, -9)


def test_changed_scripts_are_noticed(server: ServerProcess, root: Path) -> None:
    with warm(server) as client:
        assert client.get("/changes.py").body == b"old\n"
        write_programs(root, {"changes.py": f"#!{sys.executable}\n{HEAD}print('new')\n"})
        assert client.get("/changes.py").body == b"new\n"


def numbers(client: Client) -> list[int]:
    """The numbers that a script prints in its first line, after the chunk's size."""
    assert client.head().startswith(b"HTTP/1.1 200")
    return numbers_of_body(client)


def numbers_of_body(client: Client) -> list[int]:
    text = b""
    while not text.endswith(b"\n") or text.count(b"\n") < 2:
        text += client.take(1)
    return [int(word) for word in text.splitlines()[1].split()]


def test_the_group_is_ended(server: ServerProcess) -> None:
    """On timeout, and when the client has gone: TERM, then KILL to the script's whole group."""
    client = warm(server)
    client.request("/stubborn.py")
    started = numbers(client)
    reset(client.sock)

    def is_begun() -> bool:
        """On a busy machine it may have begun too late."""
        with Client(server, "timed") as client:
            client.request("/stubborn.py")
            if client.head().startswith(b"HTTP/1.1 504"):
                return False
            started.extend(numbers_of_body(client))
            wait_until(lambda: not any(map(is_alive, started)), "the groups' end")
            return True

    wait_until(is_begun, "a script that begins in time")


def test_a_large_output(server: ServerProcess) -> None:
    with warm(server) as client:
        assert len(client.get("/big.py").body) == 30_000_000


def test_a_helper_that_was_killed_is_replaced(server: ServerProcess, root: Path) -> None:
    """Its children run on; meanwhile scripts are started the ordinary way."""
    with warm(server) as client, Client(server) as other, Client(server) as third:
        helper = int(client.get("/where.py").body.split()[0])
        third.request("/waits.py")
        (waiting,) = numbers(third)
        other.request("/stubborn.py")
        pids = numbers(other)
        os.kill(helper, signal.SIGKILL)
        for _ in range(20):
            assert client.get("/where.py").status == 200
        assert all(map(is_alive, pids))
        (root / f"go.{waiting}").touch()
        assert third.take(16).endswith(b"4\r\nend\n\r\n0\r\n\r\n")
        assert waiting not in children_of(server.worker_pids()[0])
        reset(other.sock)
        wait_until(lambda: not any(map(is_alive, pids)), "the end of one without a client")
    server.wait_for_line("the warm interpreter .* has ended: it will be replaced")
    with warm(server) as client:
        assert int(client.get("/where.py").body.split()[0]) != helper


SLOW_TO_TELL = """
import os, time
real = os.setpgid
def setpgid(pid, group):  # what the helper does before it tells the pid
    while pid and os.path.exists("{0}/armed") and not os.path.exists("{0}/released"):
        time.sleep(0.005)
    real(pid, group)
os.setpgid = setpgid
"""


def test_the_log_has_the_pid_of_a_script_that_is_fast(
    serve: Callable[..., ServerProcess], root: Path, tmp_path: Path
) -> None:
    """It may write to standard error before its helper has told its process id."""
    (tmp_path / "slow_to_tell.py").write_text(SLOW_TO_TELL.format(tmp_path))
    early = f"import sys\nprint('early', file=sys.stderr, flush=True)\nopen('{tmp_path}/written', 'w').close()\n{HEAD}"
    write_programs(root, {"early.py": f"#!{sys.executable}\n{early}"})
    path = {"PYTHONPATH": str(tmp_path)}
    config = pool() + cgi_listener(root=root, warm=True, warm_modules=["slow_to_tell"], environment=path)
    server = serve(config + cgi_listener("cold", root=root))
    with warm(server) as client, Client(server, "cold") as other:
        (tmp_path / "armed").touch()
        client.request("/early.py")
        wait_until((tmp_path / "written").exists, "the script's words")
        for _ in range(3):  # the worker's loop goes on meanwhile
            assert other.get("/sh.sh").status == 299
        (tmp_path / "released").touch()
        server.wait_for_line(r"/early.py\[\d+\]: early")
        assert server.log.count("early\n") + server.log.endswith("early") == 1


def test_a_helper_that_can_not_start(serve: Callable[..., ServerProcess], root: Path) -> None:
    """Warm is never a reason for a request to fail; the log says what is wrong."""
    server = serve(pool() + cgi_listener(root=root, warm=True, warm_modules=["no_such_module"]))
    with Client(server) as client:
        for _ in range(5):
            assert client.get("/where.py").status == 200
        server.wait_for_line("warm .*: no_such_module: ModuleNotFoundError")
        assert client.get("/where.py").status == 200


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_the_worker_ends(
    serve: Callable[..., ServerProcess], root: Path, how: signal.Signals
) -> None:
    """Stopped, or killed with -9: neither helper nor scripts."""
    server = serve(pool(graceful_timeout=0.1) + cgi_listener(root=root, warm=True))
    with warm(server) as client, Client(server) as other:
        helper = int(client.get("/where.py").body.split()[0])
        worker = server.worker_pids()[0]
        assert helper in children_of(worker)
        other.request("/stubborn.py")
        pids = [helper, *numbers(other)]
        os.kill(worker, how)
        wait_until(lambda: not any(map(is_alive, pids)), "the end of all")
    assert server.stop() == 0


def test_a_helper_that_is_stopped_is_replaced(server: ServerProcess, root: Path) -> None:
    """Also by one of its scripts, whose own response is whole; no request fails or waits for it."""
    write_programs(
        root,
        {
            "stops.py": f"#!{sys.executable}\nimport os, signal, time\n{HEAD}print('stopped', flush=True)\n"
            "os.kill(os.getppid(), signal.SIGSTOP)\n"
        },
    )
    for _ in range(2):
        after = len(server.lines)
        with warm(server) as client:
            assert client.get("/stops.py").body == b"stopped\n"
            for _ in range(5):
                assert client.get("/echo.py", method="POST", body=b"x").body == b"x"
        server.wait_for_line("the warm interpreter .* has been stopped by a signal", after=after)
    warm(server).sock.close()


def test_children_that_are_stopped_before_their_request_are_replaced(server: ServerProcess, root: Path) -> None:
    """A script stops all that wait: the requests that these get start cold, and hold no place for ever."""
    write_programs(
        root,
        {
            "stops_all.py": f"#!{sys.executable}\nimport os, signal\n{HEAD}helper = os.getppid()\n"
            "waiting = open(f'/proc/{helper}/task/{helper}/children').read().split()\n"
            "for pid in waiting:\n    if int(pid) != os.getpid(): os.kill(int(pid), signal.SIGSTOP)\n"
            "print(*waiting)\n"
        },
    )
    with warm(server) as client:
        pids = client.get("/stops_all.py").body.split()
        assert len(pids) > 1
        assert client.get("/echo.py", method="POST", body=b"x").body == b"x"
        wait_until(lambda: not any(is_alive(int(pid)) for pid in pids), "the end of those that were stopped")
