"""What runs below the workers: launchers, and the programs that these and the workers have started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

from ..core import procfs
from ..ipc.stats import LauncherStats, ProgramStats
from .worker_slot import WorkerSlot

if TYPE_CHECKING:
    from .spawner_process import Launcher, SpawnerProcess

MOST: Final = 200  # programs and launchers that are listed; each lookup blocks the dispatcher for about 40 µs

# A worker's slot and pid; the pids of its children, or of those of its launcher; the launcher.
_Parent: TypeAlias = "tuple[int, int, list[int], Launcher | None]"


def below(
    workers: Mapping[int, WorkerSlot], spawner: SpawnerProcess | None
) -> tuple[list[LauncherStats], list[ProgramStats], int]:
    """List the first ``MOST`` launchers and programs, and count all programs.

    :param workers: by pid.
    :param spawner: None if no programs need launchers.
    :raises OSError: no descriptor is left to look with.
    """
    parents: list[_Parent] = [(slot.index, pid, _children(pid), None) for pid, slot in workers.items()]
    launchers: list[LauncherStats] = []
    if spawner is not None:
        launched: list[_Parent] = [
            (workers[one.worker].index, one.worker, _children(one.pid), one)
            for one in spawner.launchers()
            if one.worker in workers  # else it is about to end
        ]
        launchers = list(_launchers(launched, spawner))
        parents += launched
    return launchers, list(_programs(parents)), sum(len(children) for _, _, children, _ in parents)


def _children(pid: int) -> list[int]:
    return sorted(procfs.children_of(pid))


def _launchers(parents: list[_Parent], spawner: SpawnerProcess) -> Iterator[LauncherStats]:
    for slot, worker, children, launcher in parents[:MOST]:
        if launcher is not None and (used := procfs.usage(launcher.pid)) is not None:
            yield LauncherStats(
                pid=launcher.pid,
                listener=launcher.listener,
                user=spawner.user_names[launcher.listener],
                worker=slot,
                worker_pid=worker,
                age=used.age,
                cpu=used.cpu,
                memory=used.memory,
                programs=len(children),
            )


def _programs(parents: list[_Parent]) -> Iterator[ProgramStats]:
    left = MOST
    for slot, worker, children, launcher in parents:
        for pid in children[:left]:
            used = procfs.usage(pid)
            if used is not None:
                left -= 1
                yield ProgramStats(
                    pid=pid,
                    worker=slot,
                    worker_pid=worker,
                    launcher=launcher.pid if launcher is not None else 0,
                    command=procfs.command(pid) or f"[{used.name}]",
                    age=used.age,
                    cpu=used.cpu,
                    memory=used.memory,
                )
