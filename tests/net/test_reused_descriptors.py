"""What is watched under a number that comes back within a batch does not take the old one's events for its own.

In a worker, plugins close descriptors of ``add_reader`` in the middle of a batch.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

from poolsrv.core.event_loop import EventLoop
from poolsrv.net.connector import OutgoingStream
from poolsrv.net.descriptor import CONNECTING
from poolsrv.net.programs import Child, Reaper, start_program
from poolsrv.net.stream import Pipe
from tests.helpers.programs import run_until
from tests.helpers.reused_descriptors import broken, readable, succeed
from tests.helpers.streams import Owner

DEAF = "trap '' TERM; echo deaf; read line; echo \"$line\""


def test_a_program_that_was_told_to_end_keeps_its_grace(loop: EventLoop) -> None:
    reaper = Reaper(loop)
    ended: list[Child] = []
    (stdin, to_it), (from_it, stdout) = os.pipe(), os.pipe()
    pid = start_program(["/bin/sh", "-c", DEAF], env=None, cwd=None, descriptors=(stdin, stdout, None))
    os.close(stdin)
    os.close(stdout)
    child = Child(pid, "program", loop)
    with os.fdopen(from_it) as output, os.fdopen(to_it, "w") as told:
        assert output.readline() == "deaf\n"
        child.terminate(grace=1000.0)
        succeed(loop, readable(), lambda: reaper.watch(child, ended.append))
        print("alive", file=told, flush=True)
        assert output.readline() == "alive\n"
    run_until(loop, lambda: ended)
    assert child.returncode == 0


def test_a_pipe_to_a_program_is_not_broken_by_an_error_of_another(loop: EventLoop) -> None:
    reader, writer = os.pipe()
    pipes: list[Pipe] = []

    def watch() -> None:
        pipe = Pipe(loop, os.dup(writer), Owner())
        pipe._start()
        pipes.append(pipe)

    succeed(loop, broken(), watch)
    os.close(writer)
    pipes[0].send(b"input")
    assert os.read(reader, 100) == b"input"
    pipes[0].abort()
    loop.turn(0)
    os.close(reader)


def test_a_connection_that_is_being_made_is_not_taken_for_made(loop: EventLoop) -> None:
    listening = socket.create_server(("127.0.0.1", 0), backlog=0)
    address = listening.getsockname()
    first = socket.create_connection(address)  # there is room for one; to the next, the kernel does not answer
    streams: list[OutgoingStream] = []

    def connect() -> None:
        streams.append(OutgoingStream(loop, Owner(), f"127.0.0.1:{address[1]}", Path("/"), 1000.0))

    succeed(loop, readable(), connect)
    assert streams[0]._state == CONNECTING
    streams[0].abort()
    loop.turn(0)
    first.close()
    listening.close()
