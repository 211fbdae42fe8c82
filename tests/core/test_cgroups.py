"""The CPUs that this process may use: its affinity mask and cgroup quotas."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from poolsrv.core import cgroups


def test_usable_cpus_are_those_of_the_affinity_mask() -> None:
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        assert cgroups.usable() == 1
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.mark.parametrize(
    ("membership", "mount", "files", "expected"),
    [
        ("0::/", "/ {root} rw - cgroup2 cgroup2 rw", {"cpu.max": "150000 100000"}, [1.5]),
        ("0::/", "/ {root} rw - cgroup2 cgroup2 rw", {"cpu.max": "max 100000"}, []),
        # The tightest quota of all groups above counts.
        (
            "0::/a/b",
            "/ {root} rw - cgroup2 cgroup2 rw",
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"},
            [2.0],
        ),
        # A container sees only its own part of the tree.
        ("0::/outer/inner", "/outer {root} rw - cgroup2 cgroup2 rw", {"inner/cpu.max": "50000 100000"}, [0.5]),
        ("0::/elsewhere", "/outer {root} rw - cgroup2 cgroup2 rw", {"cpu.max": "300000 100000"}, [3.0]),
        (
            "4:cpu,cpuacct:/a\n3:memory:/b",
            "/ {root} rw - cgroup cgroup rw,cpu,cpuacct",
            {"a/cpu.cfs_quota_us": "250000", "a/cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "-1"},
            [2.5],
        ),
        ("3:memory:/b", "/ {root} rw - cgroup cgroup rw,memory", {}, []),
    ],
)
def test_a_cgroup_quota_is_found(
    membership: str, mount: str, files: dict[str, str], expected: list[float], tmp_path: Path
) -> None:
    process, root = tmp_path / "proc", tmp_path / "cgroup"
    process.mkdir()
    root.mkdir()
    (process / "cgroup").write_text(membership + "\n")
    (process / "mountinfo").write_text(f"24 1 8:1 / / rw - ext4 /dev/sda rw\n31 24 0:27 {mount.format(root=root)}\n")
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content + "\n")
    assert list(cgroups._quotas(process)) == expected
