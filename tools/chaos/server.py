"""The server under trial: its processes, its log as it grows, its own figures."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from poolsrv.cli.control_client import NoAnswer, decode
from poolsrv.core.procfs import children_of, command, is_alive
from poolsrv.errors import PoolsrvError
from poolsrv.ipc.stats import Status

LOOK: Final = 0.03  # seconds between two looks at the log
TIMEOUT: Final = 120.0  # seconds to wait for a line


@dataclass(frozen=True)
class LogLine:
    """A line of the server's log.

    :ivar at: when it was written, by the monotonic clock; to the millisecond.
    """

    at: float
    level: str
    role: str
    pid: int
    message: str
    fields: dict[str, Any]

    @property
    def traceback(self) -> str:
        """Empty if there is none."""
        return str(self.fields.get("traceback") or "")


@dataclass
class Processes:
    """The pids of a server by what they are."""

    dispatchers: list[int] = field(default_factory=list)
    workers: list[int] = field(default_factory=list)
    helpers: list[int] = field(default_factory=list)
    programs: list[int] = field(default_factory=list)


class RunningServer:
    """``poolsrv --config FILE`` with a log in JSON.

    :ivar lines: its log so far.
    """

    def __init__(self, config: Path, python: str, groups: Sequence[Path] = ()) -> None:
        self.lines: list[LogLine] = []
        self._config = config
        self._log = config.parent / "server.log"
        enter = "".join(f'echo $$ > "{group}/cgroup.procs"; ' for group in groups)
        command = ["sh", "-c", f'{enter}exec "$@"', "sh", python, "-m", "poolsrv", "--config", str(config)]
        environment = dict(os.environ, TMPDIR=str(config.parent / "tmp"), PYTHONDONTWRITEBYTECODE="1")
        environment.pop("PYTHONPATH", None)
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=config.parent
            )
        self._position = 0
        self._partial = b""
        self._offset = time.time() - time.monotonic()

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self.process.pid

    # --- its log

    def read_log(self) -> None:
        """Read what is new."""
        with self._log.open("rb") as file:
            file.seek(self._position)
            data = file.read()
        self._position += len(data)
        *whole, self._partial = (self._partial + data).split(b"\n")
        for line in whole:
            self.lines.append(self._parse(line))

    def _parse(self, line: bytes) -> LogLine:
        try:
            found = json.loads(line)
            at = datetime.fromisoformat(found["time"]).timestamp() - self._offset
            return LogLine(at, found["level"], found["role"], found["pid"], found["message"], found)
        except (ValueError, KeyError):
            return LogLine(time.monotonic(), "unknown", "", 0, line.decode(errors="backslashreplace"), {})

    async def wait_for(
        self, wanted: Callable[[LogLine], object], after: int = 0, timeout: float = TIMEOUT
    ) -> LogLine | None:
        """Wait for a line, among those from number ``after`` on; None if it does not come in time."""
        deadline = time.monotonic() + timeout
        while True:
            self.read_log()
            for line in self.lines[after:]:
                if wanted(line):
                    return line
            after = len(self.lines)
            if time.monotonic() > deadline or self.process.poll() is not None:
                return None
            await asyncio.sleep(LOOK)

    # --- its figures

    async def status(self, timeout: float = 20.0) -> Status | None:
        """What ``poolsrv status`` shows; None if nobody answers in time."""
        deadline = time.monotonic() + timeout
        path = str(self._config.parent / "run" / "control")
        while time.monotonic() < deadline:
            try:
                async with asyncio.timeout(5.0):
                    reader, writer = await asyncio.open_unix_connection(path, limit=1 << 24)
                    try:
                        writer.write(b"status\n")
                        return decode(path, await reader.readline())
                    finally:
                        writer.close()
            except (OSError, NoAnswer, PoolsrvError, ValueError):
                await asyncio.sleep(0.1)
        return None

    async def addresses(self) -> dict[str, str]:
        """The first address of each listener."""
        status = await self.status()
        if status is None:
            raise RuntimeError(f"the server does not answer; its log: {self._log}")
        return {listener.name: listener.addresses[0] for listener in status.listeners}

    # --- its processes

    def processes(self) -> Processes:
        """All of them but the supervisor, as /proc has them now."""
        found = Processes()
        for dispatcher in _titled(self.pid, "dispatcher"):
            found.dispatchers.append(dispatcher)
            for worker in _titled(dispatcher, "worker"):
                found.workers.append(worker)
                for child in sorted(children_of(worker)):
                    is_helper = "poolsrv_cgi/warm/helper.py" in command(child)
                    (found.helpers if is_helper else found.programs).append(child)
                    if is_helper:
                        found.programs.extend(sorted(children_of(child)))
        return found

    def send(self, pid: int, number: signal.Signals) -> bool:
        """Signal one of its processes; False if that is gone."""
        try:
            descriptor = os.pidfd_open(pid)
        except OSError:
            return False
        try:
            if not self._is_own(pid):  # its number may be another process's by now
                return False
            signal.pidfd_send_signal(descriptor, number)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def _is_own(self, pid: int) -> bool:
        while pid > 1:
            if pid == self.pid:
                return True
            try:
                pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                return False
        return False

    # --- its end

    async def stop(self) -> int | None:
        """Stop it as TERM does.

        :returns: its exit code; None if it does not end.
        """
        self.process.send_signal(signal.SIGTERM)
        for _ in range(int(TIMEOUT / LOOK)):
            if self.process.poll() is not None:
                break
            await asyncio.sleep(LOOK)
        self.read_log()
        return self.process.poll()

    def kill(self) -> None:
        """Kill it and whatever has come from it: all children of this process, which adopts them."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for _ in range(200):
            children = children_of(os.getpid())
            if not children:
                break
            for pid in children:
                with suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
                with suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            time.sleep(0.01)


def leftover_processes() -> list[str]:
    """What the server has left behind and still runs: this process has adopted it."""
    for pid in children_of(os.getpid()):
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)
    return [f"{pid}: {command(pid)}" for pid in sorted(children_of(os.getpid())) if is_alive(pid)]


def _titled(parent: int, role: str) -> list[int]:
    return [pid for pid in sorted(children_of(parent)) if command(pid).startswith(f"poolsrv: {role}")]
