"""The steps of the pages in a fresh Debian, under a systemd of its own. ``make test-debian`` makes the tree."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.helpers.server import TIMEOUT, children_of, wait_until
from tests.helpers.server_mark import server_starts

ROOT = Path(__file__).parents[2]
TREE = os.environ.get("POOLSRV_DEBIAN_TREE", "")

pytestmark = [pytest.mark.server, pytest.mark.skipif(not TREE, reason="`make test-debian` runs it")]

CLIENT = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1])), 30) as sock:
    sock.sendall(sys.argv[2].encode())
    sock.shutdown(socket.SHUT_WR)
    sys.stdout.write(sock.makefile("rb").read().decode())
"""


def steps(section: str, block: int) -> str:
    """A block of commands of docs/operations.md."""
    page = (ROOT / "docs" / "operations.md").read_text()
    text = re.split(r"^## ", page[page.index(f"\n## {section}\n") + 1 :], maxsplit=2, flags=re.MULTILINE)[1]
    blocks: list[str] = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return blocks[block]


class Machine:
    """A container with systemd as its process 1, whose changes are gone at its end."""

    def __init__(self, wheels: Path) -> None:
        binds = (f"--bind-ro={ROOT}:/src", f"--bind-ro={wheels}:/wheels")
        command = ["systemd-nspawn", "--quiet", f"--directory={TREE}", "--volatile=overlay", "--private-network"]
        command += ["--register=no", "--keep-unit", "--console=pipe", *binds, "--boot"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            wait_until(self._is_up, "systemd")
        except BaseException:
            self.close()
            raise

    def _is_up(self) -> bool:
        """Whether systemd has started. Its process changes before that: it is the child of a child first."""
        state = self._try("systemctl is-system-running --wait").stdout.strip()
        return state in ("running", "degraded")

    def _try(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = ["PATH=/usr/sbin:/usr/bin", "HOME=/root", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/wheels"]
        leader = (children_of(self._process.pid) or [0])[0]
        command = ["nsenter", f"--target={leader}", "--all", "env", "-i", *environment, "SYSTEMD_PAGER="]
        return subprocess.run(
            [*command, "bash", "-ec", f"cd /src\n{script}", "bash", *arguments],
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10 * TIMEOUT,
        )  # fmt: skip

    def run(self, script: str, *arguments: str, status: int = 0) -> str:
        """Run a script as root, and return its output."""
        done = self._try(script, *arguments)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    def ask(self, port: int, text: str = "") -> str:
        """Send something to a port, and receive all that comes."""
        return self.run('python3 -c "$1" "$2" "$3"', CLIENT, str(port), text)

    def close(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    wheels = tmp_path_factory.mktemp("wheels")
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--wheel-dir", str(wheels), str(ROOT), *needed]
    subprocess.run(pip, check=True, capture_output=True)
    server_starts()
    with closing(Machine(wheels)) as running:
        yield running


def test_the_steps_of_the_page(machine: Machine) -> None:
    """From nothing to serving; a reload, and one that fails; the socket unit; the stop."""
    machine.run(steps("Under systemd", 0))
    assert machine.ask(7007, "hello\n") == "hello\n"
    shown = machine.run(steps("Under systemd", 1))
    assert 'Status: "serving, generation 1"' in shown
    assert "ready: hello on 127.0.0.1:7007" in shown
    status = "/opt/poolsrv/bin/poolsrv status --config /etc/poolsrv/poolsrv.toml"
    assert "generation 2" in machine.run(status)
    assert machine.run("stat -c %U /run/poolsrv/poolsrv.pid") != "root\n"
    machine.run("echo max_conections = 1 >> /etc/poolsrv/poolsrv.toml; systemctl reload poolsrv", status=1)
    assert "unknown key (did you mean" in machine.run("journalctl -u poolsrv")
    assert machine.ask(7007, "hello\n") == "hello\n"
    machine.run("cp examples/systemd/poolsrv.toml /etc/poolsrv/; systemctl reload poolsrv")
    machine.run(
        "sed -i 's/^bind = .*/bind = \"systemd:hello\"/' /etc/poolsrv/poolsrv.toml; systemctl stop poolsrv\n"
        "cp examples/systemd/poolsrv.socket /etc/systemd/system/\n"
        "systemctl daemon-reload; systemctl enable --now poolsrv.socket"
    )
    machine.run("systemctl is-active poolsrv.service", status=3)
    assert machine.ask(7007, "again\n") == "again\n"
    machine.run("systemctl is-active poolsrv.service")
    machine.run("systemctl stop poolsrv.socket poolsrv.service")
    assert machine.run("systemctl show -p Result poolsrv.service") == "Result=success\n"


# Clients that connect again and again, until there is a file; it gets how often each outcome has come.
CONNECTS = """
import collections, json, pathlib, socket, threading, time
enough = pathlib.Path("/root/enough")
outcomes = collections.Counter()
def connect():
    while not enough.exists():
        try:
            with socket.create_connection(("127.0.0.1", 8080), 30) as sock:
                sock.sendall(b"hello")
                sock.shutdown(socket.SHUT_WR)
                outcomes["answered" if sock.makefile("rb").read() == b"hello" else "cut short"] += 1
        except OSError as error:
            outcomes[type(error).__name__] += 1
        time.sleep(0.005)
threads = [threading.Thread(target=connect) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
enough.write_text(json.dumps(outcomes))
"""


def test_the_sockets_of_a_template_outlive_its_server(machine: Machine) -> None:
    """Under a load of connects: stopped and started by systemd, and started by a client."""
    machine.run("test -x /opt/poolsrv/bin/poolsrv || (python3 -m venv /opt/poolsrv; /opt/poolsrv/bin/pip install .)")
    machine.run("mkdir -p /etc/poolsrv; systemctl stop poolsrv.socket poolsrv.service || true")
    machine.run(steps("Under systemd", 2))
    assert machine.ask(7008, "hello\n") == "hello\n"
    machine.run(steps("Under systemd", 3))
    machine.run('systemd-run --unit=load --property=Type=exec python3 -c "$1"', CONNECTS)
    for _ in range(5):
        # More than five starts in ten seconds would be too many for systemd.
        machine.run("systemctl reset-failed poolsrv@www; systemctl restart poolsrv@www")
        assert machine.ask(8080, "hello\n") == "hello\n"
    machine.run("systemctl reset-failed poolsrv@www; systemctl stop poolsrv@www")
    wait_until(lambda: machine.run("systemctl is-active poolsrv@www || true") == "active\n", "a start by a client")
    machine.run("touch /root/enough; while systemctl --quiet is-active load; do sleep 0.1; done")
    outcomes = json.loads(machine.run("cat /root/enough"))
    assert list(outcomes) == ["answered"]
    assert outcomes["answered"] > 100
    machine.run("systemctl stop poolsrv@www.socket poolsrv@www")


def test_servers_of_the_template_run_beside_that_of_the_service(machine: Machine) -> None:
    """Each has directories of its own, which the stop of another leaves alone."""
    machine.run("test -x /opt/poolsrv/bin/poolsrv || (python3 -m venv /opt/poolsrv; /opt/poolsrv/bin/pip install .)")
    machine.run("systemctl disable --now poolsrv@www.socket poolsrv.socket poolsrv@www poolsrv 2>&1 || true")
    machine.run("mkdir -p /etc/poolsrv; cp examples/systemd/poolsrv.toml /etc/poolsrv/")
    machine.run("cp examples/systemd/poolsrv.service /etc/systemd/system/; systemctl daemon-reload")
    machine.run("systemctl start poolsrv")
    machine.run(steps("Under systemd", 2))
    for stopped, other, port in (("poolsrv", "www", 7008), ("poolsrv@www", "poolsrv", 7007)):
        machine.run(f"systemctl restart poolsrv poolsrv@www; systemctl stop {stopped}")
        assert machine.ask(port, "hello\n") == "hello\n"
        machine.run(f"/opt/poolsrv/bin/poolsrv status --config /etc/poolsrv/{other}.toml")
    machine.run("systemctl stop poolsrv poolsrv@www")


UNIT = """\
[Service]
StandardInput=socket
ExecStart=-/bin/sh -c 'read line; echo "$$line $${GREETING} $$(umask) $$(nice)"; echo err >&2; printenv REMOTE_ADDR'
Environment="GREETING=hello you"
UMask=0027
Nice=5
"""


def test_a_unit_with_accept_has_moved(machine: Machine) -> None:
    """The same unit, served by systemd and then by poolsrv."""
    machine.run("test -x /opt/poolsrv/bin/poolsrv || (python3 -m venv /opt/poolsrv; /opt/poolsrv/bin/pip install .)")
    socket = "[Socket]\nListenStream=127.0.0.1:7099\nAccept=yes\n"
    folder = "/etc/systemd/system"
    machine.run(f'printf %s "$1" > {folder}/old.socket; printf %s "$2" > \'{folder}/old@.service\'', socket, UNIT)
    machine.run("systemctl daemon-reload; systemctl start old.socket")
    before = machine.ask(7099, "line\n")
    assert before == "line hello you 0027 5\nerr\n127.0.0.1\n"
    machine.run(f"systemctl stop old.socket; /opt/poolsrv/bin/poolsrv import {folder}/old.socket -o /root/new.toml")
    machine.run(
        "systemd-run --unit=new --property=Type=notify /opt/poolsrv/bin/poolsrv --config /root/new.toml", status=0
    )
    assert machine.ask(7099, "line\n") == before
    machine.run("systemctl stop new")


def instructions() -> list[tuple[str, str]]:
    """The lines of the Containerfile: a word, and the rest."""
    lines = (ROOT / "examples" / "container" / "Containerfile").read_text().splitlines()
    words = (line.partition(" ") for line in lines if line and not line.startswith("#"))
    return [(word, rest) for word, _, rest in words]


def test_the_steps_of_the_containerfile(machine: Machine) -> None:
    """Each RUN and COPY; then the entry point as process 1, as its user, with nothing to write but the volume."""
    settings = {word: rest for word, rest in instructions() if word in ("USER", "ENTRYPOINT", "VOLUME", "HEALTHCHECK")}
    for word, rest in instructions():
        if word == "RUN":
            machine.run(rest.replace("python3 -m venv", "python3 -m venv --clear"))
        elif word == "COPY" and rest.startswith("examples/"):
            machine.run("install -D " + rest)
    user, _, group = settings["USER"].partition(":")
    become = f"setpriv --reuid={user} --regid={group} --clear-groups"
    environment = next(rest for word, rest in instructions() if word == "ENV")
    (program,) = json.loads(settings["ENTRYPOINT"])
    check = " ".join(json.loads(settings["HEALTHCHECK"].partition("CMD ")[2]))
    volume = settings["VOLUME"]
    machine.run(
        f"cat > /root/start <<'END'\nmount --bind {volume} {volume}\nmount -o remount,bind,ro /\nexport {environment}\n"
        f"exec {become} {program}\nEND\n"
        "systemd-run --unit=one unshare --pid --fork --mount --mount-proc --kill-child bash -e /root/start\n"
    )
    within = "one=$(cat /proc/$(systemctl show -P MainPID one)/task/*/children)\n"
    enter = f"{within}nsenter --target=$one --pid --mount {become} env {environment}"
    wait_until(lambda: "ready: hello on [::]:7007" in machine.run("journalctl -u one"), "the container's server")
    assert machine.ask(7007, "hello\n") == "hello\n"
    assert machine.run(f"{enter} {check}").startswith("well: ")
    machine.run(f"{enter} sh -c 'touch /opt/new'", status=1)
    machine.run(f"{within}kill -TERM $one")
    wait_until(lambda: "Deactivated successfully" in machine.run("journalctl -u one"), "the stop")
