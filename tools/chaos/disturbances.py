"""What goes wrong, and a note of each: processes that are killed, stopped or drained, reloads, scarcity."""

from __future__ import annotations

import asyncio
import logging
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import ClassVar, Final

import msgspec

from poolsrv.core.procfs import children_of
from poolsrv.ipc.health import Health, judge

from .damage import SCARCITY, Damage, Trouble
from .limits import Limits, few_descriptors
from .nuisances import Nuisances
from .plan import Event
from .server import LogLine, RunningServer
from .site import Site, Variant

log = logging.getLogger("chaos")

KILL, STOP, CONT, TERM = signal.SIGKILL, signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM
MOST_RECOVERY = 120.0  # seconds; how long it took is in the report


class Disturber:
    """Does to a server what a plan says.

    :param variant: of the config that is in effect.
    :ivar failures: what went wrong that must not: a good reload that failed, a broken one that was taken over.
    """

    KINDS: ClassVar[frozenset[str]]

    def __init__(
        self, server: RunningServer, site: Site, limits: Limits, nuisances: Nuisances, variant: Variant
    ) -> None:
        self.damage = Damage()
        self.failures: list[str] = []
        self.variant = variant
        self._server = server
        self._site = site
        self._limits = limits
        self._nuisances = nuisances
        self._reloading = asyncio.Lock()
        self._held_address = socket.create_server(("127.0.0.1", 0))
        self._stopped: set[int] = set()

    async def run(self, event: Event) -> None:
        """Do it, and note it. Never raises."""
        trouble = Trouble(event.kind, time.monotonic())
        self.damage.troubles.append(trouble)
        try:
            if event.kind in _DO:
                await _DO[event.kind](self, event, trouble)
            else:
                await self._nuisances.run(event, trouble, self.damage)
        except Exception as error:
            self.failures.append(f"{event.kind}: the harness failed: {error!r}")
            log.exception("%s", event.kind)
        trouble.until = trouble.until or time.monotonic()
        log.info(
            "%6.2f %s: %s%s", event.at, event.kind, trouble.what or "done", "" if trouble.tried else " (not tried)"
        )

    def close(self) -> None:
        """Continue what is stopped, and let go of what is held."""
        for pid in self._stopped:
            self._server.send(pid, CONT)
        self._held_address.close()

    async def recovered(self, since: float) -> float | None:
        """Seconds from then until the server is well; None if that takes too long."""
        while time.monotonic() - since < MOST_RECOVERY:
            status = await self._server.status(2.0)
            # A reload that was meant to fail stays on record as the last one.
            if status is not None:
                server = msgspec.structs.replace(status.server, last_reload=None)
                if judge(msgspec.structs.replace(status, server=server))[0] == Health.WELL:
                    return time.monotonic() - since
            await asyncio.sleep(0.05)
        return None

    # --- one process

    async def _signal(self, event: Event, trouble: Trouble, among: list[int], number: signal.Signals) -> int:
        """Signal one of these processes; 0 if there is none."""
        pid = event.choose(among) or 0
        if not pid or not self._server.send(pid, number):
            trouble.tried, trouble.what = False, "there is none"
            return 0
        trouble.what = f"{pid} gets {number.name}"
        return pid

    async def _stop(self, event: Event, trouble: Trouble, among: list[int]) -> None:
        pid = await self._signal(event, trouble, among, STOP)
        if pid:
            self._stopped.add(pid)
            await asyncio.sleep(event.seconds)
            self._server.send(pid, CONT)
            self._stopped.discard(pid)

    async def _kill_worker(self, event: Event, trouble: Trouble) -> None:
        pid = await self._signal(event, trouble, self._server.processes().workers, KILL)
        if pid:
            self.damage.killed.setdefault(pid, (trouble.at, "a worker was killed"))
            trouble.recovery = await self.recovered(trouble.at)

    async def _stop_worker(self, event: Event, trouble: Trouble) -> None:
        await self._stop(event, trouble, self._server.processes().workers)

    async def _drain_worker(self, event: Event, trouble: Trouble) -> None:
        if await self._signal(event, trouble, self._server.processes().workers, TERM):
            trouble.recovery = await self.recovered(trouble.at)

    async def _kill_dispatcher(self, event: Event, trouble: Trouble) -> None:
        pid = await self._signal(event, trouble, self._server.processes().dispatchers, KILL)
        if pid:
            self.damage.killed.setdefault(pid, (trouble.at, "a dispatcher was killed"))
            trouble.recovery = await self.recovered(trouble.at)

    async def _stop_dispatcher(self, event: Event, trouble: Trouble) -> None:
        await self._stop(event, trouble, self._server.processes().dispatchers)

    async def _drain_dispatcher(self, event: Event, trouble: Trouble) -> None:
        if await self._signal(event, trouble, self._server.processes().dispatchers, TERM):
            trouble.recovery = await self.recovered(trouble.at)

    async def _kill_helper(self, event: Event, trouble: Trouble) -> None:
        await self._signal(event, trouble, self._server.processes().helpers, KILL)

    async def _stop_helper(self, event: Event, trouble: Trouble) -> None:
        await self._stop(event, trouble, self._server.processes().helpers)

    async def _end_helper(self, event: Event, trouble: Trouble) -> None:
        await self._signal(event, trouble, self._server.processes().helpers, TERM)

    async def _some_program(self) -> list[int]:
        """Programs, once there are some."""
        for _ in range(20):
            if found := self._server.processes().programs:
                return found
            await asyncio.sleep(0.02)
        return []

    async def _kill_program(self, event: Event, trouble: Trouble) -> None:
        if pid := await self._signal(event, trouble, await self._some_program(), KILL):
            self.damage.programs[pid] = trouble.at

    async def _stop_program(self, event: Event, trouble: Trouble) -> None:
        await self._stop(event, trouble, await self._some_program())

    async def _end_program(self, event: Event, trouble: Trouble) -> None:
        if pid := await self._signal(event, trouble, await self._some_program(), TERM):
            self.damage.programs[pid] = trouble.at

    # --- signals to the server

    async def _reload(self, trouble: Trouble, must_fail: bool = False) -> None:
        """Send HUP, wait for the outcome, and note it if it is the wrong one."""
        began, after = time.monotonic(), len(self._server.lines)
        self._server.process.send_signal(signal.SIGHUP)
        outcome = await self._server.wait_for(_is_outcome, after)
        if outcome is None:
            self.failures.append(f"{trouble.kind} ({trouble.what}): no outcome in the log")
            return
        has_failed = "has failed" in outcome.message
        if has_failed == must_fail:
            trouble.recovery = outcome.at - began
        elif must_fail or not self._was_disturbed(began):
            self.failures.append(f"{trouble.kind} ({trouble.what}): {outcome.message}")

    def _was_disturbed(self, since: float) -> bool:
        """Whether a pool that started since then may have failed for a disturbance."""
        others = self.damage.windows(*SCARCITY, "drain a dispatcher")
        return any(at >= since for at, _ in self.damage.killed.values()) or any(end > since for _, end in others)

    async def apply(self, variant: Variant, trouble: Trouble) -> None:
        """Reload with this config."""
        async with self._reloading:
            self.variant = variant
            self._site.write(variant)
            self.damage.dispatches.append((time.monotonic(), variant.dispatch))
            trouble.what = f"{variant.dispatch}, {variant.workers} workers, {variant.open_files} files each"
            await self._reload(trouble)

    async def _change_dispatch(self, event: Event, trouble: Trouble) -> None:
        await self.apply(replace(self.variant, dispatch=event.detail), trouble)

    async def _reload_other(self, event: Event, trouble: Trouble) -> None:
        await self.apply(self.variant.other(event.pick), trouble)

    async def _reload_broken(self, event: Event, trouble: Trouble) -> None:
        async with self._reloading:
            port = self._held_address.getsockname()[1]
            trouble.what = self._site.write_broken(self.variant, event.pick, port)
            try:
                await self._reload(trouble, must_fail=True)
            finally:
                self._site.write(self.variant)

    async def _add_worker(self, event: Event, trouble: Trouble) -> None:
        self._server.process.send_signal(signal.SIGTTIN)

    async def _remove_worker(self, event: Event, trouble: Trouble) -> None:
        self._server.process.send_signal(signal.SIGTTOU)

    async def _reopen_logs(self, event: Event, trouble: Trouble) -> None:
        self._server.process.send_signal(signal.SIGUSR1)

    # --- scarcity

    async def _few_descriptors_of_worker(self, event: Event, trouble: Trouble) -> None:
        await self._few_descriptors(event, trouble, self._server.processes().workers)

    async def _few_descriptors_of_dispatcher(self, event: Event, trouble: Trouble) -> None:
        await self._few_descriptors(event, trouble, self._server.processes().dispatchers)

    async def _few_descriptors(self, event: Event, trouble: Trouble, among: list[int]) -> None:
        pid = event.choose(among)
        if pid is None:
            trouble.tried, trouble.what = False, "there is none"
            return
        more = int(event.pick * 97) % 12
        with few_descriptors(pid, more) as trouble.tried:
            trouble.what = f"{pid} may open {more} more"
            if trouble.tried:
                await asyncio.sleep(event.seconds)
        self._restore_descriptors(pid)

    def _restore_descriptors(self, pid: int) -> None:
        """What was started meanwhile has inherited the lower limit."""
        for child in children_of(pid):
            with suppress(OSError, ValueError):
                soft, hard = resource.prlimit(child, resource.RLIMIT_NOFILE)
                resource.prlimit(child, resource.RLIMIT_NOFILE, (max(soft, min(hard, self.variant.open_files)), hard))
            self._restore_descriptors(child)

    async def _few_processes(self, event: Event, trouble: Trouble) -> None:
        if not self._limits.has_process_limit:
            trouble.tried, trouble.what = False, "there is no pids cgroup"
            return
        with self._limits.few_processes():
            await asyncio.sleep(event.seconds)
        trouble.until = time.monotonic()
        trouble.recovery = await self.recovered(trouble.until)

    async def _full_disk(self, event: Event, trouble: Trouble) -> None:
        if not self._limits.has_small_disk:
            trouble.tried, trouble.what = False, "there is no small tmpfs"
            return
        with self._limits.full_disk():
            await asyncio.sleep(event.seconds)

    async def _eat_memory(self, event: Event, trouble: Trouble) -> None:
        if not self._limits.has_memory_limit:
            trouble.tried, trouble.what = False, "there is no memory cgroup"
            return
        trouble.what = await self._nuisances.eat_memory()


def _is_outcome(line: LogLine) -> bool:
    return line.role == "supervisor" and (
        ("generation " in line.message and line.message.endswith(" serves")) or "the reload has failed" in line.message
    )


_DO: Final[dict[str, Callable[[Disturber, Event, Trouble], Awaitable[None]]]] = {
    "kill a worker": Disturber._kill_worker,
    "stop a worker": Disturber._stop_worker,
    "drain a worker": Disturber._drain_worker,
    "kill a dispatcher": Disturber._kill_dispatcher,
    "stop a dispatcher": Disturber._stop_dispatcher,
    "drain a dispatcher": Disturber._drain_dispatcher,
    "kill a warm helper": Disturber._kill_helper,
    "stop a warm helper": Disturber._stop_helper,
    "end a warm helper": Disturber._end_helper,
    "kill a program": Disturber._kill_program,
    "stop a program": Disturber._stop_program,
    "end a program": Disturber._end_program,
    "dispatch": Disturber._change_dispatch,
    "reload": Disturber._reload_other,
    "reload a broken config": Disturber._reload_broken,
    "add a worker": Disturber._add_worker,
    "remove a worker": Disturber._remove_worker,
    "reopen the logs": Disturber._reopen_logs,
    "few descriptors for a worker": Disturber._few_descriptors_of_worker,
    "few descriptors for a dispatcher": Disturber._few_descriptors_of_dispatcher,
    "few processes": Disturber._few_processes,
    "a full disk": Disturber._full_disk,
    "a program eats all memory": Disturber._eat_memory,
}
Disturber.KINDS = frozenset(_DO) - {"dispatch"}
