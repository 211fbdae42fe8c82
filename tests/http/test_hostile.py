"""The corpus of hostile requests against the library: its parts in a row, and a small plugin on a running server.

What the corpus says of paths is a matter of the cgi plugin: here a request whose connection survives is answered with
200, wherever its path leads.
"""

from __future__ import annotations

from collections.abc import Iterator

import h11
import pytest
from poolsrv_http import RequestHead

from tests.helpers.hostile import CHAPTERS, Case, bytes_of, check_each
from tests.helpers.http import Client
from tests.helpers.plugins import listener, served
from tests.helpers.replay import replay
from tests.helpers.server import ServerProcess
from tests.http.web import WEB

NEXT = b"GET /next?the-next-one HTTP/1.1\r\nHost: next\r\n\r\n"

# Status, and of a request that was served its head and the length of its body.
Answer = tuple[int, tuple[RequestHead, int] | None]


def expected(case: Case) -> list[int]:
    """The statuses that the library answers with."""
    answers: list[int] = case["answers"]
    return [200] * len(answers) if case["survives"] else answers


def answered(request: RequestHead, length: int) -> Answer:
    """The library's answer to a request, with all that a handler sees of it."""
    return 200, (request, length)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_the_parts_in_a_row(chapter: str) -> None:
    check_each(chapter, assert_the_parts_answer)


def assert_the_parts_answer(case: Case) -> None:
    """RFC 9112 section 9.3.2: what follows is read from its first byte, or not at all. Section 2.2: wherever the bytes
    are split."""
    data = bytes_of(case) + NEXT
    answers, _ = whole = replay([data], answered)
    for at in range(1, len(data), max(1, len(data) // 300)):
        assert replay([data[:at], data[at:]], answered) == whole, at
    if len(data) < 2000:
        assert replay([data[at : at + 1] for at in range(len(data))], answered) == whole
    if case["survives"]:
        status, seen = answers.pop()
        assert seen is not None
        request, length = seen
        assert (status, request.method, request.path, request.query) == (200, "GET", "/next", "the-next-one")
        assert length == 0
    assert [status for status, _ in answers] == expected(case)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with served(tmp_path_factory.mktemp("say"), WEB, listener("say")) as running:
        yield running


@pytest.mark.server
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_plugin_on_a_server(chapter: str, server: ServerProcess) -> None:
    check_each(chapter, lambda case: assert_the_server_answers(case, server))


def assert_the_server_answers(case: Case, server: ServerProcess) -> None:
    """The same over a socket: each is answered, and behind it comes the right request or the end."""
    method = "HEAD" if bytes_of(case).startswith(b"HEAD") else "GET"
    with Client(server, "say") as client:
        try:
            client.send(bytes_of(case) + NEXT)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered and closed already
        for status in expected(case):
            assert client.response(method).status == status
        if case["survives"]:
            assert client.response().body == b"GET\n/next\nthe-next-one\n0"
        else:
            with pytest.raises((h11.RemoteProtocolError, ConnectionResetError)):
                client.response()
