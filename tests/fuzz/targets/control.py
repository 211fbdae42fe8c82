"""Requests at the control socket.

The rules: each line is answered by one line of JSON, in order, however the bytes were split; a line that is too long
ends the connection; the end of the stream ends it once all is answered, and the loop rests.
"""

from __future__ import annotations

import json
import socket
from contextlib import suppress

from poolsrv.core.event_loop import EventLoop
from poolsrv.dispatcher.control_server import LONGEST_QUESTION, ControlServer, _Client
from poolsrv.ipc.stats import PROTOCOL, Answer

from ..source import Source, cut
from . import Target

MOST_TURNS = 3  # for each byte and line
ANSWERS = {"ping": lambda: Answer(PROTOCOL, error="pong\udc80\n"), "long": lambda: Answer(PROTOCOL, error="x" * 3000)}


def about(argument: str) -> Answer:
    return Answer(PROTOCOL, error=f"about {argument}")


def run(data: bytes) -> None:
    source = Source(data)
    seed = source.number(256)
    text = source.rest()
    whole = answers_to([text])
    assert answers_to(cut(text, seed)) == whole
    check_answers(text, whole)


def answers_to(pieces: list[bytes]) -> list[bytes]:
    """What comes back until the server has closed."""
    loop = EventLoop()
    ours, theirs = socket.socketpair()
    server = ControlServer(loop, None, ANSWERS, {"run": about})
    theirs.setblocking(False)
    ours.setblocking(False)
    client = _Client(loop, ours, server._answer, server._gone, None)
    server._clients.add(client)
    received = bytearray()
    try:
        for piece in pieces:
            with suppress(BrokenPipeError):
                theirs.sendall(piece)
            loop.turn(0)
            take(theirs, received)
        theirs.shutdown(socket.SHUT_WR)
        for _ in range(MOST_TURNS * (sum(map(len, pieces)) + 2)):
            if client._closed:
                break
            loop.turn(0)
            take(theirs, received)
        assert client._closed
        assert not server._clients
        loop.turn(0)
    finally:
        theirs.close()
        if not client._closed:
            client.close()
            loop.turn(0)
        loop.close()
    return bytes(received).splitlines(keepends=True)


def take(sock: socket.socket, received: bytearray) -> None:
    with suppress(BlockingIOError, ConnectionResetError):
        while data := sock.recv(65536):
            received += data


def check_answers(text: bytes, answers: list[bytes]) -> None:
    questions = text.split(b"\n")
    if not questions[-1]:
        questions.pop()
    expected = next((n for n, one in enumerate(questions) if len(one) > LONGEST_QUESTION), len(questions))
    assert len(answers) == expected, (expected, answers)
    for question, answer in zip(questions, answers, strict=False):
        assert answer.endswith(b"\n")
        found = json.loads(answer)
        assert found["protocol"] == PROTOCOL
        if question.strip() == b"ping":
            assert found["error"] == "pong\\x80\n"
        elif question.strip() == b"long":
            assert found["error"] == "x" * 3000


TARGET = Target(
    run,
    1500,
    (b"ping", b"long", b"run ", b'{"request": "', b'"}', b"\n", b"\r", b"\xff", b"\\ud800", b"[" * 200, b"1e999"),
)
