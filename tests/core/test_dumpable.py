"""Programs can't look into the processes that have started them, and everything else works as before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.http import Client, cgi_listener, write_programs
from tests.helpers.server import ServerProcess, children_of, is_alive, wait_until
from tests.helpers.strangers import ROOT, STRANGER, open_tmp

Serve = Callable[..., ServerProcess]
__all__ = ["open_tmp"]
pytestmark = [pytest.mark.server, ROOT]

# An ordinary user that may enter the folder that the interpreter is in. What programs can read beyond their own files
# does not help them: looking into a process takes another capability.
PREFIX = (
    "setpriv", f"--reuid={STRANGER}", f"--regid={STRANGER}", "--clear-groups", "--no-new-privs",
    "--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search", "--bounding-set=-all,+dac_read_search",
)  # fmt: skip

# What the program can do to the process that has started it, and to those above it up to the supervisor.
PEEK = """
printf 'Content-Type: text/plain\\n\\n'
look() {
    head -c 1 "$2/environ" >/dev/null 2>&1 && echo "$1: environ"
    head -c 1 "$2/maps" >/dev/null 2>&1 && [ -n "$(head -c 1 $2/maps 2>/dev/null)" ] && echo "$1: maps"
    ( exec 3<"$2/mem" ) 2>/dev/null && echo "$1: mem to read"
    ( exec 3>>"$2/mem" ) 2>/dev/null && echo "$1: mem to write"
    readlink "$2/fd/0" >/dev/null 2>&1 && echo "$1: descriptors"
    readlink "$2/exe" >/dev/null 2>&1 && echo "$1: exe"
}
look itself /proc/self
pid=$PPID
for name in worker dispatcher supervisor; do
    look $name /proc/$pid
    pid=$(sed -n 's/^PPid:.//p' /proc/$pid/status)
    echo "$name seen"
done
"""

WARM = f"""#!{sys.executable}
import os
print("Content-Type: text/plain\\n")
pid = os.getppid()
helper = open(f"/proc/{{pid}}/cmdline").read()
print("warm" if "warm/helper.py" in helper else "not warm")
for name in ("environ", "maps", "mem"):
    try:
        with open(f"/proc/{{pid}}/{{name}}", "rb") as file:
            file.seek(0)
            file.read(1) if name != "mem" else None
        print(name, "is read")
    except OSError:
        pass
try:
    os.close(os.open(f"/proc/{{pid}}/mem", os.O_WRONLY))
    print("mem is written")
except OSError:
    pass
print("itself", os.stat("/proc/self/environ").st_uid, len(open("/proc/self/environ").read()) > 0)
import ctypes
print("ctypes", ctypes.CDLL(None).getpid() == os.getpid())
"""


def owner(pid: int) -> int:
    """The owner of /proc/PID: root if the process is not dumpable (proc(5))."""
    return Path(f"/proc/{pid}/environ").stat().st_uid


def test_a_program_can_not_look_into_the_servers_processes(serve: Serve, open_tmp: Path) -> None:
    root = write_programs(open_tmp, {"peek.sh": PEEK})
    server = serve("[pool]\nworkers = 1\n" + cgi_listener(root=root), prefix=PREFIX)
    for _ in range(2):
        pids = (server.pid, server.dispatcher_pid, *server.worker_pids())
        assert [owner(pid) for pid in pids] == [0, 0, 0]
        with Client(server) as client:
            lines = client.get("/peek.sh").body.decode().splitlines()
        own = [line for line in lines if line.startswith("itself")]
        assert "itself: environ" in own  # an exec has made the program dumpable
        assert "itself: mem to write" in own
        assert [line for line in lines if line not in own] == ["worker seen", "dispatcher seen", "supervisor seen"]
        server.reload()  # the next pool is a new program
    assert server.stop() == 0


def test_a_warm_script_can_not_look_into_its_helper(serve: Serve, open_tmp: Path) -> None:
    root = write_programs(open_tmp, {"warm.py": WARM})
    server = serve("[pool]\nworkers = 1\n" + cgi_listener(root=root, warm=True), prefix=PREFIX)
    with Client(server) as client:

        def answer() -> list[str]:
            return client.get("/warm.py").body.decode().splitlines()

        wait_until(lambda: answer()[0] == "warm", "a warm interpreter")
        for _ in range(2):
            assert answer() == ["warm", f"itself {STRANGER} True", "ctypes True"]
    assert server.stop() == 0


def test_what_the_server_does_with_its_own_processes_goes_on(serve: Serve, open_tmp: Path) -> None:
    """Status, limits of programs, a killed worker and its programs, a killed dispatcher."""
    root = write_programs(open_tmp, {"sleep.sh": "echo $$ >>pids; printf 'Content-Type: text/plain\\n\\n'; sleep 1000"})
    root.chmod(0o777)
    text = f'[pool]\nworkers = 1\ncontrol = "{root}/ctl"\n'
    text += cgi_listener(root=root, limits={"open_files": 50})
    server = serve(text, prefix=PREFIX)
    with Client(server) as client:
        client.send(b"GET /sleep.sh HTTP/1.1\r\nHost: a\r\n\r\n")
        wait_until((root / "pids").exists, "a program")
        wait_until((root / "pids").read_text, "its pid")
        program = int((root / "pids").read_text())
        assert owner(program) == STRANGER
        limits = Path(f"/proc/{program}/limits")
        wait_until(lambda: "Max open files            50                   50" in limits.read_text(), "its limits")
        asked = [sys.executable, "-m", "poolsrv", "status", "--json", "--config", str(server.file)]
        told = json.loads(subprocess.check_output(asked))
        assert [row["pid"] for row in told["programs"]] == [program]
        assert told["workers"][0]["memory"] > 0
        victim = server.worker_pids()[0]
        os.kill(victim, 9)
        wait_until(lambda: not is_alive(program), "the end of its programs")
    server.wait_for_line(r"worker 0 \(pid \d+\) serves", count=2)
    stuck = server.worker_pids()[0]
    assert owner(stuck) == 0
    os.kill(server.dispatcher_pid, 9)
    server.wait_for_line(r" ready: ", count=2)
    wait_until(lambda: not is_alive(stuck), "the end of a worker without its dispatcher")
    assert server.stop() == 0
    assert children_of(server.pid) == []


@pytest.mark.parametrize(("size", "expected"), [(0, 0), (1 << 20, STRANGER)])
def test_core_dumps_are_only_made_on_request(serve: Serve, size: int, expected: int) -> None:
    text = '[listeners.a]\nbind = "127.0.0.1:0"\nhandler = "echo"\n'
    server = serve(f"[pool]\nworkers = 1\n[limits]\ncore_size = {size}\n{text}", prefix=PREFIX)
    assert [owner(pid) for pid in (server.dispatcher_pid, *server.worker_pids())] == [expected] * 2
    assert owner(server.pid) == 0
    assert ("limits.core_size: for the sake of core dumps" in server.log) is (size > 0)
    server.reload()
    assert server.exchange("a", b"hello") == b"hello"
    assert server.stop() == 0


def test_with_a_user_of_its_own_the_pool_is_as_private(serve: Serve, open_tmp: Path) -> None:
    root = write_programs(open_tmp, {"peek.sh": PEEK})
    text = f"[pool]\nworkers = 1\nuser = {STRANGER}\ngroup = {STRANGER}\n" + cgi_listener(root=root)
    server = serve(text)
    with Client(server) as client:
        lines = client.get("/peek.sh").body.decode().splitlines()
    assert [line for line in lines if not line.startswith("itself")] == [
        "worker seen", "dispatcher seen", "supervisor seen",
    ]  # fmt: skip
