"""The corpus of hostile requests (`data/hostile_requests.toml`) against a running server.

That the answer does not depend on how the bytes are split is tested with the library (tests/http/test_hostile.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h11
import pytest

from tests.cgi.test_hostile import NEXT
from tests.helpers.hostile import CHAPTERS, Case, build_tree, bytes_of, check_each
from tests.helpers.http import Client, Response, cgi_listener, pool
from tests.helpers.server import ServerProcess

pytestmark = pytest.mark.server

# With a Content-Length, for HTTP/1.0 to keep the connection; no value of a variable has a line end in it.
PROGRAM = """#!/bin/sh
e=$(env)
printf 'Content-Type: text/plain\nContent-Length: %s\n\n%s' ${#e} "$e"
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = build_tree(tmp_path_factory.mktemp("hostile"))
    for file in [*root.rglob("*"), *(root.parent / "outside").iterdir()]:
        if file.is_file() and not file.is_symlink() and file.stat().st_mode & 0o111:
            file.write_text(PROGRAM)
    return root


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[ServerProcess]:
    with ServerProcess(pool() + cgi_listener(root=root), tmp_path_factory.mktemp("server")) as running:
        yield running.wait_ready()


def responses(client: Client, method: str) -> Iterator[Response]:
    """Until the connection closes, which it may do by a reset where it was still being sent something."""
    while True:
        try:
            yield client.response(method)
        except (h11.RemoteProtocolError, ConnectionResetError):
            return


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_hostile_requests(chapter: str, server: ServerProcess, root: Path) -> None:
    check_each(chapter, lambda case: assert_its_answers(case, server, root))


def assert_its_answers(case: Case, server: ServerProcess, root: Path) -> None:
    """Each case by the section that it names: what is answered; and behind it (RFC 9112 section 9.3.2) the next request
    is the right one, or the connection is closed."""
    method = "HEAD" if bytes_of(case).startswith(b"HEAD") else "GET"
    with Client(server) as client:
        try:
            client.send(bytes_of(case) + NEXT)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered and closed already
        expected = case["answers"] + ([200] if case["survives"] else [])
        answers: list[Response] = []
        for _ in expected:
            answers.append(client.response(method if len(answers) < len(case["answers"]) else "GET"))
        assert [answer.status for answer in answers] == expected
        for answer in answers:
            answer.body = answer.body.replace(b"\n", b"\0")
        if case["survives"]:
            assert answers[-1].environment["QUERY_STRING"] == "the-next-one"
        else:
            assert list(responses(client, "GET")) == []
    programs = [answer for answer in answers if answer.status == 200 and answer.body]
    if 200 in case["answers"] and method != "HEAD":
        environment = programs[0].environment
        for name, value in case.get("environment", {}).items():
            assert environment[name] == value.replace("ROOT", str(root))
        assert not set(case.get("absent", ())) & set(environment)
    for answer in answers:
        if answer.status >= 400:
            assert str(root).encode() not in answer.body
