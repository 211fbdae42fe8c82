"""A server on its stage: its folder, its limits, its clients; measured when it is idle."""

from __future__ import annotations

import asyncio
import os
import ssl
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Final

from poolsrv.core.processes import become_subreaper

from .books import Books
from .limits import Limits, descriptors_of, memory_of
from .load import SHARES, Load, Share, VisitOver, client_of, keep_visiting
from .server import RunningServer
from .site import Site, Variant
from .verdict import Measurement

WARM_UP_ROUNDS: Final = 6  # of each kind of client, one after the other
FAILED_RUNS: Final = 40  # so that the book of failed runs is full, and grows no more
SETTLE: Final = 2.0  # seconds until all workers have reported, and idle connections are closed
MOST_WAIT: Final = 40.0  # seconds until all connections are closed, and all pools have left


@dataclass
class Stage:
    """A running server with what belongs to it."""

    folder: Path
    site: Site
    limits: Limits
    server: RunningServer
    books: Books
    load: Load

    async def settled(self) -> bool:
        """Wait until no connection is open, and former pools have left; False if that takes too long."""
        for _ in range(int(MOST_WAIT / 0.2)):
            status = await self.server.status()
            if status is not None and not status.totals.open and not status.server.leaving:
                await asyncio.sleep(SETTLE)
                return True
            await asyncio.sleep(0.2)
        return False

    async def warm_up(self) -> None:
        """A small load, the same each time."""
        self.load.in_a_hurry = True
        for name in SHARES:
            visit = client_of(self.load, name)
            for _ in range(WARM_UP_ROUNDS):
                try:
                    await visit()
                except VisitOver:
                    pass
        for _ in range(FAILED_RUNS):
            await self.load.failing()
        self.load.in_a_hurry = False

    def measure(self) -> Measurement:
        """Memory and descriptors of all processes now."""
        processes, found = self.server.processes(), Measurement()
        roles = {"supervisor": [self.server.pid], "dispatcher": processes.dispatchers, "worker": processes.workers}
        for role, pids in roles.items():
            found.memory[role] = round(fmean(memory_of(pid).get("Anonymous", 0) for pid in pids or [0]))
            found.descriptors[role] = max(len(descriptors_of(pid)) for pid in pids or [0])
            for pid in pids:
                found.listing[f"{role} {pid}"] = descriptors_of(pid)
        return found


@asynccontextmanager
async def staged(variant: Variant, seed: int, *, keep_visits: bool = True) -> AsyncIterator[Stage]:
    """Start a server in a folder of its own; kill it and remove all at the end, if that has not been done."""
    become_subreaper()
    folder = Path(tempfile.mkdtemp(prefix="poolsrv-chaos-"))
    os.chmod(folder, 0o755)
    site = Site(folder, sys.executable)
    limits = Limits(folder)
    site.prepare_temporary_files()
    site.write(variant)
    server = RunningServer(site.config, sys.executable, limits.groups)
    try:
        if await server.wait_for(lambda line: line.message.startswith("ready:")) is None:
            raise RuntimeError("the server does not start:\n" + "\n".join(line.message for line in server.lines))
        trusted = ssl.create_default_context(cafile=str(folder / "certificate.pem"))
        books = Books(keep_visits=keep_visits)
        load = Load(books, await server.addresses(), site.files, trusted, seed)
        yield Stage(folder, site, limits, server, books, load)
    finally:
        server.kill()
        limits.remove()


@asynccontextmanager
async def clients_of(load: Load, seed: int, shares: dict[str, Share] = SHARES) -> AsyncIterator[None]:
    """The clients of all shares, until the end of the block; then what they have begun is finished."""
    stop = asyncio.Event()
    clients = [
        asyncio.create_task(keep_visiting(load, name, share, stop, f"{seed} {name} {number}"))
        for name, share in shares.items()
        for number in range(share.clients)
    ]
    try:
        yield
    finally:
        stop.set()
        await asyncio.gather(*clients)
