"""The cgi plugin over HTTP: whatever happens to a request, it has one outcome, and the log one line of it."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.helpers.http import PROGRAMS, Client, cgi_listener, pool, write_programs
from tests.helpers.plugins import served
from tests.helpers.server import ServerProcess, wait_until

pytestmark = pytest.mark.server

MORE = {
    "never.sh": "exec sleep 60",
    "swallow.sh": "cat >/dev/null; printf 'Content-Type: text/plain\\n\\nall'",
    "first.sh": "printf 'Content-Type: text/plain\\nContent-Length: 2\\n\\nok'; cat >/dev/null",
    "garbage.sh": "trap '' TERM; echo no header; echo; sleep 3",
    "redirects.sh": "printf 'Location: /slow.sh\\n\\n'; exec 1>&-; exec sleep 60",
    "slow.sh": "sleep 0.4; printf 'Content-Type: text/plain\\n\\nslow'",
}
TRIES = 10


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = write_programs(tmp_path_factory.mktemp("root"), PROGRAMS | MORE)
    folder = tmp_path_factory.mktemp("server")
    config = pool() + cgi_listener(root=root, access_log=folder / "access")
    more = {"access_log_format": "json"}
    config += cgi_listener("body", root=root, body_timeout=0.7, access_log=folder / "body", **more)
    config += cgi_listener("both", root=root, body_timeout=1.5, output_timeout=0.7, access_log=folder / "both", **more)
    config += cgi_listener("time", root=root, timeout=1.0, access_log=folder / "time", **more)
    with ServerProcess(config, folder) as running:
        yield running.wait_ready()


def outcome(server: ServerProcess, listener: str, before: int, status: int) -> list[str]:
    """What the log says of the request that came after line `before`, once the access log has its line of it."""
    log = server.folder / listener

    def told() -> bool:
        return log.exists() and f'"status": {status}' in log.read_text()

    wait_until(told, "the line in the access log")
    assert log.read_text().count("\n") == 1
    log.write_text("")
    with Client(server, listener) as client:  # whatever comes late comes before this is over
        time.sleep(1.2)
        client.get("/no.sh")
    wait_until(log.read_text, "the line in the access log")
    log.write_text("")
    mine = [line for line in server.lines[before:] if re.search(rf"\b{listener} #", line)]
    return [line for line in mine if ": 404: " not in line]  # after the port, which may end in 404


def outcome_in_time(server: ServerProcess, listener: str, ask: Callable[[], int], status: int, late: int) -> list[str]:
    """What the log says of a request that is answered with this status. Its program may be too late on a busy machine,
    where it is answered with another one: then it is asked for again."""
    for _ in range(TRIES):
        before = len(server.lines)
        found = ask()
        lines = outcome(server, listener, before, found)
        if found != late:
            break
    assert found == status
    return lines


@pytest.mark.parametrize("program", ["swallow.sh", "cat.sh"])
@pytest.mark.parametrize(
    "head", ["Content-Length: 10\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"]
)
def test_a_body_that_stands_still(server: ServerProcess, program: str, head: str) -> None:
    """RFC 9110 section 15.5.9: 408, and nothing else. The program is not to blame."""
    if program == "cat.sh" and "Length" in head:
        return  # that has answered before
    before = len(server.lines)
    with Client(server, "body") as client:
        client.send(f"POST /{program} HTTP/1.1\r\nHost: a\r\n{head}".encode())
        answer = client.response()
        assert (answer.status, answer.headers[b"connection"]) == (408, b"close")
        assert client.is_closed()
        # While the client has not closed, the connection is still there when its program ends.
        wait_until(lambda: '"status": 408' in (server.folder / "body").read_text(), "the program's end")
    lines = outcome(server, "body", before, 408)
    assert len(lines) == 1
    assert "body_timeout" in lines[0]


def test_a_body_that_stands_still_after_the_response(server: ServerProcess) -> None:

    def ask() -> int:
        with Client(server, "body") as client:
            client.send(b"POST /first.sh HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000)
            status = client.response().status
            assert client.is_closed()
            return status

    lines = outcome_in_time(server, "body", ask, 200, 408)
    assert len(lines) == 1
    assert "body_timeout" in lines[0]


def test_a_program_that_waits_for_its_client_is_not_silent(server: ServerProcess) -> None:
    """The body is late: that is the client's affair, whose time is another."""

    def ask() -> int:
        with Client(server, "both") as client:
            client.send(b"POST /swallow.sh HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")
            for _ in range(10):
                time.sleep(0.2)
                client.send(b"x")
            return client.response().status

    assert outcome_in_time(server, "both", ask, 200, 504) == []
    before = len(server.lines)
    with Client(server, "both") as client:
        client.send(b"POST /swallow.sh HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello")
        assert client.response().status == 408
    lines = outcome(server, "both", before, 408)
    assert len(lines) == 1
    assert "body_timeout" in lines[0]


def test_over_its_time(server: ServerProcess) -> None:
    before = len(server.lines)
    with Client(server, "time") as client:
        assert client.get("/never.sh").status == 504
    lines = outcome(server, "time", before, 504)
    assert len(lines) == 1
    assert "over its timeout of 1 s: ending it; the client gets 504" in lines[0]


def test_no_header_and_then_over_its_time(server: ServerProcess) -> None:

    def ask() -> int:
        with Client(server, "time") as client:
            return client.get("/garbage.sh").status

    lines = outcome_in_time(server, "time", ask, 502, 504)
    assert len(lines) == 1
    assert "502: not a header field" in lines[0]


def test_the_time_of_a_program_that_has_redirected_is_its_own(server: ServerProcess) -> None:
    """What it does after that is no affair of the client's."""
    log = server.folder / "time"

    def ask() -> list[int]:
        """Three requests more than the redirect, whose program is over its time while they are served."""
        with Client(server, "time") as client:
            answers = [client.get("/redirects.sh"), *(client.get("/slow.sh") for _ in range(3))]
        wait_until(lambda: log.read_text().count("\n") == 4, "the lines in the access log")
        log.write_text("")
        return [answer.status for answer in answers if answer.body != b"slow"]

    for _ in range(TRIES):
        before = len(server.lines)
        if (late := ask()) == []:
            break
        assert set(late) == {504}
    assert late == []
    server.wait_for_line(r"/redirects.sh\[\d+\]: over its timeout", after=before)
    assert not [line for line in server.lines[before:] if "gets 504" in line]


def test_a_client_that_is_gone(server: ServerProcess) -> None:
    """Its program is ended, and what that prints or not is of no interest."""
    before = len(server.lines)
    for target in ("/never.sh", "/swallow.sh"):
        with Client(server, "both") as client:
            client.send(f"POST {target} HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhello".encode())
            client.sock.shutdown(socket.SHUT_WR)
            assert client.is_closed()
        assert outcome(server, "both", before, 0) == []


ENDED_FIRST = """
import os

open_pidfd = os.pidfd_open


def await_end(pid, *flags):
    # A program that has ended before it is watched is reaped before its output is read.
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return open_pidfd(pid, *flags)


class EndedFirst:
    @hookimpl
    def on_worker_start(self, worker):
        os.pidfd_open = await_end
"""


def test_a_program_that_is_reaped_before_its_local_redirect_is_read(tmp_path: Path) -> None:
    root = write_programs(tmp_path / "root", {**PROGRAMS, "local.sh": "printf 'Location: /hello.sh\\n\\n'"})
    log = tmp_path / "access"
    config = cgi_listener(keys='plugins = ["endedfirst"]', root=root, access_log=log)
    with served(tmp_path, ENDED_FIRST, config) as server:
        for number in range(1, 4):
            with Client(server, "www") as client:
                assert client.get("/local.sh").status == 200
            wait_until(partial(has_lines, log, number), "its line in the access log")
        assert log.read_text().count('"GET /local.sh HTTP/1.1" 200') == 3


def has_lines(log: Path, number: int) -> bool:
    return log.read_text().count("\n") == number
