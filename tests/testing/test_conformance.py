"""Conformance: what it has to find, that it shows it clearly, and that the bundled plugins and the examples conform."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest
from poolsrv_echo import Echo

from poolsrv import Connection, hookimpl
from poolsrv.testing import Dialogue, Finding, NotConforming, assert_conforms, conformance

LINES = [(b"hello\n", b"HELLO\n"), (b"again\n", b"AGAIN\n")]
STORE = [(b"set a 1\n", b"ok\n"), (b"get a\n", b"1\n"), (b"get b\n", b"\n")]
FEW: dict[str, Any] = {"points": 6, "bulk": 6_000}  # for plays whose number is not the subject


def plays(findings: list[Finding]) -> set[str]:
    return {finding.play for finding in findings}


def message(findings: list[Finding]) -> str:
    return str(NotConforming(findings))


# --- what conforms


@pytest.mark.parametrize("plugin", [Echo, "echo"])
def test_echo_conforms(plugin: Any) -> None:
    assert_conforms(plugin, [(b"hello", b"hello"), (b"again", b"again")], bulk=70_000)


def test_shout_conforms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples" / "poolsrv-shout")
    from poolsrv_shout import Shout

    # For other tests there is no module of this name: one makes a plugin of it.
    monkeypatch.setitem(sys.modules, "poolsrv_shout", sys.modules.pop("poolsrv_shout"))
    assert_conforms(Shout, [(b"hello\n", b"HELLO?\n"), (b"\n", b"?\n")], {"ending": "?"}, bulk=7_000)


def program(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("protocol", ["line", "inetd"])
def test_cgi_conforms_where_it_runs_plain_programs(tmp_path: Path, protocol: str) -> None:
    program(tmp_path, "hello.sh", "echo hello" if protocol == "line" else "read line; echo hello $line")
    options: dict[str, Any] = {"protocol": protocol}
    if protocol == "line":
        assert_conforms("cgi", [(b"hello.sh\n", b"hello\n")], options | {"root": tmp_path}, points=3)
    else:
        options["program"] = [str(tmp_path / "hello.sh")]
        assert_conforms("cgi", [(b"you\n", b"hello you\n")], options, points=3)


def test_cgi_conforms_over_http(tmp_path: Path) -> None:
    program(tmp_path, "cat.sh", "printf 'Content-Type: a/b\\nContent-Length: %s\\n\\n' $CONTENT_LENGTH; exec cat")

    def normalize(data: bytes) -> bytes:
        return re.sub(rb"(Date|Server|Connection): [^\r]*\r\n", b"", data)

    answer = b"HTTP/1.1 200 OK\r\nContent-Type: a/b\r\nContent-Length: 3\r\n\r\n"
    request = b"POST /cat.sh HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n"
    dialogue = Dialogue([(request + b"abc", answer + b"abc"), (request + b"def", answer + b"def")], normalize=normalize)
    assert_conforms("cgi", dialogue, {"root": tmp_path}, points=4, bulk=500)


# --- the two faults that were met when a plugin was written from the docs alone


class PutsOff:
    """Answers a hundred lines at a time."""

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        self.answer(conn)

    def answer(self, conn: Connection) -> None:
        for _ in range(100):
            line = conn.recv_line()
            if line is None:
                return
            conn.send(line.upper())
        self.put_off(conn)

    def put_off(self, conn: Connection) -> None:
        conn.call_later(0, lambda: self.answer(conn))


class PutsOffWell(PutsOff):
    def put_off(self, conn: Connection) -> None:
        conn.call_soon(lambda: self.answer(conn))


def test_work_put_off_by_call_later_that_a_half_close_loses_is_named() -> None:
    findings = conformance(PutsOff, LINES, **FEW)
    assert plays(findings) == {"pipelined, many times, with a half-close"}
    assert "part of the answers is lost" in message(findings)
    assert "conn.call_later had not been called when the engine closed" in findings[0].cause
    assert "call_soon" in findings[0].cause
    assert conformance(PutsOffWell, LINES, **FEW) == []


class Keeps:
    """Keeps what it is told in its worker."""

    def __init__(self) -> None:
        self.values: dict[bytes, bytes] = {}

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        while (line := conn.recv_line()) is not None:
            match line.split():
                case b"set", name, value:
                    self.values[name] = value
                    self.saved()
                    conn.send(b"ok\n")
                case b"get", name:
                    conn.send(self.values.get(name, b"") + b"\n")

    def saved(self) -> None:
        return


class Counts:
    @hookimpl
    def on_worker_start(self) -> None:
        self.count = 0

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        while conn.recv_line() is not None:
            self.count += 1
            conn.send(b"%d\n" % self.count)


def test_what_a_client_has_asked_for_in_vain_is_no_difference() -> None:
    """A reset that comes with the bytes, and ends the connection before all of them are served."""
    findings = conformance(Counts, [(b"a\n", b"1\n"), (b"a\n", b"2\n")], **FEW)
    assert plays(findings) == {"over two workers", "over a reload"}


KEPT: dict[bytes, bytes] = {}


class KeepsInItsModule(Keeps):
    def __init__(self) -> None:
        self.values = KEPT

    @hookimpl
    def on_worker_start(self) -> None:
        assert sys.modules[__name__] is not None


class KeepsInAFile(Keeps):
    """One in the world: reads the file at its start, and writes it at its end."""

    exclusive = True
    file = Path()

    @hookimpl
    def on_worker_start(self) -> None:
        if self.file.exists():
            self.values = dict(line.split(b"=") for line in self.file.read_bytes().split())

    @hookimpl
    def on_worker_stop(self) -> None:
        self.file.write_bytes(b"\n".join(b"%b=%b" % item for item in self.values.items()))


@pytest.mark.parametrize("plugin", [Keeps, KeepsInItsModule])
def test_state_kept_in_one_worker_that_a_reload_loses_is_named(plugin: type[Keeps]) -> None:
    findings = conformance(plugin, STORE, **FEW, skip=["half-close", "bytes"])
    assert plays(findings) == {"over two workers", "over a reload"}
    text = message(findings)
    assert "state kept in one worker is lost in a reload" in text
    assert "state kept in one worker is not seen by the others" in text
    assert "sent:     b'get a\\n'" in text
    assert "in one worker: b'1\\n'" in text
    assert "over a reload: b'\\n'" in text


def test_state_that_is_written_and_read_again_is_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fresh(KeepsInAFile):
        def __init__(self) -> None:
            super().__init__()
            self.file = Path.cwd() / "values"

    monkeypatch.chdir(tmp_path)
    skip = ["half-close", "bytes", "reset", "drain", "pipelined", "bulk", "reader", "hooks"]  # they share one file
    assert plays(conformance(Fresh, STORE, skip=skip)) == set()


# --- other faults


class OneLineACall:
    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        if (line := conn.recv_line()) is not None:
            conn.send(line.upper())


def test_lines_left_in_the_buffer_are_named() -> None:
    findings = conformance(OneLineACall, LINES, **FEW)
    assert "pipelined, in one piece" in plays(findings)
    assert "6 bytes are left in the buffer" in message(findings)


class WholePieces:
    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        if data := conn.recv():
            conn.send(data.strip().upper() + b"\n")


def test_a_plugin_that_takes_pieces_for_messages_is_found() -> None:
    findings = conformance(WholePieces, LINES, **FEW)
    assert "byte by byte" in plays(findings)
    assert "they differ from byte 1 on: b'\\nE\\n" in message(findings)


class Holds:
    @hookimpl
    def on_connection_init(self, conn: Connection) -> None:
        conn.hold()

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        while (line := conn.recv_line()) is not None:
            conn.send(line.upper())


def test_a_connection_that_stays_open_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poolsrv.testing.stage.PATIENCE", 0.1)
    findings = conformance(Holds, LINES, **FEW)
    assert "hold() without release()" in message(findings)


class NeedsAll:
    @hookimpl
    def on_connection_init(self, conn: Connection) -> None:
        conn.state = {}

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        while (line := conn.recv_line()) is not None:
            conn.state[line] = line.strip().split()[0]
            conn.send(line.upper())

    @hookimpl
    def on_connection_close(self, conn: Connection, reason: str) -> None:
        conn.state.clear()
        if reason == "reset":
            raise LookupError("somebody has reset")

    @hookimpl
    def on_drain(self, conn: Connection) -> None:
        conn.abort("drained")


def test_faults_are_shown_with_their_place() -> None:
    findings = conformance(NeedsAll, [(b"a\n", b"A\n")], **FEW)
    text = message(findings)
    assert {"with a reset", "with a reader that stops, and resets"} <= plays(findings)
    assert "plugin 'needsall' failed in on_connection_close: LookupError: somebody has reset" in text
    assert 'raise LookupError("somebody has reset")' in text
    assert "with on_connection_init raising once, instead of its own code" in text
    assert "'NoneType' object has no attribute 'clear'" in text


class ForgetsWhenItFails:
    """Counts its clients, and lets one in at a time."""

    def __init__(self) -> None:
        self.inside = 0

    @hookimpl
    def on_connection_init(self, conn: Connection) -> object:
        if self.inside:
            conn.close("busy")
            return True
        self.inside += 1
        return None

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        while (line := conn.recv_line()) is not None:
            conn.send(line.upper())
        if conn.eof:
            self.inside -= 1


def test_a_client_that_is_not_served_because_another_has_failed_is_found() -> None:
    findings = conformance(ForgetsWhenItFails, LINES, **FEW)
    assert "with a reset" in plays(findings)
    assert "part of the answers is lost" in message(findings)


def test_a_dialogue_that_is_wrong_is_told_alone() -> None:
    findings = conformance(Echo, [(b"a", b"b")])
    assert [finding.play for finding in findings] == ["step by step"]
    assert "they differ from byte 0 on: b'a'" in message(findings)
    with pytest.raises(NotConforming, match="1 problem"):
        assert_conforms(Echo, [(b"a", b"b")])


# --- dialogues


class Greets:
    @hookimpl
    def on_connection_init(self, conn: Connection) -> None:
        conn.send(b"hello\n")
        conn.call_later(5, lambda: conn.send(b"still there?\n"))

    @hookimpl
    def on_readable(self, conn: Connection) -> None:
        while (line := conn.recv_line()) is not None:
            if line == b"quit\n":
                conn.send(b"bye\n")
                conn.close("quit")
            elif line == b"wait\n":
                conn.hold()
                conn.call_later(2, lambda: self.waited(conn))

    def waited(self, conn: Connection) -> None:
        conn.send(b"waited\n")
        conn.release()


def test_a_greeting_an_end_and_a_wait() -> None:
    dialogue = Dialogue([(b"wait\n", b"waited\n"), (b"quit\n", b"bye\n")], greeting=b"hello\n")
    findings = conformance(Greets, dialogue, **FEW, skip=["pipelined", "reader", "half-close", "drain"])
    assert findings == []


def test_points_are_at_every_byte_or_around_the_steps() -> None:
    dialogue = Dialogue([(b"12345", b"x"), (b"67890", b"y")])
    assert dialogue.points(64) == list(range(11))
    assert set(dialogue.points(7)) >= {0, 1, 4, 5, 6, 10}
    assert (dialogue.due(4), dialogue.due(5), dialogue.due(10)) == (b"", b"x", b"xy")
    long = Dialogue([(b"x" * 10, b"")] * 1000)
    assert len(long.points(64)) <= 65
    assert long.points(64)[-1] == 10_000


def test_what_can_not_be_played_is_told() -> None:
    with pytest.raises(ValueError, match="without steps"):
        Dialogue([])
    with pytest.raises(ValueError, match=r"no play \['reloads'\], expected some of"):
        conformance(Echo, LINES, skip=["reloads"])
    with pytest.raises(LookupError, match="no plugin 'ecko' is installed"):
        conformance("ecko", LINES)
