"""Captures as files: their modes, their number, a full disk, links, and the end of a worker."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from poolsrv.ipc.captures import BadCapture, Capture, decoded, encoded
from poolsrv.worker.capture_folder import BURST, MOST_AT_A_TIME, CaptureFolder


class Worker:
    """Stands in for a worker; calls in "threads" are made by ``run``."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def run_blocking(self, function: Callable[..., Any], *args: Any, done: Callable[[Future[Any]], object]) -> None:
        def call() -> None:
            future: Future[Any] = Future()
            try:
                future.set_result(function(*args))
            except OSError as error:
                future.set_exception(error)
            done(future)

        self.calls.append(call)

    def run(self) -> None:
        while self.calls:
            self.calls.pop(0)()


def capture(run_id: str = "abcdefgh", **fields: Any) -> Capture:
    usual: dict[str, Any] = {"at": 1.0, "listener": "www", "program": "/a.sh", "protocol": "http"}
    usual |= {"id": run_id, "command": ["/a.sh"], "environment": {"A": "b"}}
    return Capture(**usual | fields)


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def folder(tmp_path: Path, worker: Worker) -> Iterator[CaptureFolder]:
    (tmp_path / "captures").mkdir(mode=0o700)
    found = CaptureFolder(str(tmp_path / "captures"), 3)
    found.open(worker)  # type: ignore[arg-type]
    yield found
    os.close(found._fd)


def files(folder: CaptureFolder) -> list[str]:
    return sorted(os.listdir(folder.path))


def test_bytes_that_are_no_text_survive() -> None:
    given = capture(environment={"A": "\udcff\n\0"}, command=["\udce9"], body=bytes(range(256)), stderr=["\ud800"])
    assert decoded(encoded(given)) == given


GOOD = encoded(capture())
NO_CAPTURES = [b"", b"{}", b"[" * 100_000, b"\xff", b'{"id": 1}', GOOD[:-20]]
NO_CAPTURES += [
    GOOD.replace(b'"timeout": 0.0', b'"timeout": -1'),
    encoded(capture(command=[])),
    encoded(capture(version=2)),
]


@pytest.mark.parametrize("content", NO_CAPTURES)
def test_a_file_that_is_no_capture(content: bytes) -> None:
    with pytest.raises(BadCapture):
        decoded(content)


def test_a_file_is_whole_private_and_written_in_a_thread(folder: CaptureFolder, worker: Worker) -> None:
    former = os.umask(0)
    try:
        run_id = folder.reserve()
        folder.keep(capture(run_id))
        assert files(folder) == []
        worker.run()
    finally:
        os.umask(former)
    path = Path(folder.file_of(run_id))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert decoded(path.read_bytes()) == capture(run_id)


def test_the_oldest_make_room_and_other_files_stay(folder: CaptureFolder, worker: Worker) -> None:
    place = Path(folder.path)
    (place / "notes.txt").write_text("mine")
    (place / "another.run").write_text("mine")
    (place / ".abcdefgh-1.tmp").write_text("half")
    (place / ".abcdefgh-2.tmp").write_text("half")
    os.utime(place / ".abcdefgh-1.tmp", (1.0, 1.0))
    ids = [folder.reserve() for _ in range(5)]
    for number, run_id in enumerate(ids):
        folder.keep(capture(run_id))
        worker.run()
        os.utime(folder.file_of(run_id), (time.time() - 100 + number,) * 2)
    folder.keep(capture(ids[0]))
    worker.run()
    kept = {f"{run_id}.run" for run_id in (ids[0], *ids[3:])}
    assert set(files(folder)) == kept | {"notes.txt", "another.run", ".abcdefgh-2.tmp"}


def test_a_full_disk_costs_the_capture_and_one_line_of_the_log(
    folder: CaptureFolder, worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    with caplog.at_level(logging.WARNING, logger="poolsrv.worker"):
        lost: list[bool] = []
        for _ in range(4):
            folder.keep(capture(folder.reserve()), lost=lambda: lost.append(True))
            worker.run()
    assert files(folder) == []
    assert len(lost) == 4
    assert [record.getMessage() for record in caplog.records] == [
        f"can't capture failed runs in {folder.path}: No space left on device"
    ]
    monkeypatch.undo()
    folder.keep(capture(folder.reserve()))
    worker.run()
    assert len(files(folder)) == 1


def test_no_link_is_followed(folder: CaptureFolder, worker: Worker, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    run_id = folder.reserve()
    Path(folder.file_of(run_id)).symlink_to(victim)
    folder.keep(capture(run_id))
    worker.run()
    assert victim.read_text() == "untouched"
    assert not Path(folder.file_of(run_id)).is_symlink()


def test_a_flood_is_not_captured(
    folder: CaptureFolder, worker: Worker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    ids = [folder.reserve() for _ in range(MOST_AT_A_TIME)]
    assert all(ids)
    assert folder.reserve() == ""
    for run_id in ids:
        folder.keep(capture(run_id))
    worker.run()
    for _ in range(int(BURST) - MOST_AT_A_TIME):
        folder.keep(capture(folder.reserve()))
        worker.run()
    assert folder.reserve() == ""
    now[0] += 1.0
    assert folder.reserve()
    assert [record.getMessage() for record in caplog.records] == ["1 failed run is not captured: more than 5 a second"]


def test_the_end_of_a_worker_loses_none(folder: CaptureFolder, worker: Worker) -> None:
    first, second = folder.reserve(), folder.reserve()
    folder.keep(capture(first))
    folder.close()
    folder.keep(capture(second))
    assert set(files(folder)) == {f"{first}.run", f"{second}.run"}


def test_a_folder_that_is_gone_is_logged_and_nothing_is_captured(
    tmp_path: Path, worker: Worker, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CaptureFolder(str(tmp_path / "none"), 3)
    folder.open(worker)  # type: ignore[arg-type]
    assert folder.reserve() == ""
    assert "can't capture failed runs in" in caplog.text
