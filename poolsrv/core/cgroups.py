"""Limits of the control group: usable CPUs, and kills by the out-of-memory killer."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path


def usable() -> int:
    """Count the CPUs of the affinity mask, or fewer if a cgroup's quota allows less; a part of a CPU counts as one."""
    allowed = len(os.sched_getaffinity(0))
    quota = min(_quotas(Path("/proc/self")), default=math.inf)
    return max(1, min(allowed, math.ceil(quota))) if math.isfinite(quota) else allowed


def _quotas(process: Path) -> Iterator[float]:
    """Yield every quota, in CPUs, from this process's cgroup up to the root that is mounted here.

    :param process: ``/proc/self``; tests pass a folder of their own.
    """
    try:
        memberships = (process / "cgroup").read_text().splitlines()
        mounts = [line.split(" ") for line in (process / "mountinfo").read_text().splitlines()]
    except OSError:
        return
    # "0::/path" is cgroup v2, "4:cpu,cpuacct:/path" is v1.
    paths = {name: path for _, names, path in (line.split(":", 2) for line in memberships) for name in names.split(",")}
    for mount in mounts:
        # "31 24 0:27 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw": the fields after "-" are type, source, options.
        mounted_part, mount_point = mount[3], Path(mount[4])
        kind, _, options = mount[mount.index("-") + 1 :][:3]
        if kind == "cgroup2" and "" in paths:
            path, read = paths[""], _quota_v2
        elif kind == "cgroup" and "cpu" in options.split(",") and "cpu" in paths:
            path, read = paths["cpu"], _quota_v1
        else:
            continue
        inside = os.path.relpath(path, mounted_part)
        directory = mount_point if inside.startswith("..") else mount_point / inside
        while True:
            yield from read(directory)
            if directory == mount_point:
                break
            directory = directory.parent


def _quota_v2(directory: Path) -> Iterator[float]:
    try:
        quota, period = (directory / "cpu.max").read_text().split()
        if quota != "max":
            yield int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return  # the root group has no such file


def _quota_v1(directory: Path) -> Iterator[float]:
    try:
        quota = int((directory / "cpu.cfs_quota_us").read_text())
        if quota > 0:  # -1: none
            yield quota / int((directory / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return


class OomCounter:
    """Counts the kills of the out-of-memory killer in this process's memory cgroup.

    Reads ``memory.events`` (cgroup v2) or ``memory.oom_control`` (v1). Without such a file the count stays 0.
    """

    def __init__(self) -> None:
        self._file = _find()
        self._seen = self._read()

    def has_killed(self) -> bool:
        """Whether there was a kill since the last call."""
        before, self._seen = self._seen, self._read()
        return self._seen > before

    def _read(self) -> int:
        if self._file is None:
            return 0
        try:
            found = re.search(r"^oom_kill (\d+)$", self._file.read_text(), re.MULTILINE)
        except OSError:
            return 0
        return int(found[1]) if found else 0


def _find(proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> Path | None:
    """Find the counter's file for this process's cgroup (cgroups(7)): ``:memory:`` is version 1, ``0::`` version 2."""
    try:
        lines = proc.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            candidates = [root / "memory" / path.lstrip("/") / "memory.oom_control"]
        elif number == "0":
            candidates = [
                root / path.lstrip("/") / "memory.events",
                root / "unified" / path.lstrip("/") / "memory.events",
            ]
        else:
            continue
        for candidate in candidates:
            if candidate.is_file():
                return candidate
    return None
