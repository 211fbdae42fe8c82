"""``python -m tools.chaos.soak``: SOAK_REQUESTS requests of every kind, without disturbances; is memory flat?

The memory of each process is measured after the first tenth and at the end, each time when the server is idle. More
than 2 % of growth is a failure, and so is a request without its right answer.

It begins with a rush: as many clients of every kind at once as ever come later, and programs that fail. What a process
has needed once it mostly keeps, in pieces that are free: without the rush, the first tenth has less of it than later
ones, by chance. The books of a server that fill slowly are full then.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Final

from ..printing import exit_with
from ..settings import number_of
from .__main__ import end
from .limits import memory_of
from .load import SHARES, Load, VisitOver, client_of
from .report import table
from .site import Variant
from .stage import FAILED_RUNS, Stage, staged

REQUESTS: Final = 1_000_000
GROWTH: Final = 0.02
CLIENTS: Final = 12  # at a time
RUSH: Final = 4  # clients of each kind at once, at the beginning
RUSHES: Final = 5
# Visits of each kind in a round. A visit of echo, lines, local, tls, keep-alive and warm has several requests. So of a
# hundred requests some 80 are cheap (echo, lines, files), and 12 run a program, half of them in a warm interpreter.
ROUND: Final = {
    "echo": 12, "lines": 12, "local": 8, "tls": 4, "keep_alive": 10, "single": 12, "download": 1, "https": 2,
    "proxied": 2, "status": 1, "warm": 4, "cold": 3, "upload": 3, "raw": 2, "inetd": 2,
}  # fmt: skip

Memory = dict[str, int]  # process to bytes


async def serve(load: Load, requests: int) -> None:
    """Have so many requests made, in rounds, by several clients at a time, of each kind at most as in the rush."""
    names = [name for name, count in ROUND.items() for _ in range(count)]
    visits = iter(range(sys.maxsize))
    room = {name: asyncio.Semaphore(RUSH) for name in ROUND}

    async def client() -> None:
        while load.books.count() < requests:
            name = names[next(visits) * 37 % len(names)]  # 37: kinds take turns
            async with room[name]:
                try:
                    await client_of(load, name)()
                except VisitOver:
                    pass

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


async def rush(load: Load) -> None:
    """Let several clients of each kind come at once, and programs fail."""

    async def client(name: str) -> None:
        try:
            await client_of(load, name)()
        except VisitOver:
            pass

    for _ in range(RUSHES):
        await asyncio.gather(*(client(name) for name in ROUND for _ in range(RUSH)))
    for _ in range(FAILED_RUNS):
        await load.failing()


def memory_by_process(stage: Stage) -> Memory:
    """Anonymous memory of each process, by what it is and its pid."""
    found = stage.server.processes()
    pids = {"supervisor": [stage.server.pid], "dispatcher": found.dispatchers, "worker": found.workers}
    pids["warm helper"] = found.helpers
    return {f"{role} {pid}": memory_of(pid).get("Anonymous", 0) for role, each in pids.items() for pid in each}


def growth_of(tenths: Sequence[Memory]) -> dict[str, float]:
    """By how much the memory of each process has grown, from the end of the first tenth to that of the last."""
    first, last = tenths[0], tenths[-1]
    return {name: last.get(name, 0) / memory - 1 for name, memory in first.items() if memory}


def what_is_wrong(tenths: Sequence[Memory]) -> list[str]:
    """Processes that have grown too much, or ended."""
    wrong = [f"{name} has grown by {share:.2%}" for name, share in growth_of(tenths).items() if share > GROWTH]
    return wrong + [f"{name} has ended" for name in tenths[0] if name not in tenths[-1]]


async def soak(requests: int) -> bool:
    """Run it and print the figures; True if memory is flat and nothing is lost."""
    # The fewest clients; no worker is replaced.
    async with staged(Variant("round-robin", workers=2), 0, keep_visits=False) as stage:
        stage.load.in_a_hurry = True
        began = time.monotonic()
        await rush(stage.load)
        tenths: list[Memory] = []
        for tenth in range(1, 11):
            await serve(stage.load, requests * tenth // 10)
            await stage.settled()
            tenths.append(memory_by_process(stage))
            shown = ", ".join(f"{name} {size >> 10}" for name, size in tenths[-1].items())
            print(f"{tenth} of 10 after {time.monotonic() - began:.0f} s, KiB: {shown}", file=sys.stderr, flush=True)
        took = time.monotonic() - began
        left = await end(stage)
        books = stage.books
        rows = [(kind, count, count - books.answered[kind]) for kind, count in sorted(books.requests.items())]
        print("\n".join(table(("request", "sent", "lost"), rows)), end="\n\n")
        memory = [
            (name, *(str(each.get(name, 0) >> 10) for each in tenths), f"{share:+.2%}")
            for name, share in growth_of(tenths).items()
        ]
        heads = ("process: KiB after each tenth", *map(str, range(1, 11)), "growth")
        print("\n".join(table(heads, memory)), end="\n\n")
        wrong = [f"{each.kind}: {each.why}" for each in books.lost[:20]] + left + what_is_wrong(tenths)
        if wrong:
            wrong.append(f"the server's folder: {stage.folder}")
        else:
            shutil.rmtree(stage.folder, ignore_errors=True)
        print("\n".join(f"FAILED {each}" for each in wrong))
        count = books.count()
        made = f"{count:,} requests on {books.requests.total() - count:,} connections in {took:.0f} s"
        print(f"{made}, {len(books.lost)} lost: {'FAILED' if wrong else 'passed'}")
        return not wrong


def main() -> int:
    """Read the command line and the environment, and run."""
    parser = argparse.ArgumentParser(prog="python -m tools.chaos.soak", description="Is memory flat?")
    parser.epilog = f"Environment: SOAK_REQUESTS ({REQUESTS:,}). See docs/reliability.md."
    parser.parse_args()
    assert ROUND.keys() <= SHARES.keys()
    return 0 if asyncio.run(soak(int(number_of("SOAK_REQUESTS", REQUESTS)))) else 1


if __name__ == "__main__":
    exit_with(main)
