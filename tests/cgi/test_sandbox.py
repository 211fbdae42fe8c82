"""The option `sandbox`: real programs in it, and what they can't do there."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from poolsrv_cgi.options import Options, problems
from poolsrv_cgi.programs.runner import ProgramRunner
from poolsrv_cgi.sandboxing import SandboxOptions, sandbox_of

from poolsrv import ConfigError, Sandbox, Worker
from poolsrv.core import landlock, private_tmp
from tests.helpers.http import Client, cgi_listener, pool, write_programs
from tests.helpers.server import ServerProcess

PYTHON = """#!/usr/bin/env python3
import json, os, sys, tempfile, urllib.parse
query = urllib.parse.parse_qs(os.environ["QUERY_STRING"])
print("Content-Type: application/json\\n")
tried = {}
for path in query.get("write", ()):
    try:
        with open(path, "w") as file:
            file.write("x")
        tried[path] = "ok"
    except OSError as error:
        tried[path] = error.strerror
print(json.dumps(tried | {"body": len(sys.stdin.read())}))
"""
PERL = """#!/usr/bin/perl
use strict; use warnings; use POSIX; use File::Basename;
print "Content-Type: text/plain\\n\\n", basename($0), " ", strftime("%Y", gmtime), "\\n";
print kill(0, getppid()) ? "it can signal\\n" : "it can't: $!\\n";
"""
GIT = ("git", "-c", "user.name=A", "-c", "user.email=a@b", "-c", "init.defaultBranch=main")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sandbox")
    write_programs(folder / "cgi", {"python.py": PYTHON, "perl.pl": PERL, "stop.sh": "echo x >../out"})
    (folder / "data").mkdir()
    project = folder / "git" / "project.git"
    subprocess.run([*GIT, "init", "-q", "--bare", project], check=True)
    work = folder / "work"
    subprocess.run([*GIT, "clone", "-q", project, work], check=True, stderr=subprocess.DEVNULL)
    (work / "file.txt").write_text("what is in the file\n")
    subprocess.run([*GIT, "add", "."], cwd=work, check=True)
    subprocess.run([*GIT, "commit", "-q", "-m", "The first change"], cwd=work, check=True)
    subprocess.run([*GIT, "push", "-q", "origin", "HEAD:main"], cwd=work, check=True)
    (folder / "cgitrc").write_text(f"cache-size=0\nvirtual-root=/cgit\nscan-path={folder}/git\n")
    (folder / "gitweb.conf").write_text(f'our $projectroot = "{folder}/git";\n')
    return folder


@pytest.fixture(scope="module")
def server(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    data = {"write": [str(folder / "data")]}
    git = {"read": [str(folder / "git"), str(folder / "cgitrc"), str(folder / "gitweb.conf")]}
    aliases = {
        "/cgit": "/usr/lib/cgit/cgit.cgi",
        "/gitweb": "/usr/share/gitweb/gitweb.cgi",
        "/git": "/usr/lib/git-core/git-http-backend",
    }
    environment = {
        "CGIT_CONFIG": str(folder / "cgitrc"),
        "GITWEB_CONFIG": str(folder / "gitweb.conf"),
        "GIT_PROJECT_ROOT": str(folder / "git"),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
    }
    config = pool() + cgi_listener(root=folder / "cgi", sandbox="strict")
    config += cgi_listener("table", root=folder / "cgi", sandbox=data)
    config += cgi_listener("git", aliases=aliases, environment=environment, sandbox=git)
    with ServerProcess(config, tmp_path_factory.mktemp("server")) as running:
        yield running.wait_ready()


@pytest.mark.server
def test_a_python_script(server: ServerProcess, folder: Path) -> None:
    """It runs as ever, with a body, and writes only where it may."""
    query = f"write={folder}/data/a&write={folder}/cgi/a&write=/tmp/poolsrv-none&write=/dev/null"
    expected = {f"{folder}/data/a": "Permission denied", f"{folder}/cgi/a": "Permission denied", "body": 5}
    for listener, more in (("www", {}), ("table", {f"{folder}/data/a": "ok"})):
        with Client(server, listener) as client:
            answer = client.get(f"/python.py?{query}", method="POST", body=b"12345")
        found = json.loads(answer.body)
        assert found == {**expected, "/tmp/poolsrv-none": "Permission denied", "/dev/null": "ok", **more}


@pytest.mark.server
def test_a_perl_script(server: ServerProcess) -> None:
    with Client(server) as client:
        lines = client.get("/perl.pl").body.decode().splitlines()
    assert lines[0].startswith("perl.pl 2")
    assert lines[1] == "it can't: Operation not permitted"


@pytest.mark.server
def test_cgit_and_gitweb(server: ServerProcess) -> None:
    """They show a repository, and the file in it."""
    for path, words in (
        ("/cgit/", "project.git"),
        ("/cgit/project.git/plain/file.txt", "what is in the file"),
        ("/cgit/project.git/log/", "The first change"),
        ("/gitweb", "project.git"),
        ("/gitweb?p=project.git;a=blob_plain;f=file.txt;hb=main", "what is in the file"),
        ("/gitweb?p=project.git;a=commitdiff;h=main", "The first change"),
    ):
        with Client(server, "git") as client:
            answer = client.get(path)
        assert (answer.status, words in answer.body.decode()) == (200, True), path


@pytest.mark.server
def test_git_clone(server: ServerProcess, tmp_path: Path) -> None:
    url = f"http://{server.addresses('git')[0]}/git/project.git"
    subprocess.run(["git", "clone", "-q", "-b", "main", url, tmp_path / "clone"], check=True, timeout=60)
    assert (tmp_path / "clone" / "file.txt").exists()


def found(**options: Any) -> list[tuple[str, str]]:
    return list(problems(Options(**options)))


def test_mistakes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its place; what the kernel lacks is one."""
    ((key, message),) = found(root=tmp_path, sandbox="strict", warm=True)
    assert (key, "`sandbox`" in message) == ("warm", True)
    missing = SandboxOptions(read=(tmp_path / "none",))
    assert found(root=tmp_path, sandbox=missing) == [("sandbox.read", f"{tmp_path}/none: No such file or directory")]
    monkeypatch.setattr(landlock, "version", lambda: 0)
    ((key, message),) = found(root=tmp_path, sandbox="strict")
    assert (key, "no Landlock" in message) == ("sandbox", True)


def test_a_path_that_only_the_worker_can_not_open(tmp_path: Path) -> None:
    """As its user may not go there, or since it has been removed meanwhile."""
    runner = ProgramRunner(Options(root=tmp_path, sandbox=SandboxOptions(read=(tmp_path / "gone",))))
    with pytest.raises(ConfigError, match=f"^sandbox: {tmp_path}/gone: No such file or directory$"):
        runner.open(cast(Worker, None))


def test_mistakes_about_tmp(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes programs elsewhere, and a machine that allows it."""
    monkeypatch.setattr(private_tmp, "why_not", lambda: "")
    wanted = SandboxOptions(private_tmp=1000, read=(Path("/tmp"),))
    messages = found(root=Path("/usr/bin"), sandbox=wanted)
    assert messages == [("sandbox.private_tmp", "hides /tmp, expected another place for that")]
    monkeypatch.setattr(private_tmp, "why_not", lambda: "Operation not permitted")
    ((key, message),) = found(root=Path("/usr/bin"), user="games", sandbox=SandboxOptions(private_tmp=1000))
    assert (key, message) == (
        "sandbox.private_tmp", "this machine allows no user and mount name spaces: Operation not permitted"
    )  # fmt: skip


def test_what_programs_may_do(tmp_path: Path) -> None:
    """Their own directories and the system; `true` is all ports, a list is those, none is none."""
    (tmp_path / "more").mkdir()
    sandbox = sandbox_of(
        Options(
            root=tmp_path,
            roots={"/more": tmp_path / "more", "/none": tmp_path / "none"},
            aliases={"/x": Path("/opt/x/y")},
            interpreters={".py": (sys.executable,), ".sh": ("sh",)},
            sandbox=SandboxOptions(connect=(80,), bind=True, isolated=False, system_calls="all"),
        )
    )
    assert isinstance(sandbox, Sandbox)
    assert {str(tmp_path), str(tmp_path / "more"), sys.executable, "/usr"} <= set(sandbox.execute)
    assert str(tmp_path / "none") not in sandbox.execute
    assert (sandbox.connect, sandbox.bind, sandbox.isolated, sandbox.system_calls) == ((80,), None, False, False)
    assert sandbox_of(Options(root=tmp_path)) is None
