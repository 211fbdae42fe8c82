"""Messages from a pool to the supervisor: the right phase, process, user and form."""

from __future__ import annotations

import array
import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from poolsrv.core.listening_sockets import ListeningSocket as HeldSocket
from poolsrv.ipc import pool_link, pool_protocol
from poolsrv.ipc.pool_link import BadMessage, Message, PoolLink, Sender, received_sockets, send_sockets
from poolsrv.ipc.pool_protocol import LEAVING, SEALED, SERVING, STARTING

PID = 4711
LOG = {"level": "info", "format": "text", "file": None, "owner": [-1, 65534]}
CONFIGURED = {
    "keys": ["127.0.0.1:7007"],
    "graceful_timeout": 30.0,
    "drain_notice": 5.0,
    "hang_timeout": 0,
    "max_draining_pools": 4,
    "runs": 200,
    "pidfile": "/run/server.pid",
    "log": LOG,
}
RIGHT: dict[str, dict[str, Any]] = {
    "plan": {"start_timeout": 60.0},
    "bound": {"sockets": []},
    "configured": CONFIGURED,
    "serves": {},
    "failed": {"lines": ["why"], "exit_code": 2},
    "alive": {},
    "leaves": {},
    "claims": {"plugins": ["resp"]},
    "released": {"number": 1},
}
PHASES = {
    STARTING: {"plan", "bound", "configured", "failed"},
    SEALED: {"serves", "failed", "alive", "claims"},
    SERVING: {"alive", "leaves", "released"},
}


def message(kind: str, fields: dict[str, Any] | None = None, uid: int | None = None, pid: int = PID) -> Message:
    return Message(
        kind, RIGHT[kind] if fields is None else fields, [], Sender(pid, os.getuid() if uid is None else uid)
    )


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("kind", RIGHT)
def test_each_message_has_its_phase(phase: str, kind: str) -> None:
    if kind in PHASES[phase]:
        assert pool_protocol.check(phase, message(kind), PID)
    else:
        with pytest.raises(BadMessage, match=f"^'{kind}' while it is {phase}$"):
            pool_protocol.check(phase, message(kind), PID)


@pytest.mark.parametrize("kind", RIGHT)
def test_messages_in_flight_when_a_pool_is_told_to_stop_are_ignored(kind: str) -> None:
    assert pool_protocol.check(LEAVING, message(kind), PID) == (
        kind in ("released", "alive")  # another pool waits for that; and what it counts matters
    )


@pytest.mark.parametrize("kind", RIGHT)
def test_another_process_is_not_the_pool(kind: str) -> None:
    with pytest.raises(BadMessage, match="from another process"):
        pool_protocol.check(STARTING, message(kind, pid=PID + 1), PID)
    with pytest.raises(BadMessage, match="from another process"):
        pool_protocol.check(STARTING, Message(kind, RIGHT[kind], []), PID)


@pytest.mark.parametrize("kind", ["bound", "configured"])
def test_what_root_acts_on_is_sent_before_privileges_are_dropped(kind: str) -> None:
    with pytest.raises(BadMessage, match=f"^'{kind}' as user 45001$"):
        pool_protocol.check(STARTING, message(kind, uid=45001), PID)


def test_an_unknown_kind() -> None:
    with pytest.raises(BadMessage, match="unknown message 'exec'"):
        pool_protocol.check(SERVING, Message("exec", {}, [], Sender(PID, os.getuid())), PID)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("plan", {"start_timeout": "60"}),
        ("plan", {"start_timeout": True}),
        ("plan", {"start_timeout": float("inf")}),
        ("plan", {"start_timeout": 10**400}),
        ("configured", {"keys": "x"}),
        ("configured", {"keys": [1]}),
        ("configured", {"keys": ["x"] * 5000}),
        ("configured", {"graceful_timeout": None}),
        ("configured", {"graceful_timeout": -1}),
        ("configured", {"graceful_timeout": float("nan")}),
        ("configured", {"hang_timeout": []}),
        ("configured", {"max_draining_pools": 0}),
        ("configured", {"max_draining_pools": 1.5}),
        ("configured", {"runs": 501}),
        ("configured", {"runs": -1}),
        ("configured", {"runs": True}),
        ("configured", {"pidfile": "relative"}),
        ("configured", {"pidfile": "/a\0b"}),
        ("configured", {"pidfile": "/" + "x" * 5000}),
        ("configured", {"pidfile": ["/etc/passwd"]}),
        ("configured", {"log": None}),
        ("configured", {"log": LOG | {"level": "loud"}}),
        ("configured", {"log": LOG | {"level": ["info"]}}),
        ("configured", {"log": LOG | {"format": {}}}),
        ("configured", {"log": LOG | {"file": 3}}),
        ("configured", {"log": LOG | {"owner": [0]}}),
        ("configured", {"log": LOG | {"owner": [0, "root"]}}),
        ("configured", {"log": LOG | {"owner": [0, 2**40]}}),
        ("failed", {"lines": "why"}),
        ("failed", {"lines": ["x"] * 1000}),
        ("failed", {"lines": ["x" * 2000]}),
        ("failed", {"exit_code": 0}),
        ("failed", {"exit_code": "1"}),
        ("bound", {"sockets": None}),
    ],
)
def test_each_field_has_its_form(kind: str, change: dict[str, Any]) -> None:
    with pytest.raises(BadMessage, match=f"'{kind}' with a wrong '{next(iter(change))}'"):
        pool_protocol.check(STARTING, message(kind, RIGHT[kind] | change), PID)


@pytest.mark.parametrize("kind", ["plan", "configured", "failed"])
def test_a_field_that_is_missing(kind: str) -> None:
    for name in RIGHT[kind]:
        if name not in ("pidfile", "drain_notice", "runs"):
            with pytest.raises(BadMessage):
                pool_protocol.check(STARTING, message(kind, {k: v for k, v in RIGHT[kind].items() if k != name}), PID)


def test_fields_that_are_not_known_do_no_harm() -> None:
    assert pool_protocol.check(SERVING, message("alive", {"of a later version": 1}), PID)


def test_descriptors_that_do_not_belong_there_are_closed() -> None:
    reader, writer = os.pipe()
    with pytest.raises(BadMessage, match="with descriptors"):
        pool_protocol.check(SERVING, Message("alive", {}, [writer], Sender(PID, os.getuid())), PID)
    assert os.read(reader, 1) == b""  # no process has the other end
    os.close(reader)


# --- on the wire


@pytest.fixture
def link() -> Iterator[tuple[PoolLink, socket.socket]]:
    """The supervisor's end of a link, and a bare socket at the other end."""
    end, sock = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours = PoolLink.supervisors_end(end)
    yield ours, sock
    ours.close()
    sock.close()


def test_the_kernel_names_the_sender_of_a_message(link: tuple[PoolLink, socket.socket]) -> None:
    ours, theirs = link
    child = os.fork()
    if child == 0:
        theirs.send(b'{"kind": "alive"}')
        os._exit(0)
    os.waitpid(child, 0)
    received = ours.receive()
    assert received is not None
    assert received.sender is not None
    assert (received.sender.pid, received.sender.uid) == (child, os.getuid())


@pytest.mark.parametrize(
    "payload",
    [
        b"no json",
        b"\xff",
        b"[]",
        b"1",
        b"{}",
        b'{"kind": 1}',
        b'{"kind": null}',
        b"[" * 100_000,
        b'{"a":' * 20_000,
        b'{"kind": "plan", "start_timeout": NaN}',
        b'{"kind": "plan", "start_timeout": ' + b"9" * 10_000 + b"}",
    ],
    ids=range(11),
)
def test_malformed_messages(link: tuple[PoolLink, socket.socket], payload: bytes) -> None:
    ours, theirs = link
    reader, writer = os.pipe()
    theirs.sendmsg([payload], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer]))])
    os.close(writer)
    with pytest.raises(BadMessage):
        ours.receive()
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_an_empty_message_with_descriptors_is_no_end(link: tuple[PoolLink, socket.socket]) -> None:
    ours, theirs = link
    reader, writer = os.pipe()
    theirs.sendmsg([b""], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [writer]))])
    os.close(writer)
    with pytest.raises(BadMessage):
        ours.receive()
    assert os.read(reader, 1) == b""
    os.close(reader)


def test_sockets_arrive_as_they_were_sent(link: tuple[PoolLink, socket.socket]) -> None:
    ours, theirs = link
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = PoolLink(theirs)
        send_sockets(sender, "bound", [HeldSocket("a", server, "/run/a", (1, 2))])
        message = ours.receive()
        assert message is not None
        (held,) = received_sockets(message)
        assert (held.key, held.path, held.inode) == ("a", "/run/a", (1, 2))
        assert held.socket.getsockname() == server.getsockname()
        held.socket.close()


@pytest.mark.parametrize(
    "described",
    [
        [],
        [{}, {}],
        [1],
        [{"key": 1, "path": "", "inode": None}],
        [{"key": "a", "path": "relative", "inode": None}],
        [{"key": "a", "path": None, "inode": None}],
        [{"key": "a", "path": "/run/a", "inode": 7}],
        [{"key": "a", "path": "/run/a", "inode": [1, "2"]}],
        [{"key": "a", "path": "/run/a", "inode": [1, True]}],
    ],
    ids=range(9),
)
def test_sockets_that_are_described_wrongly_are_closed(described: object) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        fd = os.dup(server.fileno())
        with pytest.raises(BadMessage):
            received_sockets(Message("bound", {"sockets": described}, [fd]))
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_a_socket_that_does_not_listen_is_refused() -> None:
    right = {"key": "a", "path": "", "inode": None}
    reader, writer = os.pipe()
    with socket.socket() as sock, socket.create_server(("127.0.0.1", 0)) as server:
        for wrong in (writer, sock.fileno()):
            fds = [os.dup(server.fileno()), os.dup(wrong)]
            with pytest.raises(BadMessage, match=r"no socket|does not listen"):
                received_sockets(Message("bound", {"sockets": [right, right | {"key": "b"}]}, fds))
            for fd in fds:
                with pytest.raises(OSError, match="Bad file descriptor"):
                    os.fstat(fd)
    os.close(reader)
    os.close(writer)


def test_messages_are_json(link: tuple[PoolLink, socket.socket]) -> None:
    ours, theirs = link
    ours.send("go", alive_every=7.5)
    assert json.loads(theirs.recv(1000)) == {"kind": "go", "alive_every": 7.5}


def test_a_claim_and_its_answer_have_their_form() -> None:
    for plugins in (None, "resp", [1], ["x" * 300], ["x"] * 1000):
        with pytest.raises(BadMessage, match="'claims' with a wrong 'plugins'"):
            pool_protocol.check(SEALED, message("claims", {"plugins": plugins}), PID)
    for phase in (SERVING, LEAVING):
        for number in (None, -1, True, 1.0, 2**60):
            with pytest.raises(BadMessage, match="'released' with a wrong 'number'"):
                pool_protocol.check(phase, message("released", {"number": number}), PID)


def test_what_a_pool_has_said_arrives_although_it_ended_before_it_had_read_all() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    link, pool = PoolLink(ours), PoolLink(theirs)
    link.send("start")
    pool_link.send_lines(pool, "failed", ["a reason"], exit_code=1)
    pool.close()
    message = link.receive()
    assert message is not None
    assert message.fields["lines"] == ["a reason"]
    with pytest.raises(EOFError):
        link.receive()
    link.close()
