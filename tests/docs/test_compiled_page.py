"""docs/compiled.md beside the code, in both kinds: plain Python, and the compiled wheel (``make test-compiled``)."""

from __future__ import annotations

import inspect
import os
import traceback
import weakref
from pathlib import Path
from typing import Any

import pytest

from poolsrv import Connection, Stream, Timer
from poolsrv.core.event_loop import EventLoop
from poolsrv.net.descriptor import Descriptor
from poolsrv.net.stream import Pipe
from poolsrv.net.transport import SharedTransport
from tests.helpers import kinds
from tests.helpers.plugins import listener, served
from tests.helpers.server import receive_all
from tools import compiled

PAGE = (Path(__file__).parents[2] / "docs" / "compiled.md").read_text()
PLUGIN = """
import sys
from poolsrv import hookimpl

class Kind:
    @hookimpl
    def on_readable(self, conn):
        files = [sys.modules[name].__file__ for name in conn.recv().decode().split()]
        conn.send("".join(f"{file}\\n" for file in files).encode())
        conn.close()
"""


@pytest.mark.server
def test_a_server_runs_what_is_tested(tmp_path: Path) -> None:
    modules = [name for name in compiled.MODULES if name.startswith("poolsrv.") and "tls" not in name]
    with served(tmp_path, PLUGIN, listener("kind")) as server, server.connect("kind") as sock:
        sock.sendall(" ".join(modules).encode())
        files = receive_all(sock).decode().split()
    assert len(files) == len(modules)
    ending = ".so" if kinds.is_compiled else ".py"
    assert [file for file in files if not file.endswith(ending)] == []


def test_what_is_to_be_tested_is_told_apart() -> None:
    assert kinds.others() == []
    other = kinds.PURE if kinds.is_compiled else kinds.COMPILED
    assert len(kinds.others(other)) == len(compiled.MODULES)


def test_the_page_says_how_to_build_it() -> None:
    assert f"{compiled.SWITCH}=1 pip wheel" in PAGE
    assert f"{compiled.SWITCH}=debug" in PAGE
    assert all(f"`{kind}`" in PAGE for kind in (kinds.PURE, kinds.COMPILED))


def test_a_traceback_names_the_engine_s_functions_with_their_lines() -> None:
    loop = EventLoop()
    loop.call_later(0.0, lambda: 1 / 0)
    try:
        loop.turn(0.0)
    except ZeroDivisionError as error:
        frames = list(traceback.walk_tb(error.__traceback__))
    finally:
        loop.close()
    (frame,) = (frame for frame, _ in frames if frame.f_code.co_name == "_call_timers")
    assert frame.f_code.co_filename.endswith("poolsrv/core/event_loop.py")
    assert os.path.isabs(frame.f_code.co_filename) != kinds.is_compiled
    assert bool(frame.f_locals) != kinds.is_compiled


@pytest.mark.parametrize("cls", [Connection, Stream], ids=lambda cls: cls.__name__)
def test_these_can_be_derived_from(cls: Any) -> None:
    derived: Any = type("Derived", (cls,), {})
    assert isinstance(derived.__new__(derived), cls)


def test_others_can_not_be_derived_from() -> None:
    class Derived(SharedTransport):
        pass

    if kinds.is_compiled:
        with pytest.raises(TypeError):
            Derived.__new__(Derived)
    else:
        assert Derived.__new__(Derived)


def streams(cls: Any = Descriptor) -> list[Any]:
    import poolsrv.net.connector
    import poolsrv.worker.tls_connection  # noqa: F401 - classes that derive from it

    return [cls, *(found for derived in cls.__subclasses__() for found in streams(derived))]


def test_every_stream_can_be_referred_to_weakly() -> None:
    found = [cls for cls in streams() if cls.__module__ in ("poolsrv", *compiled.MODULES)]
    assert len(found) == len(compiled.WEAK)
    assert [cls for cls in found if not cls.__weakrefoffset__] == []


def test_a_stream_has_no_attributes_of_others_and_is_freed_at_once() -> None:
    reader, writer = os.pipe()
    loop = EventLoop()
    pipe: Any = Pipe(loop, reader)
    reference = weakref.ref(pipe)
    with pytest.raises(AttributeError):
        pipe.user = 1
    assert reference() is pipe
    del pipe
    assert reference() is None
    loop.close()
    os.close(reader)
    os.close(writer)


def test_weak_references_need_the_c_that_is_expected(tmp_path: Path) -> None:
    (tmp_path / "a.c").write_text("static PyTypeObject nothing;")
    with pytest.raises(RuntimeError, match=r"another C than expected for net\.descriptor\.Descriptor"):
        compiled._allow_weak_references(tmp_path / "a.c")


def test_a_patch_is_seen_by_other_code_than_the_engine_s(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    loop = EventLoop()
    try:
        pipe = Pipe(loop, reader)
        monkeypatch.setattr(Stream, "peek", lambda stream: b"patched")
        assert pipe.peek() == b"patched"
        monkeypatch.undo()
        assert pipe.peek() == b""
        monkeypatch.setattr(Stream, "recv", lambda stream, limit=0: b"patched")
        pipe._in = b"a line\n"
        assert pipe.recv_line() == (b"a line\n" if kinds.is_compiled else b"patched")
    finally:
        os.close(reader)
        os.close(writer)
        loop.close()


def test_wrong_types_are_an_error_at_once() -> None:
    loop = EventLoop()
    with pytest.raises(TypeError):
        loop.call_later("soon", print)  # type: ignore[arg-type]
    loop.close()


def test_functions_have_signatures() -> None:
    found = inspect.signature(Stream.recv)
    assert list(found.parameters) == ["self", "limit"]
    assert (found.return_annotation is found.empty) == kinds.is_compiled
    assert inspect.signature(Timer.cancel)
