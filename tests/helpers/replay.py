"""Takes bytes through the request parser and the body decoder, as a connection does, without one."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from poolsrv_http import BodyLimits, RequestError, RequestHead, RequestParser, body_decoder

T = TypeVar("T")


def replay(
    pieces: Iterable[bytes], answer: Callable[[RequestHead, int], tuple[int, T | None]]
) -> tuple[list[tuple[int, T | None]], bool]:
    """What is answered to these bytes, and whether the connection is still open after them.

    :param answer: called with the head of each request and the length of its body; returns the status and what else is
        to be compared.
    """
    parser = RequestParser()
    answers: list[tuple[int, T | None]] = []
    request = decoder = None
    length = 0
    for piece in pieces:
        data = piece
        while True:
            try:
                if request is None or decoder is None:
                    request = parser.feed(data)
                    if request is None:
                        break
                    data = parser.surplus
                    decoder = body_decoder(request, BodyLimits())
                    length = 0
                length += len(decoder.feed(data))
                if not decoder.done:
                    break
            except RequestError as error:
                return [*answers, (error.status, None)], False
            data = decoder.surplus
            answers.append(answer(request, length))
            if not request.keep_alive:
                return answers, False
            request = decoder = None
    return answers, True
