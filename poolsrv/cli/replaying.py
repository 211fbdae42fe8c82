"""Runs a program again as a capture has it, with bounded memory, and says what it did."""

from __future__ import annotations

import os
import resource
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Final, NamedTuple

import msgspec

from ..ipc.captures import Capture

if TYPE_CHECKING:
    from ..core.sandbox import Sandbox

MOST_KEPT: Final = 65536  # bytes of each output: the first ones of stdout, the last ones of stderr
GRACE: Final = 5.0  # seconds from TERM to KILL
STDERR_LINES: Final = 20  # as a record has


class Replayed(NamedTuple):
    """What a program did this time.

    :ivar returncode: exit status, or minus the signal's number.
    :ivar overdue: whether it was ended for its timeout.
    :ivar took: seconds.
    :ivar cpu: seconds of CPU time.
    :ivar output: the first bytes of its standard output.
    :ivar stderr: the last lines of its standard error.
    """

    returncode: int
    overdue: bool
    took: float
    cpu: float
    output: bytes
    stderr: list[str]


def run(capture: Capture, environment: Mapping[str, str]) -> Replayed:
    """Run it, within its limits, and in its sandbox.

    :raises OSError: it can't be started.
    """
    sandbox = _sandbox_of(capture)
    began, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryFile() as stdin:
        stdin.write(capture.body)
        stdin.seek(0)

        def start() -> subprocess.Popen[bytes]:
            return subprocess.Popen(
                capture.command,
                env=environment,
                cwd=capture.directory,
                stdin=stdin if capture.body else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                umask=int(capture.umask, 8) if capture.umask else -1,
                preexec_fn=lambda: _prepare(capture),
                process_group=0,
            )

        try:
            process = start() if sandbox is None else sandbox.start(start)
        finally:
            if sandbox is not None:
                sandbox.close()
    with process:
        output, errors, overdue = _watch(process, began + capture.timeout if capture.timeout else float("inf"))
    took, after = time.monotonic() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    lines = [line.rstrip() for line in errors.decode("utf-8", "backslashreplace").splitlines()]
    stderr = [line for line in lines if line][-STDERR_LINES:]
    return Replayed(process.returncode, overdue, took, cpu, output, stderr)


def _sandbox_of(capture: Capture) -> Sandbox | None:
    if capture.sandbox is None:
        return None
    from ..core.sandbox import Sandbox

    if capture.sandbox.private_tmp and os.geteuid() != 0:
        from ..core.private_tmp import become_able

        become_able()  # this process has one thread, and does nothing else
    return Sandbox(**msgspec.structs.asdict(capture.sandbox))


def _prepare(capture: Capture) -> None:
    """In the child: set its limits and its priority, as far as this user may."""
    for name, value in capture.limits.items():
        number = getattr(resource, name, None)
        if name.startswith("RLIMIT_") and isinstance(number, int):
            hard = resource.getrlimit(number)[1]
            value = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(number, (value, value))
    if capture.nice > 0:
        os.nice(capture.nice)


def _watch(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bytes, bool]:
    """Read both outputs until they end, or the program does; end it at its deadline."""
    assert process.stdout is not None
    assert process.stderr is not None
    kept: dict[IO[bytes], bytes] = {process.stdout: b"", process.stderr: b""}
    overdue = killed = False
    with selectors.DefaultSelector() as selector:
        for stream in kept:
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map() or process.poll() is None:
            events = selector.select(0.05)
            for key, _ in events:
                stream = process.stdout if key.fileobj is process.stdout else process.stderr
                piece = os.read(stream.fileno(), 65536)
                if not piece:
                    selector.unregister(stream)
                elif stream is process.stdout:
                    kept[stream] = (kept[stream] + piece)[:MOST_KEPT]
                else:
                    kept[stream] = (kept[stream] + piece)[-MOST_KEPT:]
            if not events and process.poll() is not None:
                break  # another process may hold the pipes
            now = time.monotonic()
            if now > deadline and not overdue:
                overdue = True
                _signal(process, signal.SIGTERM)
            elif now > deadline + GRACE and not killed:
                killed = True
                _signal(process, signal.SIGKILL)
    process.wait()
    return kept[process.stdout], kept[process.stderr], overdue


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        pass
