"""Captures of runs that have failed, from a running server to ``poolsrv replay``."""

from __future__ import annotations

import json
import subprocess
import sys
from base64 import b64decode
from collections.abc import Iterator
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from poolsrv_cgi.options import Options, problems

from poolsrv.cli.control_client import ask_for_runs
from tests.helpers.http import Client, cgi_listener, pool, write_programs
from tests.helpers.server import ServerProcess, receive_all, wait_until

PROGRAMS = {
    "ok.sh": "printf 'Content-Type: text/plain\\n\\nok'; cat",
    "sum.sh": "printf 'Content-Type: text/plain\\nX-Mode: %s\\n\\n' \"$QUERY_STRING\"; md5sum; echo oops >&2; exit 3",
    "empty.sh": "echo 'what went wrong' >&2",
    "line.sh": 'echo "$1"; exit 4',
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = write_programs(tmp_path_factory.mktemp("root"), PROGRAMS)
    folder = tmp_path_factory.mktemp("server")
    (folder / "captures").mkdir(mode=0o700)
    config = pool(control="ctl") + cgi_listener(root=root, capture="captures", capture_body=100_000, spool_memory=1000)
    config += cgi_listener("line", protocol="line", root=root, arguments=True, capture="captures")
    with ServerProcess(config, folder) as running:
        yield running.wait_ready()


def captured(server: ServerProcess) -> dict[str, Any]:
    """The captures, by ID."""
    folder = server.folder / "captures"
    return {file.stem: json.loads(file.read_text()) for file in folder.glob("*.run")}


def new_capture(server: ServerProcess, before: dict[str, Any]) -> Any:
    wait_until(lambda: len(captured(server)) > len(before), "a capture")
    ((run_id, capture),) = [(run_id, one) for run_id, one in captured(server).items() if run_id not in before]
    assert capture["id"] == run_id
    return capture


def replay(server: ServerProcess, run_id: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "poolsrv", "replay", "--config", str(server.file), "--as-root", run_id]
    return subprocess.run(command, capture_output=True, text=True, timeout=30.0)


@pytest.mark.server
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
@pytest.mark.parametrize("size", [5, 90_000, 300_000])
def test_the_body_is_captured_up_to_a_bound_and_the_program_gets_all(
    server: ServerProcess, size: int, chunked: bool
) -> None:
    before = captured(server)
    body = bytes(number * 7 % 251 for number in range(size))
    framing = "Transfer-Encoding: chunked" if chunked else f"Content-Length: {size}"
    data = b"%x\r\n%b\r\n0\r\n\r\n" % (size, body) if chunked else body
    with server.connect("www") as sock:
        head = [f"POST /sum.sh?{size} HTTP/1.1", "Host: a", "Connection: close", framing, "", ""]
        sock.sendall("\r\n".join(head).encode() + data)
        answer = receive_all(sock)
    assert md5(body).hexdigest().encode() in answer
    capture = new_capture(server, before)
    assert b64decode(capture["body"]) == body[:100_000]
    assert capture["body_length"] == size
    assert (capture["returncode"], capture["status"], capture["stderr"]) == (3, 200, ["oops"])
    assert capture["header"] == ["Content-Type: text/plain", f"X-Mode: {size}"]
    if size == 90_000:
        done = replay(server, capture["id"][:6])
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.server
def test_secrets_are_not_in_the_file_and_a_good_run_has_none(server: ServerProcess) -> None:
    before = captured(server)
    with Client(server, "www") as client:
        assert client.get("/ok.sh?token=sesame", "Cookie: sesame", method="POST", body=b"x" * 10).status == 200
        assert client.get("/empty.sh?token=sesame&x=1", "Cookie: sesame", "X-Bytes: \xff").status == 502
    capture = new_capture(server, before)
    assert "sesame" not in (server.folder / "captures" / f"{capture['id']}.run").read_text()
    assert sorted(capture["masked"]) == ["HTTP_COOKIE", "QUERY_STRING", "REQUEST_URI"]
    assert capture["environment"]["HTTP_X_BYTES"] == "\udcff"
    assert (capture["status"], capture["reason"]) == (502, "502: the program printed nothing")
    wait_until(lambda: bool(ask_for_runs(server.file, capture["id"])), "the record of the run")
    (run,) = ask_for_runs(server.file, capture["id"])
    assert run.capture == str(server.folder / "captures" / f"{capture['id']}.run")
    done = replay(server, capture["id"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "HTTP_COOKIE" in done.stderr


@pytest.mark.server
def test_a_line_is_captured(server: ServerProcess) -> None:
    before = captured(server)
    with server.connect("line") as sock:
        sock.sendall(b"line.sh \xff\r\n")
        assert receive_all(sock) == b"\xff\n"
    capture = new_capture(server, before)
    assert (capture["protocol"], capture["returncode"], capture["command"][1]) == ("line", 4, "\udcff")
    assert replay(server, capture["id"]).returncode == 0


def test_a_name_to_mask_is_a_name(tmp_path: Path) -> None:
    assert [key for key, _ in problems(Options(root=tmp_path, mask=("", "*", "X-Pin")))] == ["mask", "mask"]


def test_what_check_says_of_the_folder(tmp_path: Path) -> None:
    def found(**options: Any) -> list[tuple[str, str]]:
        return problems(Options(root=tmp_path, **options))

    folder = tmp_path / "captures"
    assert found(capture=folder) == [("capture", f"{folder}: No such file or directory")]
    folder.mkdir(mode=0o700)
    assert found(capture=folder, capture_max=5, capture_body=0) == []
    folder.chmod(0o777)
    message = f"{folder}: others may write to it (mode 0777), expected at most 0755"
    assert found(capture=folder) == [("capture", message)]
    assert [key for key, _ in found(capture_max=5, capture_body=0)] == ["capture_max", "capture_body"]
    assert problems(Options(protocol="line", root=tmp_path, capture_body=0))[0][0] == "capture_body"
