"""Whether it was the kernel that has killed a process for want of memory, as far as it tells."""

from __future__ import annotations

import re
from pathlib import Path


class OomCounter:
    """Counts what the out-of-memory killer has killed in this process's memory cgroup.

    From ``memory.events`` (cgroup v2) or ``memory.oom_control`` (v1). Without such a file it sees nothing.
    """

    def __init__(self) -> None:
        self._file = _find()
        self._seen = self._read()

    def has_killed(self) -> bool:
        """Whether it has killed something since the last call."""
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
    """The file of this process's cgroup (cgroups(7)); ``:memory:`` is version 1, ``0::`` version 2."""
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
