"""Responses, in this process."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import pytest
from poolsrv_http import HttpOptions, HttpPlugin, Request, Response

from poolsrv.testing import Client, Harness

MOST = 1000  # pieces: none of the loops may get so far


class Pushing(HttpPlugin):
    """Sends as long as there is room.

    :param before: called with the response, before the first piece.
    """

    def __init__(self, before: Callable[[Response], object]) -> None:
        super().__init__(HttpOptions())
        self.before = before
        self.pieces = 0

    def on_request(self, request: Request, response: Response) -> None:
        response.start(200)
        self.before(response)
        while not response.congested and self.pieces < MOST:
            response.send(bytes(65536))
            self.pieces += 1


def push(before: Callable[[Client, Response], object]) -> int:
    """How many pieces are sent to a client that reads nothing. What happens before them is called as `before`."""
    plugin = Pushing(lambda response: before(client, response))
    with Harness(plugin) as harness:
        client = harness.connect()
        client.stop_reading()
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    return plugin.pieces


@pytest.fixture(scope="module", autouse=True)
def first() -> None:
    """What is made once in a process is made here."""
    push(lambda client, response: response.end())
    gc.collect()


@pytest.fixture(autouse=True)
def no_garbage(nothing_left_behind: None) -> Iterator[None]:
    """A plugin has descriptors, until it is collected."""
    yield
    gc.collect()


@pytest.mark.parametrize("go", [Client.close, Client.reset])
def test_a_loop_that_sends_ends_where_the_client_has_gone(go: Callable[[Client], object]) -> None:
    assert push(lambda client, response: go(client)) < MOST


def test_a_loop_that_sends_ends_where_there_is_no_room() -> None:
    assert 4 < push(lambda client, response: None) < MOST


def test_a_loop_that_sends_does_not_begin_behind_the_end() -> None:
    assert push(lambda client, response: response.end()) == 0
