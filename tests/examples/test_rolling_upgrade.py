"""The example's script that upgrades nodes, without nodes. test_nodes.py has it with real ones."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.modules import load_module

SCRIPT = load_module(Path(__file__).parents[2] / "examples" / "haproxy" / "rolling_upgrade.py")
NODES = ("a=10.0.0.11", "b=10.0.0.12", "c=10.0.0.13")


class Site:
    """What the nodes answer, and the commands that have been run.

    :ivar ready: the hosts that are.
    :ivar servers: what answers at each host.
    :ivar result: what the command does to a server.
    """

    def __init__(self) -> None:
        hosts = [node.partition("=")[2] for node in NODES]
        self.ready = set(hosts)
        self.servers = {host: {"started_at": 1.0, "generation": 1, "version": "1"} for host in hosts}
        self.result: dict[str, Any] = {"started_at": 2.0, "version": "2"}
        self.code = 0
        self.commands: list[list[str]] = []

    def ask(self, node: Any, path: str) -> bytes:
        if node.host not in self.ready:
            raise OSError("refused")
        return json.dumps({"server": self.servers[node.host]}).encode()

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        self.servers[command[-1]].update(self.result)
        return subprocess.CompletedProcess(command, self.code)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    site = Site()
    monkeypatch.setattr(SCRIPT, "PATIENCE", 0)
    monkeypatch.setattr(SCRIPT.Node, "ask", lambda node, path: site.ask(node, path))
    monkeypatch.setattr(SCRIPT.subprocess, "run", site.run)
    return site


def upgrade(*options: str) -> int:
    code: int = SCRIPT.main([*NODES, "--settle=0", "--timeout=0", *options, "--", "upgrade", "{name}", "{host}"])
    return code


def test_nobody_reads_what_it_says(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not stop between two nodes."""

    def broken(*_: object, **__: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(SCRIPT, "print", broken, raising=False)
    assert upgrade("--version=2") == 0
    assert len(site.commands) == len(NODES)


def test_one_after_the_other(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    assert upgrade("--version=2") == 0
    assert site.commands == [["upgrade", *node.split("=")] for node in NODES]
    assert capsys.readouterr().out.endswith("all 3 nodes have been upgraded\n")


def test_nothing_is_done_while_a_node_is_missing(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    site.ready.discard("10.0.0.13")
    assert upgrade() == 1
    assert site.commands == []
    assert "c: refused (at a; upgraded: none; untouched: b, c)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "result", "message"),
    [
        (3, {"started_at": 2.0}, "a: the command has ended with 3"),
        (0, {}, "a: not back after 0 s: the same server as before answers"),
        (0, {"generation": 2}, "a: not back after 0 s: version 1 answers, not 2"),
    ],
)
def test_it_ends_at_a_node_that_does_not_come_back(
    site: Site, capsys: pytest.CaptureFixture[str], code: int, result: dict[str, Any], message: str
) -> None:
    site.code, site.result = code, result
    assert upgrade("--version=2") == 1
    assert len(site.commands) == 1
    assert f"{message} (at a; upgraded: none; untouched: b, c)" in capsys.readouterr().err


def test_haproxy_is_asked(site: Site, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert upgrade(f"--haproxy={tmp_path}/none") == 1
    assert "a: HAProxy does not answer at" in capsys.readouterr().err
    haproxy = SCRIPT.Haproxy("127.0.0.1:1", "poolsrv")
    haproxy._ask = lambda command: "# pxname,svname,status\npoolsrv,a,UP\npoolsrv,b,DOWN 1/2\n"
    assert [haproxy.trouble(name) for name in "abc"] == [
        "", "HAProxy calls it DOWN 1/2", "HAProxy has no server poolsrv/c",
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [[], ["a=h"], ["a=h", "--"], ["a", "--", "x"], ["a=h", "a=i", "--", "x"]])
def test_a_wrong_command_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        SCRIPT.main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


def test_its_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        SCRIPT.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "-- ssh root@{host} upgrade-poolsrv 1.2.0" in shown
    assert "exit codes: 0 all nodes" in shown
