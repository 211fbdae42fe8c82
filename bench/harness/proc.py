"""What the kernel says about processes: parents and children, CPU time, memory. Reads only /proc."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

TICK = 1 / os.sysconf("SC_CLK_TCK")  # seconds; usually 10 ms, so a precise run takes seconds of CPU time


class Stat(NamedTuple):
    """One process, from /proc/PID/stat."""

    parent: int
    cpu: float  # seconds, including those of the children that it has reaped
    state: str


def read_stat(pid: int) -> Stat | None:
    """The process's line, or None if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")  # a process's name is any bytes
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before may hold spaces and parentheses
    return Stat(int(fields[1]), sum(int(field) for field in fields[11:15]) * TICK, fields[0])


def processes() -> dict[int, Stat]:
    """Every process."""
    found = {int(name): read_stat(int(name)) for name in os.listdir("/proc") if name.isdigit()}
    return {pid: stat for pid, stat in found.items() if stat is not None}


def tree(roots: Iterable[int]) -> dict[int, Stat]:
    """The given processes and all of their descendants, parents before children."""
    everyone = processes()
    children: dict[int, list[int]] = {}
    for pid, stat in everyone.items():
        children.setdefault(stat.parent, []).append(pid)
    found: dict[int, Stat] = {}
    waiting = list(roots)
    while waiting:
        pid = waiting.pop(0)
        if pid in everyone and pid not in found:
            found[pid] = everyone[pid]
            waiting += children.get(pid, [])
    return found


def cpu_seconds(roots: Iterable[int]) -> float:
    """CPU time of a tree so far. A child that has ended is counted with the parent that reaped it."""
    return sum(stat.cpu for stat in tree(roots).values())


def run_seconds(pid: int) -> float:
    """CPU time of a process so far, to the nanosecond, without that of its children; 0 if the process is gone."""
    total = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            total += int(Path(f"/proc/{pid}/task/{thread}/schedstat").read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return total / 1e9


def busy_seconds(cores: Iterable[int] | None = None) -> float:
    """CPU time that these cores, or all cores, have spent on anything, including time stolen by the hypervisor."""
    wanted = {"cpu"} if cores is None else {f"cpu{core}" for core in cores}
    total = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in wanted:
            user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
            total += user + nice + system + irq + softirq + steal
    return total * TICK


class Memory(NamedTuple):
    """Memory in KiB: resident; proportional (shared pages divided among their processes); private (not shared)."""

    rss: int
    pss: int
    private: int

    def __add__(self, other: object) -> "Memory":
        if not isinstance(other, Memory):
            return NotImplemented
        return Memory(self.rss + other.rss, self.pss + other.pss, self.private + other.private)


def memory(pid: int) -> Memory:
    """The memory of a process; zero if it is gone or a zombie."""
    fields: dict[str, int] = {}
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return Memory(0, 0, 0)
    for line in lines:
        name, amount, *_ = line.split()
        fields[name.rstrip(":")] = int(amount)
    private = fields["Private_Clean"] + fields["Private_Dirty"] + fields.get("Private_Hugetlb", 0)
    return Memory(fields["Rss"], fields["Pss"], private)


def tree_memory(roots: Iterable[int]) -> Memory:
    """The sum over a tree. The sums of PSS and private memory are exact; that of RSS counts shared pages repeatedly."""
    total = Memory(0, 0, 0)
    for pid in tree(roots):
        total += memory(pid)
    return total
