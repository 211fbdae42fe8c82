"""Three nodes behind a real HAProxy, with the files of the example as they are. ``make test-nodes`` runs this.

Each node is a machine with a network of its own, on which poolsrv is installed from a wheel. wrk sends requests, and a
client that knows what has become of each.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

import pytest

from tests.helpers import wheels
from tests.helpers.haproxy import Haproxy
from tests.helpers.http import write_programs
from tests.helpers.machines import Machine, require_namespaces
from tests.helpers.server import TIMEOUT, receive_all, wait_until
from tests.helpers.server_mark import server_starts
from tests.helpers.tagged_load import TaggedLoad

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "haproxy"
SCRIPT: Final = EXAMPLE / "rolling_upgrade.py"
NODES: Final = {"a": "10.0.0.11", "b": "10.0.0.12", "c": "10.0.0.13"}
BALANCER: Final = "10.0.0.2"
# Notes each request, and answers after a moment with the name of the node.
WORK: Final = (
    'echo "$HTTP_X_REQUEST_ID" >> /srv/begun; sleep 0.1; printf "Content-Type: text/plain\\n\\n"; cat /srv/name'
)
# Connections that say nothing.
HOLD: Final = """
import socket, time
kept = [socket.create_connection(("10.0.0.11", 8080)) for _ in range(5)]
print("held", flush=True)
time.sleep(600)
"""

pytestmark = [
    pytest.mark.server,
    pytest.mark.long,
    pytest.mark.skipif("POOLSRV_NODES" not in os.environ, reason="`make test-nodes` runs it"),
]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the example's plugin."""
    folder = tmp_path_factory.mktemp("agent")
    shutil.copytree(EXAMPLE / "poolsrv-agent", folder / "sources", ignore=shutil.ignore_patterns("__pycache__"))
    return wheels.build_wheel(folder / "sources", folder / "built")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheel: Path, agent: Path) -> Path:
    """An environment with both, to be copied to each node."""
    require_namespaces()
    server_starts()
    folder = tmp_path_factory.mktemp("installed") / "venv"
    wheels.environment(folder, wheel, agent)
    return folder


def later(folder: Path, number: str, spoil: Callable[[Path], object] = lambda sources: None) -> Path:
    """The wheel of a later version."""
    sources = wheels.copy_of_the_sources(folder / f"sources-{number}")
    project = sources / "pyproject.toml"
    project.write_text(re.sub(r'(?m)^version = ".*"', f'version = "{number}"', project.read_text()))
    spoil(sources)
    return wheels.build_wheel(sources, folder / f"built-{number}")


class Cluster:
    """The machines, and HAProxy on one of them."""

    def __init__(self, folder: Path, installed: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()
        try:
            self.balancer = self._machine("balancer", f"{BALANCER}/24", None)
            self.nodes = {name: self._node(name, address, installed) for name, address in NODES.items()}
            self._write_scripts()
            text = (EXAMPLE / "haproxy.cfg").read_text().replace("local0 notice", "local0 info")
            log = "    capture request header X-Request-Id len 60\n"
            log += "    log-format 'request %[capture.req.hdr(0)] %s %ST'\n"
            text = text.replace("    default_backend", f"{log}    default_backend")
            prefix = self.balancer.command(spaces=("net", "mount"))
            self.haproxy = Haproxy(folder, text, [], prefix)
            self._stack.callback(self.haproxy.close)
            wait_until(self._admin.exists, "HAProxy")
            wait_until(lambda: all(one["status"].startswith("DOWN") for one in self.states().values()), "no node")
        except BaseException:
            self.close()
            raise

    def _machine(self, name: str, address: str, bridge: Machine | None) -> Machine:
        folder = self._folder / name
        folder.mkdir()
        machine = Machine(name, folder, address, bridge)
        self._stack.callback(machine.close)
        return machine

    def _node(self, name: str, address: str, installed: Path) -> Machine:
        machine = self._machine(name, f"{address}/24", self.balancer)
        shutil.copytree(installed, machine.folder / "venv", symlinks=True)
        write_programs(machine.folder / "cgi-bin", {"work.sh": WORK})
        (machine.folder / "name").write_text(f"{name}\n")
        shutil.copy(EXAMPLE / "poolsrv.toml", machine.folder)
        return machine

    def _write_scripts(self) -> None:
        """What starts a server on a node, what upgrades it, and what runs something there, as ssh would."""
        poolsrv = "/srv/venv/bin/python -m poolsrv"
        pip = f"{sys.executable} -m pip --python /srv/venv/bin/python install --quiet --no-deps --no-index"
        start = f"exec setsid --fork {poolsrv} --config /srv/poolsrv.toml >>/srv/log 2>&1 </dev/null"
        upgrade = f"set -e; {poolsrv} stop --config /srv/poolsrv.toml; {pip} $1; {start}"
        at = "\n".join(f"[ $1 != {name} ] || pid={machine.pid}" for name, machine in self.nodes.items())
        on = f'{at}\nshift; exec nsenter --target=$pid --net --pid --mount -- "$@"'
        write_programs(self._folder, {"start": start, "upgrade": upgrade, "on": on})

    @property
    def _admin(self) -> Path:
        """HAProxy's runtime API."""
        return self.balancer.path("/run/haproxy/admin.sock")

    def start(self, *names: str) -> None:
        """Start the servers of nodes, and wait until HAProxy sends them requests."""
        for name in names:
            self.nodes[name].run(self._folder / "start")
        for name in names:
            wait_until(lambda name=name: self.states()[name]["status"] == "UP", f"{name} gets requests")  # type: ignore[misc]

    def states(self) -> dict[str, dict[str, str]]:
        """What HAProxy says of each node."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT)
            sock.connect(str(self._admin))
            sock.sendall(b"show stat\n")
            lines = receive_all(sock).decode().splitlines()
        names = lines[0].removeprefix("# ").split(",")
        rows = [dict(zip(names, line.split(","), strict=False)) for line in lines[1:] if line]
        return {row["svname"]: row for row in rows if row["pxname"] == "poolsrv" and row["svname"] in NODES}

    def upgrade(self, wheel: Path, version: str, timeout: int) -> subprocess.CompletedProcess[str]:
        """Run the script of the example on the balancer."""
        nodes = [f"{name}={address}" for name, address in NODES.items()]
        options = ["--version", version, "--timeout", str(timeout), "--haproxy", str(self._admin)]
        command = [str(self._folder / "on"), "{name}", str(self._folder / "upgrade"), str(wheel)]
        line = self.balancer.command(sys.executable, SCRIPT, *nodes, *options, "--", *command, spaces=("net",))
        return subprocess.run(line, capture_output=True, text=True, timeout=20 * TIMEOUT)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def cluster(tmp_path: Path, installed: Path) -> Iterator[Cluster]:
    with closing(Cluster(tmp_path, installed)) as cluster:
        yield cluster


class Wrk:
    """A client that was not written for this project."""

    def __init__(self, machine: Machine) -> None:
        url = f"http://{BALANCER}/work.sh"
        command = machine.command("wrk", "-t1", "-c6", "-d600s", "--timeout", "30s", url, spaces=("net",))
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def end(self) -> tuple[int, str]:
        """End it; return the number of its requests, and what it says of failures."""
        self._process.send_signal(signal.SIGINT)
        output, _ = self._process.communicate(timeout=TIMEOUT)
        found = re.search(r"(\d+) requests in", output)
        assert found, output
        return int(found[1]), "".join(re.findall(r"Socket errors.*\n|Non-2xx.*\n", output))

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


def test_a_new_node_takes_its_share_and_all_are_upgraded(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start("a", "b")
    with closing(Wrk(cluster.balancer)) as wrk, closing(TaggedLoad(cluster.balancer, BALANCER, "/work.sh")) as load:
        load.wait_for(50)
        assert load.shares().keys() == {"a", "b"}
        cluster.start("c")
        before = load.wait_for(300)
        shares = load.shares(before)
        assert all(75 < shares[name] < 150 for name in NODES), shares
        done = cluster.upgrade(later(tmp_path, "99.1.0"), "99.1.0", 120)
        assert done.returncode == 0, done.stdout + done.stderr
        assert done.stdout.count("serves, version 99.1.0") == 3
        before = load.wait_for(300)
        shares = load.shares(before)
        assert all(75 < shares[name] < 150 for name in NODES), shares
        requests, failures = wrk.end()
    assert load.failures == []
    assert failures == ""
    assert requests > 100
    log = cluster.haproxy.log
    # Before its first start, and while it was upgraded.
    assert all(len(re.findall(f"Server poolsrv/{name} is DOWN", log)) > 1 for name in NODES)
    for name in NODES:
        assert "ERROR" not in (cluster.nodes[name].folder / "log").read_text()


def test_a_node_that_is_killed_loses_its_own_requests_alone(cluster: Cluster) -> None:
    cluster.start(*NODES)
    with closing(Wrk(cluster.balancer)) as wrk, closing(TaggedLoad(cluster.balancer, BALANCER, "/work.sh")) as load:
        load.wait_for(100)
        cluster.nodes["b"].kill()
        killed_at = time.monotonic()
        load.wait_for(200)
        wait_until(lambda: cluster.states()["b"]["status"].startswith("DOWN"), "the end of b")
        before = load.wait_for(200)
        assert load.shares(before).keys() == {"a", "c"}
        requests, failures = wrk.end()
    # At most one for each client: those that the node had, and none of a later moment. Most GET go to another node.
    assert sum(map(int, re.findall(r" (\d+)(?=[,\n])", failures))) <= 6, failures
    assert len(load.failures) <= 8
    assert all(each.began < killed_at for each in load.failures)
    begun = {name: (cluster.nodes[name].folder / "begun").read_text().split() for name in NODES}
    served = dict(re.findall(r"request (\S+) (\S+) \S+$", cluster.haproxy.log, re.MULTILINE))
    for each in load.failures:
        if each.method == "POST":
            # HAProxy logs nothing if an idle connection was used again, and is gone: it closes that of the client.
            assert served.get(each.name, "b") == "b"
            assert each.name not in begun["a"] + begun["c"]
    posts = [name for names in begun.values() for name in names if name.startswith("post-")]
    assert len(posts) == len(set(posts)), "a POST was done twice"
    assert requests > 50


def test_a_machine_that_vanishes_loses_its_own_requests_alone(cluster: Cluster) -> None:
    cluster.start(*NODES)
    with closing(TaggedLoad(cluster.balancer, BALANCER, "/work.sh")) as load:
        load.wait_for(100)
        cluster.balancer.unplug("b")
        wait_until(lambda: cluster.states()["b"]["status"].startswith("DOWN"), "the end of b")
        down_at = time.monotonic()
        wait_until(lambda: not load.waiting_since_before(down_at), "an end of all requests of that time")
        before = load.wait_for(200)
        assert load.shares(before).keys() == {"a", "c"}
    assert len(load.failures) <= 8, load.failures  # one for each client
    assert all(each.began < down_at for each in load.failures), load.failures
    # HAProxy may send a GET to another node, but no POST.
    assert not {each.name for each in load.failures if each.method == "POST"} & {
        name for node in "ac" for name in (cluster.nodes[node].folder / "begun").read_text().split()
    }


def break_the_server(sources: Path) -> None:
    (sources / "poolsrv" / "supervisor" / "process.py").write_text("raise ImportError('it is broken')\n")


def test_the_upgrade_ends_at_the_first_node_that_does_not_come_back(cluster: Cluster, tmp_path: Path) -> None:
    cluster.start(*NODES)
    with closing(TaggedLoad(cluster.balancer, BALANCER, "/work.sh")) as load:
        load.wait_for(50)
        done = cluster.upgrade(later(tmp_path, "99.2.0", break_the_server), "99.2.0", 5)
        assert done.returncode == 1, done.stdout + done.stderr
        assert re.search(r"a: not back after 5 s: .* \(at a; upgraded: none; untouched: b, c\)\n", done.stderr)
        before = load.wait_for(100)
        assert load.shares(before).keys() == {"b", "c"}
        # A second try is of no use while a node is missing: it must not take another one away.
        again = cluster.upgrade(later(tmp_path, "99.3.0"), "99.3.0", 5)
        assert again.returncode == 1
        assert "upgraded: none" in again.stderr
        load.wait_for(50)
    assert load.failures == []


def test_the_weights_follow_the_load(cluster: Cluster) -> None:
    cluster.start(*NODES)
    wait_until(lambda: {cluster.states()[name]["weight"] for name in NODES} <= set(map(str, range(90, 101))), "weights")
    busy = cluster.nodes["a"].folder / "poolsrv.toml"
    busy.write_text(busy.read_text().replace("max_connections = 1000", "max_connections = 10"))
    cluster.nodes["a"].run("/srv/venv/bin/python", "-m", "poolsrv", "reload", "--config", "/srv/poolsrv.toml")
    command = cluster.balancer.command(sys.executable, "-c", HOLD, spaces=("net",))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
        try:
            assert client.stdout is not None
            assert client.stdout.readline() == "held\n"
            wait_until(lambda: int(cluster.states()["a"]["weight"]) <= 60, "a lower weight")
        finally:
            client.kill()
    wait_until(lambda: int(cluster.states()["a"]["weight"]) >= 90, "the former weight")
