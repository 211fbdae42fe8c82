"""The corpus of hostile requests (`data/hostile_requests.toml`), against the parts of the cgi plugin in a row.

`replay` takes bytes through the request parser, the body decoder, the path resolver and the environment, as the
plugin does with a connection, and says what was answered. The answer depends on heads and bodies alone; that these are
the same wherever the bytes are split is tested with the library (tests/http/test_hostile.py).
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from poolsrv_cgi.environment import base_environment, http_environment
from poolsrv_cgi.scripts import NoScript, ScriptPaths, find_script
from poolsrv_http.endpoints import Endpoints
from poolsrv_http.request_head import RequestHead

from tests.helpers import replay as parts
from tests.helpers.hostile import CASES, CHAPTERS, Case, build_tree, bytes_of, check_each

NEXT = b"GET /hello.sh?the-next-one HTTP/1.1\r\nHost: next\r\n\r\n"
ENDPOINTS = Endpoints.from_sockets(("192.0.2.1", 40000), ("192.0.2.2", 80))

Answer = tuple[int, dict[str, str] | None]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> ScriptPaths:
    return ScriptPaths(root=build_tree(tmp_path_factory.mktemp("hostile")))


def replay(paths: ScriptPaths, pieces: Iterable[bytes]) -> tuple[list[Answer], bool]:
    """What is answered to these bytes, and whether the connection is still open after them."""

    def answer(request: RequestHead, length: int) -> Answer:
        program = find_script(paths, request.path)
        if isinstance(program, NoScript):
            return program.status, None
        environment = http_environment(
            request,
            program,
            ENDPOINTS,
            base=base_environment({}, (), {}),
            fixed={},
            document_root=program.root,
            software="test",
            body_length=length if request.has_body else None,
        )
        return 200, environment

    return parts.replay(pieces, answer)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_hostile_requests(chapter: str, paths: ScriptPaths) -> None:
    check_each(chapter, lambda case: assert_its_answer(case, paths))
    check_each(chapter, lambda case: assert_the_next_request_is_the_right_one(case, paths))


def assert_its_answer(case: Case, paths: ScriptPaths) -> None:
    """Each case by the section that it names; nothing that is refused reaches a program."""
    answers, open_ = replay(paths, [bytes_of(case)])
    assert [status for status, _ in answers] == case["answers"]
    assert open_ == case["survives"]
    if 200 in case["answers"]:
        environment = next(environment for _, environment in answers if environment is not None)
        for name, value in case.get("environment", {}).items():
            assert environment[name] == value.replace("ROOT", os.fsdecode(paths.trees[0].root))
        assert not set(case.get("absent", ())) & set(environment)


def assert_the_next_request_is_the_right_one(case: Case, paths: ScriptPaths) -> None:
    """RFC 9112 section 9.3.2: behind a connection that survives, the next request is read from its first byte; behind
    one that does not, nothing is."""
    answers, _ = replay(paths, [bytes_of(case) + NEXT])
    if case["survives"]:
        status, environment = answers.pop()
        assert status == 200
        assert environment is not None
        assert environment["QUERY_STRING"] == "the-next-one"
    assert [status for status, _ in answers] == case["answers"]


SHORT = [bytes_of(case) for case in CASES if len(bytes_of(case)) < 2000]


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_random_splits_and_damage(data: st.DataObject, paths: ScriptPaths) -> None:
    """RFC 9112: whatever is sent, in whatever pieces, is answered the same way, and never by another exception."""
    one, other = data.draw(st.sampled_from(SHORT)), data.draw(st.sampled_from(SHORT))
    start, length = data.draw(st.integers(0, len(one))), data.draw(st.integers(0, 8))
    insert = data.draw(st.one_of(st.binary(max_size=4), st.sampled_from([b"\r", b"\n", b"\r\n", b" ", b":", b"\0"])))
    sent = one[:start] + insert + one[start + length :] + other
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=8)))
    pieces = [sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(sent)], strict=True)]
    assert replay(paths, pieces) == replay(paths, [sent])
