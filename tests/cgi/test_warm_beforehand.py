"""Which interpreters a worker starts before a script asks for them, and in which order."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from poolsrv_cgi.process import Launch
from poolsrv_cgi.scripts import ScriptPaths
from poolsrv_cgi.warm import pool as warm_pool
from poolsrv_cgi.warm.beforehand import interpreters_needed
from poolsrv_cgi.warm.child import WarmProgram
from poolsrv_cgi.warm.fork_server import ForkServer
from poolsrv_cgi.warm.pool import WarmPool
from poolsrv_cgi.warm.start_queue import StartQueue

from poolsrv import PIPE, Worker

PYTHON = "#!/usr/bin/python3"


@pytest.fixture(name="root")
def _root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


def write(root: Path, name: str, first_line: str = PYTHON, mode: int = 0o755) -> Path:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{first_line}\nprint()\n")
    file.chmod(mode)
    return file


def needed(root: Path | None, warm: bool | Sequence[str] = True, **options: Any) -> list[str]:
    """The commands that are found, each once, in their order."""
    paths = ScriptPaths(root=root, warm=warm, **options)
    found = interpreters_needed(paths, WarmPool((), {}, {}).command_for)
    return list(dict.fromkeys(" ".join(command) for command in found if command is not None))


def test_what_would_be_served_and_names_a_python(root: Path) -> None:
    """The rules are those of requests."""
    write(root, "one.py")
    write(root, "sub/two.py", "#!/usr/bin/env python3.9")
    write(root, "sub/deeper/still/three", "#!/usr/bin/python3 -B")
    assert sorted(needed(root)) == ["/usr/bin/env python3.9", "/usr/bin/python3", "/usr/bin/python3 -B"]


@pytest.mark.parametrize(
    "unfit",
    [
        lambda root: write(root, "data.py", mode=0o644),
        lambda root: write(root, "script.sh", "#!/bin/sh"),
        lambda root: write(root, "nph-this.py"),
        lambda root: write(root, "cold/this.py"),
        lambda root: write(root, "this.py.txt"),
        lambda root: write(root, "line\nend.py"),
        lambda root: os.mkfifo(root / "fifo.py", 0o755),
        lambda root: (root / "gone.py").symlink_to("nowhere"),
        lambda root: (root / "link.py").symlink_to(write(root.parent, "outside.py")),
        lambda root: (root / "outside").symlink_to(write(root.parent, "elsewhere/this.py").parent),
        lambda root: write(root, "a/b/c/d/too_deep.py"),
    ],
)
def test_what_would_not(root: Path, unfit: Callable[[Path], object]) -> None:
    unfit(root)
    options: dict[str, Any] = {"extensions": [".py", ".sh"], "nph": ["*/nph-*"]}
    assert needed(root, ["/[!c]*"], **options) == []
    write(root, "warm.py")
    assert needed(root, ["/[!c]*"], **options) == ["/usr/bin/python3"]


def test_interpreters_and_scripts_of_the_config(root: Path) -> None:
    """An interpreter counts without a script; with patterns, only if a script fits. An alias may lead anywhere."""
    options: dict[str, Any] = {"interpreters": {".py": ["/opt/python3", "-B"], ".pl": ["/usr/bin/perl"]}}
    assert needed(root, **options) == ["/opt/python3 -B"]
    assert needed(root, extensions=[".cgi"], **options) == []
    assert needed(root, ["/app/*"], **options) == []
    write(root, "app/x.py", mode=0o644)
    assert needed(root, ["/app/*"], **options) == ["/opt/python3 -B"]
    alias = write(root.parent, "alone", "#!/usr/bin/python3 -s")
    assert needed(None, aliases={"/app": alias, "/gone": root / "gone"}) == ["/usr/bin/python3 -s"]
    assert needed(None, ["/other"], aliases={"/app": alias}) == []


def test_further_roots(root: Path) -> None:
    """By their URL paths; those that do not exist are passed over."""
    write(root, "x.py")
    more = write(root.parent / "more", "y.py", "#!/usr/bin/python3 -B").parent
    roots = {"/more": more, "/none": root / "none"}
    assert sorted(needed(root, prefix="/cgi-bin/", roots=roots)) == ["/usr/bin/python3", "/usr/bin/python3 -B"]
    assert needed(root, ["/more/*"], prefix="/cgi-bin/", roots=roots) == ["/usr/bin/python3 -B"]


def test_the_look_is_bounded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in upper directories comes first."""
    monkeypatch.setattr("poolsrv_cgi.warm.beforehand.MOST_NAMES", 30)
    for number in range(40):
        write(root, f"sub/{number}.sh", "#!/bin/sh")
    write(root, "sub/more/x.py", "#!/usr/bin/python3 -B")
    write(root, "x.py")
    paths = ScriptPaths(root=root, warm=True)
    looked_at = list(interpreters_needed(paths, WarmPool((), {}, {}).command_for))
    assert len(looked_at) == 30
    assert {*looked_at} == {None, ("/usr/bin/python3",)}


class Turns:
    """A worker whose loop turns when it is told to."""

    draining = False

    def __init__(self) -> None:
        self.due: list[tuple[float, Callable[[], object]]] = []

    def call_later(self, seconds: float, callback: Callable[[], object]) -> None:
        self.due.append((seconds, callback))

    def turn(self) -> list[float]:
        """Call what is due, however long that takes; the seconds."""
        due, self.due = self.due, []
        for _, callback in due:
            callback()
        return [seconds for seconds, _ in due]


class Started:
    """In the place of a fork server; some can't be started."""

    all: list[Started]

    def __init__(self, _worker: Worker, command: tuple[str, ...], *_: object, is_awaited: bool, **__: object) -> None:
        self.on_end, self.on_settled = cast("tuple[Callable[[Started], object], Callable[[], object]]", _[-2:])
        self.command = command
        self.is_awaited = is_awaited
        self.ready_since = 0.0
        if command == ("bad",):
            raise FileNotFoundError(2, "No such file or directory")
        Started.all.append(self)

    def can_run(self) -> bool:
        return True


@pytest.fixture(name="worker")
def _worker(monkeypatch: pytest.MonkeyPatch) -> Turns:
    monkeypatch.setattr(warm_pool, "ForkServer", Started)
    monkeypatch.setattr(warm_pool, "LOOK_TIME", 1e9)  # however slow the machine is, one turn sees it all
    monkeypatch.setattr("poolsrv_cgi.warm.pool.shutil.which", lambda name, path=None: None if name == "gone" else name)
    Started.all = []
    return Turns()


def opened(worker: Turns) -> WarmPool:
    pool = WarmPool((), {}, {})
    pool.open(cast(Worker, worker))
    return pool


def names() -> list[str]:
    return [" ".join(started.command) for started in Started.all]


def commands(text: str) -> Iterator[tuple[str, ...] | None]:
    return iter([(name,) if name != "-" else None for name in text.split()])


def test_one_after_the_other_over_all_listeners(worker: Turns) -> None:
    """Not within the call, and none that can't be; what a script has asked for meanwhile is there already."""
    first, second = opened(worker), opened(worker)
    first.start_beforehand(commands("- a - a gone b"))
    second.start_beforehand(commands("c"))
    assert names() == []
    worker.turn()
    assert names() == ["a"]
    assert first._fork_server(("b",)) is not None
    assert names() == ["a", "b"]
    Started.all[0].on_settled()
    assert names() == ["a", "b", "c"]
    Started.all[0].on_settled()
    assert names() == ["a", "b", "c"]


def test_no_more_than_some(worker: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    """The look goes on for as long as it takes, a bit in each turn."""
    monkeypatch.setattr(warm_pool, "LOOK_TIME", 0.0)
    needed = commands("- a b - c d e f -")
    opened(worker).start_beforehand(needed)
    turns = 0
    while worker.due:
        assert worker.turn() == [0.0]
        turns += 1
        for started in Started.all[-1:]:
            started.on_settled()
    assert names() == ["a", "b", "c", "d"]
    assert turns == 7
    assert list(needed) == [("f",), None]


def test_none_for_a_worker_that_is_to_end(worker: Turns) -> None:
    pool = opened(worker)
    pool.start_beforehand(commands("a b"))
    pool.start_beforehand(commands("c"))
    worker.draining = True
    worker.turn()
    assert names() == []
    worker.draining = False
    pool.start_beforehand(commands("a b"))
    worker.turn()
    worker.draining = True
    Started.all[0].on_settled()
    pool._ended(cast(ForkServer, Started.all[0]))
    worker.turn()
    assert names() == ["a"]


def test_one_that_has_ended_is_replaced(worker: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a request: at once if it has been of use, else after a delay that grows, and some times only."""
    pool = opened(worker)
    pool._fork_server(("a",))

    def end(ready_since: float = 0.0) -> list[float]:
        last = Started.all[-1]
        last.ready_since = ready_since
        pool._ended(cast(ForkServer, last))
        return worker.turn()

    assert end(0.01) == [0.0]
    assert [end() for _ in range(5)] == [[0.5], [1.0], [2.0], [4.0], []]
    assert [started.is_awaited for started in Started.all] == [True, True, True, False, False, False]
    assert pool._fork_server(("a",)) is None
    monkeypatch.setattr("time.monotonic", lambda: 1e9)
    assert pool._fork_server(("a",)) is cast(Any, Started.all[-1])
    assert end(1e9 - 1) == [0.5]
    assert len(Started.all) == 8


def test_one_that_can_not_be_started(worker: Turns, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others in the queue come all the same. A request may try, too, and that makes one next try, not two."""
    pool = opened(worker)
    pool.start_beforehand(commands("bad a"))
    worker.turn()
    assert names() == ["a"]
    monkeypatch.setattr("time.monotonic", lambda: 1e9)
    assert pool._fork_server(("bad",)) is None
    assert worker.turn() == [0.5, 1.0]
    assert worker.turn() == [2.0]


def test_the_queue_goes_on_where_nothing_is_to_be_awaited() -> None:
    started: list[str] = []
    waiting: list[Callable[[], object]] = []
    queue = StartQueue()

    def start(name: str, is_there: bool) -> Callable[[Callable[[], object]], bool]:
        def begin(settled: Callable[[], object]) -> bool:
            started.append(name)
            waiting.append(settled)
            return is_there

        return begin

    queue.add(start("no", is_there=False))
    queue.add(start("one", is_there=True))
    queue.add(start("nor", is_there=False))
    queue.add(start("other", is_there=True))
    assert started == ["no", "one"]
    waiting[0]()
    assert started == ["no", "one"]
    waiting[1]()
    assert started == ["no", "one", "nor", "other"]


def test_no_descriptors_for_the_pipes(worker: Turns) -> None:
    """The script is to be started cold, which takes fewer; and none is left open."""

    class Full:
        def open_stream(self, fd: int) -> None:
            os.close(fd)
            raise OSError(errno.EMFILE, "Too many open files")

    launch = Launch(argv=("/x.py",), environment={}, cwd="/", stdin=PIPE, stdout=PIPE, warm=("a",))
    program = cast(WarmProgram, SimpleNamespace(conn=Full()))
    before = sorted(os.listdir("/proc/self/fd"))
    assert opened(worker).start(program, launch, ("a",), 2, lambda *_: pytest.fail("not here")) is None
    assert sorted(os.listdir("/proc/self/fd")) == before
