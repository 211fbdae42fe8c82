"""``poolsrv cgi``: programs and files of a directory, as ``http.server --cgi`` served them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import pytest

from tests.helpers.command_line import invoke
from tests.helpers.server import ServerProcess, wait_until

PROGRAM = "#!/bin/sh\necho 'Content-Type: text/plain'; echo; echo \"$SCRIPT_NAME $PATH_INFO $PATH_TRANSLATED\"; cat\n"
COMMAND = ("cgi", "site", "--bind", "127.0.0.1:0", "--workers", "1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cgi")
    site = folder / "site"
    for path in (
        "cgi-bin/run.sh",
        "cgi-bin/plain.sh",
        "files/a.txt",
        "page/index.html",
        "page2/index.htm",
        ".secret/a",
    ):
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(PROGRAM if path.endswith(".sh") else f"{path}\n")
    (site / "cgi-bin" / "run.sh").chmod(0o755)
    (site / "linked").symlink_to("cgi-bin")
    (site / "linked.sh").symlink_to("cgi-bin/run.sh")
    (folder / "outside").write_text("outside")
    (site / "outside").symlink_to("../outside")
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerProcess]:
    redirected = ("sh", "-c", 'exec "$@" > stdout', "sh")
    with ServerProcess("", folder, command=COMMAND, prefix=redirected) as running:
        yield running.wait_ready()


def get(server: ServerProcess, path: str, method: str = "GET", body: bytes | None = None) -> tuple[int, str]:
    host, _, port = server.addresses("www")[0].rpartition(":")
    connection = HTTPConnection(host, int(port), timeout=30)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.server
def test_programs_run_and_files_are_sent(server: ServerProcess, folder: Path) -> None:
    site = folder / "site"
    assert get(server, "/cgi-bin/run.sh/x", "POST", b"body") == (200, f"/cgi-bin/run.sh /x {site}/x\nbody")
    assert get(server, "/files/a.txt") == (200, "files/a.txt\n")
    assert [get(server, f"/{name}/")[1] for name in ("page", "page2")] == ["page/index.html\n", "page2/index.htm\n"]
    status, listing = get(server, "/files/")
    assert (status, "a.txt" in listing) == (200, True)
    status, listing = get(server, "/")
    assert (status, "files/" in listing) == (200, True)
    assert not [name for name in ("cgi-bin", "linked", "outside", ".secret") if name in listing]


@pytest.mark.server
@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/cgi-bin/plain.sh", 403),
        ("/cgi-bin/", 403),
        ("/cgi-bin/none", 404),
        ("/htbin/none", 404),
        ("/x/../cgi-bin/plain.sh", 403),
        ("//cgi-bin/./plain.sh", 403),
        ("/cgi%2Dbin/plain.sh", 403),
        ("/linked/run.sh", 403),
        ("/linked/", 403),
        ("/linked.sh", 403),
        ("/outside", 403),
        ("/.secret/a", 404),
        ("/../outside", 400),
    ],
)
def test_neither_a_program_s_source_nor_what_is_outside_is_sent(server: ServerProcess, path: str, status: int) -> None:
    found, body = get(server, path)
    assert (found, "#!" in body, "outside\n" in body) == (status, False, False)


@pytest.mark.server
def test_programs_that_are_added_later_run_and_are_not_shown(server: ServerProcess, folder: Path) -> None:
    (folder / "site" / "htbin").mkdir()
    program = folder / "site" / "htbin" / "late.sh"
    program.write_text(PROGRAM)
    assert get(server, "/htbin/late.sh")[0] == 403
    program.chmod(0o755)
    assert get(server, "/htbin/late.sh")[0] == 200


@pytest.mark.server
def test_each_request_is_a_line_on_standard_output(server: ServerProcess, folder: Path) -> None:
    get(server, "/files/a.txt?seen")
    get(server, "/cgi-bin/run.sh?seen")
    output = folder / "stdout"
    wait_until(lambda: output.read_text().count("?seen HTTP/1.1") == 2, "two lines in the access log")
    assert '"GET /files/a.txt?seen HTTP/1.1" 200 12 ' in output.read_text()


def poolsrv(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "poolsrv", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.server
def test_the_printed_config_serves_the_same(folder: Path) -> None:
    printed = poolsrv(*COMMAND, "--set", "timeout=7", "--print-config", cwd=folder)
    assert (printed.returncode, printed.stderr) == (0, "")
    (folder / "printed.toml").write_text(printed.stdout)
    checked = poolsrv("config", "-c", "printed.toml", cwd=folder)
    assert (checked.returncode, "timeout = 7.0\n" in checked.stdout) == (0, True)
    with ServerProcess("", folder, command=("--config", "printed.toml")) as server:
        server.wait_ready()
        assert get(server, "/cgi-bin/run.sh")[0] == 200
        assert get(server, "/files/a.txt") == (200, "files/a.txt\n")
        assert get(server, "/linked.sh")[0] == 403


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none",), "Directory 'none' does not exist."),
        (("8000",), 'there is no directory "8000" (did you mean --bind :8000?)'),
        (("--set", "timout=5"), 'poolsrv cgi: --set timout: unknown key (did you mean "timeout"?)'),
        (("--bind", "localhost:80"), 'poolsrv cgi: --bind: "localhost:80" has a host name, which is not looked up'),
        (("--set", "access_log=/none/x"), "poolsrv cgi: --set access_log: /none is not a directory"),
    ],
)
def test_mistakes_exit_with_2_and_name_the_argument(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = invoke("cgi", *arguments, "--print-config", cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr


WARNING = ". has neither cgi-bin nor htbin: no programs, only files"
AS_ROOT = "programs run as root; with --set pool.user=NAME they run as that user"


@pytest.mark.server
def test_warnings_come_only_if_it_starts(tmp_path: Path) -> None:
    result = poolsrv("cgi", "--bind", "127.0.0.1:0", "--set", "timout=5", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("poolsrv cgi: --set timout: unknown key")
    assert WARNING not in result.stderr
    assert AS_ROOT not in result.stderr
    with ServerProcess("", tmp_path, command=("cgi", "--bind", "127.0.0.1:0", "--workers", "1")) as server:
        server.wait_ready()
        assert server.log.count(WARNING) == 1
        assert server.log.count(AS_ROOT) == (os.geteuid() == 0)
