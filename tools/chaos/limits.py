"""What a server can run out of: memory and processes by cgroups, disk by a small tmpfs, descriptors by prlimit(2).

Not every machine allows all of it. What it does not allow is named in the report, and is not counted as tried.
"""

from __future__ import annotations

import os
import resource
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
MEMORY: Final = 900 << 20  # bytes, for the whole server
DISK: Final = "24m"
PROGRAMS_MORE: Final = 1  # processes that may still be started while processes are scarce


class Limits:
    """The limits that this machine allows for one server.

    :param folder: the server's; ``tmp`` in it gets the small disk.
    :ivar missing: what is not available, and why.
    """

    def __init__(self, folder: Path) -> None:
        self.missing: dict[str, str] = {}
        self._name = f"poolsrv-chaos-{os.getpid()}"
        self._tmp = folder / "tmp"
        self._ballasts = count()
        self._memory = self._group("memory", ("memory.limit_in_bytes", "memory.max"), str(MEMORY))
        self._pids = self._group("pids", ("pids.max",), "max")
        self._mounted = self._mount()

    @property
    def groups(self) -> list[Path]:
        """The cgroups that the server enters at its start."""
        return list(dict.fromkeys(group for group in (self._memory, self._pids) if group is not None))

    def _group(self, controller: str, files: tuple[str, ...], value: str) -> Path | None:
        """Make a cgroup with this controller: of version 1 where that has it, else of version 2."""
        own = dict(line.split(":", 2)[1:] for line in Path("/proc/self/cgroup").read_text().splitlines())
        group = ROOT / controller / own.get(controller, "/").lstrip("/") / self._name
        if controller not in own:
            group = ROOT / own.get("", "/").lstrip("/") / self._name
        try:
            group.mkdir(exist_ok=True)
            file = next((group / name for name in files if (group / name).exists()), None)
            if file is None:
                raise FileNotFoundError(f"no {controller} controller in {group}")
            file.write_text(value)
        except OSError as error:
            with suppress(OSError):
                group.rmdir()
            self.missing[f"a {controller} cgroup"] = error.strerror or str(error)
            return None
        return group

    def _mount(self) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=0700", "none", str(self._tmp)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            self.missing["a small tmpfs"] = done.stderr.strip()
        return not done.returncode

    # --- scarcity

    @property
    def has_memory_limit(self) -> bool:
        """Whether a program that eats memory is ended by the kernel before it harms anyone else."""
        return self._memory is not None

    @property
    def has_process_limit(self) -> bool:
        """Whether processes can be made scarce."""
        return self._pids is not None

    @property
    def has_small_disk(self) -> bool:
        """Whether the disk can be filled."""
        return self._mounted

    @contextmanager
    def few_processes(self) -> Iterator[None]:
        """Let the server start next to none."""
        assert self._pids is not None
        now = int((self._pids / "pids.current").read_text())
        (self._pids / "pids.max").write_text(str(now + PROGRAMS_MORE))
        try:
            yield
        finally:
            (self._pids / "pids.max").write_text("max")

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """Leave no room for temporary files."""
        ballast = self._tmp / f"ballast{next(self._ballasts)}"  # another one may be there
        with ballast.open("wb", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
        with ballast.open("ab", buffering=0) as file, suppress(OSError):
            while True:
                file.write(bytes(4096))
        try:
            yield
        finally:
            ballast.unlink()

    def remove(self) -> list[str]:
        """Take it all away, after the server's end.

        :returns: what is left in the temporary files' directory, or can't be removed.
        """
        left = [str(path) for path in self._tmp.rglob("*") if path.is_file()]
        left = [path for path in left if "/captures/" not in path]  # which the server is told to keep
        if self._mounted and subprocess.run(["umount", str(self._tmp)], capture_output=True).returncode:
            left.append(f"{self._tmp} is in use")
        for group in self.groups:
            for _ in range(100):  # a process may need a moment to leave it
                try:
                    group.rmdir()
                    break
                except OSError:
                    time.sleep(0.02)
            else:
                left.append(f"{group} is in use")
        return left


@contextmanager
def few_descriptors(pid: int, more: int) -> Iterator[bool]:
    """Let a process open only so many more.

    :returns: False if it is gone.
    """
    try:
        highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (min(highest + 1 + more, soft), hard))
    except (OSError, ValueError):
        yield False
        return
    try:
        yield True
    finally:
        with suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def memory_of(pid: int) -> dict[str, int]:
    """Bytes of a process's memory (proc_pid_smaps(5)): anonymous, and resident; empty if it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return {}
    found = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return {name: int(found[name].split()[0]) << 10 for name in ("Anonymous", "Rss") if name in found}


def descriptors_of(pid: int) -> list[str]:
    """The targets of a process's open descriptors; empty if it is gone."""
    found = []
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return sorted(found)
