"""A service manager: socket activation, notifications, and the units of the examples."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from poolsrv.core import systemd
from tests.helpers.puppet import Client, config
from tests.helpers.server import TIMEOUT, ServerProcess, children_of, free_port, wait_until

Serve = Callable[..., ServerProcess]
UNITS = Path(__file__).parents[2] / "examples" / "systemd"


class Manager:
    """A stand-in for the service manager: the socket for notifications."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(TIMEOUT)
        self.news: list[str] = []

    def next(self) -> list[str]:
        """Return the assignments of the next message."""
        lines = self._socket.recv(65536).decode().split("\n")
        self.news += lines
        return lines

    def wait_for(self, assignment: str) -> list[str]:
        """Receive until a message has the assignment; return that message."""
        while assignment not in (message := self.next()):
            pass
        return message

    def wait_for_silence(self, seconds: float) -> None:
        """Receive until no message has come for so long."""
        self._socket.settimeout(seconds)
        try:
            while self.next():
                pass
        except TimeoutError:
            self._socket.settimeout(TIMEOUT)

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


def environment(**variables: object) -> tuple[str, ...]:
    return ("env", *(f"{name}={value}" for name, value in variables.items()))


# --- notifications


@pytest.mark.server
def test_the_manager_is_told_what_happens(serve: Serve, site: Path, manager: Manager) -> None:
    server = serve(config("workers = 1"), paths=(site,), prefix=environment(NOTIFY_SOCKET=manager.path))
    assert manager.wait_for("READY=1") == ["READY=1", "STATUS=serving, generation 1"]
    before = time.monotonic_ns() // 1000
    server.signal(signal.SIGHUP)
    reloading = manager.wait_for("RELOADING=1")
    moment = int(re.fullmatch(r"MONOTONIC_USEC=(\d+)", reloading[1]).group(1))  # type: ignore[union-attr]
    assert before <= moment <= time.monotonic_ns() // 1000
    assert manager.wait_for("READY=1") == ["READY=1", "STATUS=serving, generation 2"]
    sound = server.file.read_text()
    server.file.write_text("[pool]\nwokers = 1\n")
    server.signal(signal.SIGHUP)
    manager.wait_for("RELOADING=1")
    told = manager.wait_for("READY=1")
    assert re.match(r"STATUS=reload failed \(2 errors\): .*poolsrv\.toml: .*", told[1])
    server.file.write_text(sound)
    server.wait_for_line(" ready: ", count=2)  # the manager may be told before
    os.kill(server.dispatcher_pid, signal.SIGKILL)
    manager.wait_for("STATUS=the pool has crashed, another one is being started")
    manager.wait_for("READY=1")
    server.signal(signal.SIGTERM)
    assert manager.wait_for("STOPPING=1") == ["STOPPING=1", "STATUS=SIGTERM: stopping"]
    assert server.wait() == 0


@pytest.mark.server
def test_a_start_that_fails_is_never_said_to_serve(serve: Serve, manager: Manager) -> None:
    server = serve("", ready=False, prefix=environment(NOTIFY_SOCKET=manager.path))
    assert server.wait() == 2
    assert manager.news == []
    manager._socket.setblocking(False)
    with pytest.raises(BlockingIOError):
        manager.next()


@pytest.mark.server
def test_the_watchdog_is_fed_by_the_dispatcher(serve: Serve, site: Path, manager: Manager) -> None:
    server = serve(
        config("workers = 1"),
        paths=(site,),
        prefix=environment(NOTIFY_SOCKET=manager.path, WATCHDOG_USEC=300_000),
    )
    for _ in range(3):
        manager.wait_for("WATCHDOG=1")
    os.kill(server.dispatcher_pid, signal.SIGSTOP)  # the supervisor must not vouch for a dispatcher that hangs
    manager.wait_for_silence(0.5)
    os.kill(server.dispatcher_pid, signal.SIGCONT)
    manager.wait_for("WATCHDOG=1")
    assert server.stop() == 0


def test_a_watchdog_that_is_meant_for_another_process_is_not_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert systemd.Notifier().watchdog == 0
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("WATCHDOG_USEC", "300000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert systemd.Notifier().watchdog == 0.3


def test_an_abstract_socket_and_a_manager_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"poolsrv-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notifier = systemd.Notifier()
        assert "NOTIFY_SOCKET" not in os.environ  # programs must not notify in the server's name
        notifier.send("READY=1", "STATUS=two\nlines")
        assert sock.recv(100) == b"READY=1\nSTATUS=two lines"
    notifier.send("READY=1")


@pytest.mark.server
def test_programs_do_not_see_the_managers_variables(serve: Serve, site: Path, manager: Manager) -> None:
    names = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": 10_000_000, "LISTEN_FDNAMES": "x"}
    server = serve(config("workers = 1"), paths=(site,), prefix=environment(**names))
    for pid in (*children_of(server.pid), *server.worker_pids()):
        variables = Path(f"/proc/{pid}/environ").read_bytes()
        assert not any(name.encode() in variables for name in names)


# --- sockets

# As systemd does it: descriptors from 3 on, and the pid of the process that they are for.
ACTIVATE = """
import os, socket, sys
names = sys.argv[1].split(":")
for number, name in enumerate(names):
    if name == "file":
        fd = os.open("/dev/null", os.O_RDONLY)
    else:
        sock = socket.socket(socket.AF_UNIX if name == "local" else socket.AF_INET)
        sock.bind("local.sock" if name == "local" else ("127.0.0.1", 0))
        sock.listen()
        fd = sock.detach()
    os.dup2(fd, 20 + number)
for number in range(len(names)):
    os.dup2(20 + number, 3 + number)
    os.close(20 + number)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS=str(len(names)), LISTEN_FDNAMES=sys.argv[1])
os.execv(sys.argv[2], sys.argv[2:])
"""


def activate(names: str) -> tuple[str, ...]:
    return (sys.executable, "-c", ACTIVATE, names)


@pytest.mark.server
def test_sockets_from_the_manager_are_served_and_stay_over_reloads(serve: Serve, site: Path) -> None:
    text = config("workers = 1").replace("127.0.0.1:0", "systemd:web")
    server = serve(text, paths=(site,), prefix=activate("file:web:other:web:local"))
    first, second = server.addresses("puppet")
    assert first != second
    for _ in range(2):
        with Client(server) as client:
            assert client.ask("pid")
        server.reload()
    assert server.addresses("puppet") == [first, second]
    # A socket that no listener uses stays open too: a later config may use it.
    server.file.write_text(text.replace("systemd:web", "systemd:local"))
    server.reload()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(server.folder / "local.sock"))
        sock.sendall(b"slot\n")
        assert sock.recv(10) == b"0\n"
    server.file.write_text(text)
    server.reload()
    with Client(server) as client:
        assert client.ask("pid")
    assert server.stop() == 0
    assert (server.folder / "local.sock").exists()  # it belongs to the manager


@pytest.mark.server
def test_a_name_that_the_manager_has_no_socket_of(serve: Serve) -> None:
    text = '[listeners.a]\nbind = "systemd:nowhere"\nhandler = "echo"\n'
    server = serve(text, ready=False)
    assert server.wait() == 1
    assert server.lines == [
        "poolsrv: listeners.a: can't listen on systemd:nowhere: the service manager has passed no sockets: is there a"
        " .socket unit?"
    ]
    server = serve(text, ready=False, prefix=activate("web:local"))
    assert server.wait() == 1
    assert server.lines == [
        "poolsrv: listeners.a: can't listen on systemd:nowhere: the service manager has passed no socket of this name,"
        " but systemd:local or systemd:web"
    ]


@pytest.mark.server
def test_sockets_for_another_process_are_not_taken(serve: Serve) -> None:
    prefix = (*activate("web"), "/usr/bin/env", "LISTEN_PID=1")
    server = serve('[listeners.a]\nbind = "systemd:web"\nhandler = "echo"\n', ready=False, prefix=prefix)
    assert server.wait() == 1
    assert "has passed no sockets" in server.log


# Passes the descriptors 3 and 4, and another number of them.
CLAIM = """
import os, socket, sys
socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
for number, sock in enumerate(socks):
    os.dup2(sock.fileno(), 20 + number)
os.closerange(3, 20)
for number in range(2):
    os.dup2(20 + number, 3 + number)
os.closerange(20, 30)
os.environ.update(LISTEN_PID=sys.argv[2].replace("mine", str(os.getpid())), LISTEN_FDS=sys.argv[1])
os.environ["LISTEN_FDNAMES"] = "web:web"
os.execv(sys.argv[3], sys.argv[3:])
"""


def claim(number: str, pid: str = "mine") -> tuple[str, ...]:
    return (sys.executable, "-c", CLAIM, number, pid)


# All that the supervisor does with the sockets, without the rest of it: a fork for each number and pid.
TAKE = """
import json, os, sys
from poolsrv.core import systemd
for number, pid in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        os.environ.update(LISTEN_FDS=number, LISTEN_PID=pid.replace("mine", str(os.getpid())))
        try:
            print(systemd.take_sockets(), flush=True)
        except ValueError as error:
            print("poolsrv:", error, flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


def taken(*cases: tuple[str, str]) -> list[str]:
    """What is taken of the descriptors 3 and 4 for each number and pid, or why nothing is."""
    command = (*claim("2"), sys.executable, "-c", TAKE, json.dumps(cases))
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=TIMEOUT).stdout.splitlines()


def too_few(number: str) -> str:
    return (
        f"poolsrv: LISTEN_FDS: {number[:18]} sockets are to have been passed, as descriptors from 3 on, and of these"
        " there are: 3, 4"
    )


@pytest.mark.server
def test_a_server_that_has_been_passed_fewer_sockets_does_not_start(serve: Serve) -> None:
    server = serve('[listeners.a]\nbind = "systemd:web"\nhandler = "echo"\n', ready=False, prefix=claim("3"))
    assert server.wait() == 1
    assert server.lines == [too_few("3")]


def test_more_sockets_than_have_been_passed() -> None:
    numbers = ["3", "5", "9", "40", "99999999", "9" * 30, "9" * 5000]
    assert taken(*((number, "mine") for number in numbers)) == [too_few(number) for number in numbers]


NO_NUMBER = r"poolsrv: LISTEN_FDS: got .*, expected how many sockets have been passed"


@pytest.mark.server
def test_a_server_with_a_number_of_sockets_that_is_not_a_number_does_not_start(serve: Serve) -> None:
    server = serve('[listeners.a]\nbind = "127.0.0.1:0"\nhandler = "echo"\n', ready=False, prefix=claim("two"))
    assert server.wait() == 1
    assert re.fullmatch(NO_NUMBER, server.log)


def test_a_number_of_sockets_that_is_not_a_number() -> None:
    numbers = ["-1", "two", "2 ", "\u0662", "0x2", "1.0"]
    told = taken(*((number, "mine") for number in numbers))
    assert len(told) == len(numbers)
    assert [line for line in told if not re.fullmatch(NO_NUMBER, line)] == []


def test_variables_without_sockets_or_for_another_process() -> None:
    cases = [("5", "1"), ("5", "-1"), ("5", "me"), ("5", ""), ("", "mine"), ("0", "mine")]
    assert taken(*cases) == ["[]"] * len(cases)


def test_what_has_been_passed_is_taken() -> None:
    (told,) = taken(("2", "mine"))
    assert told.count("('web', <socket.socket") == 2


@pytest.mark.server
@pytest.mark.parametrize(("number", "pid"), [("5", "1"), ("0", "mine")])
def test_a_server_with_variables_that_are_not_for_it(serve: Serve, site: Path, number: str, pid: str) -> None:
    """The server ignores the variables, whatever numbers its own descriptors have."""
    server = serve(config("workers = 1"), paths=(site,), prefix=claim(number, pid))
    with Client(server) as client:
        assert client.ask("slot") == "0"
    server.reload()
    assert server.stop() == 0


@pytest.mark.server
def test_what_is_passed_beyond_the_number_is_not_touched(serve: Serve) -> None:
    server = serve('[listeners.a]\nbind = "systemd:web"\nhandler = "echo"\n', prefix=claim("1"))
    assert len(server.addresses("a")) == 1
    assert server.exchange("a", b"hello") == b"hello"
    assert os.readlink(f"/proc/{server.pid}/fd/4").startswith("socket:")


@pytest.mark.server
def test_what_is_passed_and_is_no_listening_socket_is_closed_and_told(serve: Serve) -> None:
    text = '[listeners.a]\nbind = "systemd:web"\nhandler = "echo"\n'
    server = serve(text, prefix=activate("file:web"))
    server.wait_for_line(r"descriptor 3 of the service manager \(file\) is no listening stream socket: closed")
    assert server.exchange("a", b"hello") == b"hello"


@pytest.mark.parametrize("number", ["9" * 400, "9" * 5000, "-1", "x", ""])
def test_a_watchdog_with_an_unusable_time(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    monkeypatch.setenv("WATCHDOG_USEC", number)
    assert systemd.Notifier().watchdog == 0


@pytest.mark.server
def test_with_the_real_program_that_activates(serve: Serve, site: Path) -> None:
    program = shutil.which("systemd-socket-activate")
    assert program is not None, "needs the package systemd"
    port = free_port()
    prefix = (program, "-l", f"127.0.0.1:{port}", "--fdname=web", "--setenv=PYTHONPATH", "--")
    server = serve(
        config("workers = 1").replace("127.0.0.1:0", "systemd:web"), paths=(site,), prefix=prefix, ready=False
    )

    def connects() -> socket.socket | None:
        try:
            return socket.create_connection(("127.0.0.1", port), TIMEOUT)
        except ConnectionRefusedError:
            return None

    wait_until(lambda: "Listening on" in server.log, "a socket")
    sock = connects()  # this starts it
    assert sock is not None
    with sock:
        sock.sendall(b"slot\n")
        assert sock.recv(10) == b"0\n"
    assert server.addresses("puppet") == [f"127.0.0.1:{port}"]
    assert server.stop() == 0


# --- the units


def test_the_template_differs_only_in_names() -> None:
    unit, template = ((UNITS / name).read_text() for name in ("poolsrv.service", "poolsrv@.service"))
    settings = (
        template[template.index("[Unit]") :].replace("/%i.toml", "/poolsrv.toml").replace("poolsrv-%i", "poolsrv")
    )
    assert settings.replace("poolsrv, %i", "poolsrv") == unit[unit.index("[Unit]") :]


@pytest.mark.parametrize("folder", ["systemd", "haproxy"])
def test_the_unit_lets_a_server_with_the_example_config_finish(folder: str) -> None:
    pool = tomllib.loads((UNITS.parent / folder / "poolsrv.toml").read_text())["pool"]
    limit = re.search(r"^TimeoutStopSec=(\d+)$", (UNITS / "poolsrv.service").read_text(), re.MULTILINE)
    assert limit
    assert int(limit[1]) > pool.get("drain_notice", 0) + pool["graceful_timeout"] + 10


def test_the_units_are_sound(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    assert program is not None, "needs the package systemd"
    for unit in UNITS.iterdir():
        text = unit.read_text().replace("/opt/poolsrv/bin/poolsrv", f"{Path(sys.executable).parent}/poolsrv")
        (tmp_path / unit.name).write_text(text)
    files = [str(tmp_path / name) for name in ("poolsrv.service", "poolsrv.socket")]
    verified = subprocess.run([program, "verify", *files], capture_output=True, text=True)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    drop_in = tmp_path / "poolsrv@hello.socket.d"
    drop_in.mkdir()
    (drop_in / "listen.conf").write_text("[Socket]\nListenStream=8080\n")
    instances = [str(tmp_path / f"poolsrv@hello.{kind}") for kind in ("service", "socket")]
    verified = subprocess.run([program, "verify", *instances], capture_output=True, text=True)
    assert (verified.returncode, verified.stdout, verified.stderr) == (0, "", "")
    rated = subprocess.run([program, "security", "--offline=true", files[0]], capture_output=True, text=True)
    level = re.search(r"Overall exposure level for poolsrv\.service: (\S+) OK", rated.stdout)
    assert level is not None, rated.stdout
    assert float(level[1]) < 2.5
