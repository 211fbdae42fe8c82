"""Programs and clients that others wrote, on a running server: git, Perl, curl, wrk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.http import PROGRAMS, Client, cgi_listener, chunked, pool, resident, write_programs
from tests.helpers.server import ServerProcess, wait_until

pytestmark = [pytest.mark.server, pytest.mark.long]


def git_backend() -> Path | None:
    """Where git's CGI program is, if git is there."""
    if shutil.which("git") is None:
        return None
    folder = subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip()
    backend = Path(folder, "git-http-backend")
    return backend if backend.exists() else None


BACKEND = git_backend()

PERL = """#!/usr/bin/perl
use strict; use warnings;
my $shape = $ENV{PATH_INFO} || '';
if ($shape eq '/local') { print "Location: /hello.sh\\n\\n"; exit }
if ($shape eq '/redirect') { print "Location: http://a/\\n\\n"; exit }
if ($shape eq '/both') {
    print "Status: 303 See Other\\nLocation: http://a/\\nContent-Type: text/plain\\n\\nsee\\n"; exit
}
if (($ENV{CONTENT_LENGTH} || 0) > 0) {
    binmode STDIN; binmode STDOUT;
    read(STDIN, my $body, $ENV{CONTENT_LENGTH}) == $ENV{CONTENT_LENGTH} or die "short";
    print "Content-Type: application/octet-stream\\n\\n", $body; exit
}
print "Content-Type: text/plain\\n\\n";
print map { "$_=$ENV{$_}\\0" } sort keys %ENV;
"""
PYTHON = (
    f"#!{sys.executable}"
    + """
import os, sys
shape = os.environ.get("PATH_INFO", "")
out = sys.stdout.buffer
if shape == "/local":
    print("Location: /hello.sh\\n")
elif shape == "/redirect":
    print("Location: http://a/\\n")
elif shape == "/both":
    print("Status: 303 See Other\\nLocation: http://a/\\nContent-Type: text/plain\\n\\nsee")
elif int(os.environ.get("CONTENT_LENGTH") or 0):
    out.write(b"Content-Type: application/octet-stream\\n\\n" + sys.stdin.buffer.read())
else:
    out.write(b"Content-Type: text/plain\\n\\n")
    out.write(b"".join(b"%b=%b\\0" % entry for entry in os.environb.items()))
"""
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("real")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    root = write_programs(folder / "root", PROGRAMS | {"shapes.pl": PERL, "shapes.py": PYTHON})
    (folder / "server").mkdir()
    config = pool() + cgi_listener(root=root) + cgi_listener("warm", root=root, warm=True)
    if BACKEND is not None:
        environment = {"GIT_PROJECT_ROOT": str(folder / "served"), "GIT_HTTP_EXPORT_ALL": "1"}
        config += cgi_listener("git", aliases={"/git": str(BACKEND)}, environment=environment, spool_memory=65536)
    with ServerProcess(config, folder / "server") as running:
        yield running.wait_ready()


def url(server: ServerProcess, listener: str, path: str) -> str:
    return f"http://{server.addresses(listener)[0]}{path}"


# -- git


def git(*arguments: str, cwd: Path, **variables: str) -> str:
    """Run git, with no config but its own."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(cwd),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_TRACE_CURL_NO_DATA": "1",  # of a trace, the headers
        "GIT_CONFIG_COUNT": "1",  # what is random does not get smaller
        "GIT_CONFIG_KEY_0": "core.compression",
        "GIT_CONFIG_VALUE_0": "0",
        **{f"GIT_{role}_{what}": "a@example.org" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
        **variables,
    }
    done = subprocess.run(["git", *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def contents(repository: Path) -> str:
    """Every object of a repository by name, and every branch."""
    objects = git("cat-file", "--batch-all-objects", "--batch-check", "--unordered", cwd=repository)
    return "".join(sorted(objects.splitlines(True))) + git("for-each-ref", cwd=repository)


@pytest.mark.skipif(BACKEND is None, reason="git with its http-backend is not installed")
def test_git_over_http(server: ServerProcess, folder: Path) -> None:
    """Clone, fetch, shallow clone, and push of a file of 50 MiB (in chunks), with the same over a file path beside it.
    RFC 9112 section 7.1, RFC 3875 section 4.2."""
    served, work = folder / "served", folder / "work"
    work.mkdir()
    for name in ("http", "file"):
        git("init", "--bare", "-b", "main", str(served / name), cwd=folder)
        git("-C", str(served / name), "config", "http.receivepack", "true", cwd=folder)
        git("-C", str(served / name), "config", "core.compression", "0", cwd=folder)  # for the program, too
    remotes = {"http": url(server, "git", "/git/http"), "file": f"file://{served}/file"}

    first = work / "first"
    git("init", "-b", "main", str(first), cwd=work)
    for number, content in enumerate((b"one\n", b"two\n", os.urandom(50 << 20))):
        (first / f"file{number}").write_bytes(content)
        git("add", ".", cwd=first)
        git("commit", "-m", f"commit {number}", cwd=first)
    for name, remote in remotes.items():
        trace = git("push", remote, "main", cwd=first, GIT_TRACE_CURL="1" if name == "http" else "0")
        if name == "http":
            assert re.search(r"Transfer-Encoding: chunked", trace)
    assert contents(served / "http") == contents(served / "file")

    for name, remote in remotes.items():
        git("clone", remote, str(work / f"clone-{name}"), cwd=work)
        git("clone", "--depth=1", remote, str(work / f"shallow-{name}"), cwd=work)
    for kind in ("clone", "shallow"):
        over_http, over_file = work / f"{kind}-http", work / f"{kind}-file"
        assert git("log", "--format=%H %s", cwd=over_http) == git("log", "--format=%H %s", cwd=over_file)
        assert (over_http / "file2").read_bytes() == (first / "file2").read_bytes()
    assert git("rev-list", "--count", "HEAD", cwd=work / "shallow-http").strip() == "1"

    (first / "file0").write_text("changed\n")
    git("commit", "-am", "a change", cwd=first)
    for name, remote in remotes.items():
        git("push", remote, "main", "main:other", cwd=first)
        clone = work / f"clone-{name}"
        git("fetch", "origin", cwd=clone)
        assert git("rev-parse", "origin/main", cwd=clone) == git("rev-parse", "main", cwd=first)
    assert contents(work / "clone-http").replace("clone-http", "") == contents(work / "clone-file")
    assert contents(served / "http") == contents(served / "file")
    assert all(resident(worker) < 64 << 20 for worker in server.worker_pids())


@pytest.mark.skipif(BACKEND is None, reason="git with its http-backend is not installed")
def test_git_sends_bodies_in_gzip(server: ServerProcess, folder: Path) -> None:
    """RFC 9110 section 8.4: the coding of the content is the program's business. A fetch that names many commits has
    such a body."""
    served, work = folder / "served" / "many", folder / "many"
    git("init", "-b", "main", str(work), cwd=folder)
    stream = "".join(
        f"commit refs/heads/b{number}\ncommitter a <a@example.org> {number} +0000\ndata 1\nx\n" for number in range(600)
    )
    subprocess.run(["git", "fast-import", "--quiet"], input=stream.encode(), cwd=work, check=True)
    git("clone", "--bare", str(work), str(served), cwd=folder)
    trace = git("clone", url(server, "git", "/git/many"), str(folder / "many-clone"), cwd=folder, GIT_TRACE_CURL="1")
    assert re.search(r"Content-Encoding: gzip", trace)
    assert git("branch", "-r", cwd=folder / "many-clone").count("origin/b") == 600


# -- programs in Perl and Python


@pytest.mark.parametrize("listener", ["www", "warm"])
@pytest.mark.parametrize("program", ["shapes.pl", "shapes.py"])
def test_programs_in_perl_and_python(server: ServerProcess, program: str, listener: str) -> None:
    """RFC 3875 sections 4.1, 4.2 and 6.2: every variable, bodies, the four shapes."""
    if program.endswith("pl") and shutil.which("perl") is None:
        pytest.skip("perl is not installed")
    with Client(server, listener) as client:
        environment = client.get(f"/{program}?a=b", "X-Field: value").environment
        assert environment["QUERY_STRING"] == "a=b"
        assert environment["HTTP_X_FIELD"] == "value"
        assert environment["GATEWAY_INTERFACE"] == "CGI/1.1"
        body = os.urandom(700_000)
        assert client.get(f"/{program}", method="POST", body=body).body == body
        client.send(f"POST /{program} HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        assert client.send(chunked(body[:5], body[5:])).response().body == body
        assert client.get(f"/{program}/local").body == b"hello"
        assert client.get(f"/{program}/redirect").status == 302
        answer = client.get(f"/{program}/both")
        assert (answer.status, answer.headers[b"location"], answer.body) == (303, b"http://a/", b"see\n")


# -- curl and wrk


def curl(*arguments: str, data: bytes | None = None) -> bytes:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "--silent", "--show-error", "--max-time", "60", *arguments]
    return subprocess.run(command, input=data, capture_output=True, check=True, timeout=90).stdout


def test_curl(server: ServerProcess) -> None:
    """RFC 9110 section 10.1.1 (Expect), RFC 9112 sections 7.1 and 9.3: keep-alive, chunked uploads, HEAD, HTTP/1.0."""
    body = os.urandom(2_000_000)
    hello, cat = url(server, "www", "/hello.sh"), url(server, "www", "/cat.sh")
    assert curl(hello, hello, hello) == b"hello" * 3
    assert curl("--http1.0", hello) == b"hello"
    assert curl("--head", hello).startswith(b"HTTP/1.1 200 OK\r\n")
    assert curl("--data-binary", "@-", "-H", "Expect: 100-continue", cat, data=body) == body
    assert curl("--data-binary", "@-", "-H", "Transfer-Encoding: chunked", cat, data=body) == body
    assert curl("--upload-file", "-", cat, data=body) == body
    assert curl("--write-out", "%{http_code}", url(server, "www", "/no.sh")).endswith(b"404")
    assert curl("--limit-rate", "20M", "--data-binary", "@-", cat, data=body) == body


def test_wrk(server: ServerProcess) -> None:
    """RFC 9112 section 9.3: sixteen connections that are kept open, and every answer a good one."""
    if shutil.which("wrk") is None:
        pytest.skip("wrk is not installed")
    command = ["wrk", "--threads=1", "--connections=16", "--duration=1s", "--timeout=30s"]

    def are_answered() -> bool:
        """As many as it takes for each connection to have had several, in a second that may be a busy one."""
        said = subprocess.run(
            [*command, url(server, "www", "/hello.sh")], capture_output=True, text=True, check=True, timeout=90
        ).stdout
        assert "Socket errors" not in said
        assert "Non-2xx" not in said
        return int(re.search(r"(\d+) requests in", said).group(1)) > 50  # type: ignore[union-attr]

    wait_until(are_answered, "fifty requests in a second")
