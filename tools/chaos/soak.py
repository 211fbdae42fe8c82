"""``python -m tools.chaos.soak``: SOAK_REQUESTS requests of every kind, without disturbances; is memory flat?

The memory of each process is measured after the first tenth and at the end, each time when the server is idle. More
than 2 % of growth is a failure, and so is a request without its right answer.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import Final

from ..printing import exit_with
from .__main__ import end
from .limits import memory_of
from .load import SHARES, Load, VisitOver, client_of
from .report import table
from .site import Variant
from .stage import Stage, staged

REQUESTS: Final = 1_000_000
GROWTH: Final = 0.02
CLIENTS: Final = 12  # at a time
# Visits of each kind in a round. A visit of echo, lines, local, tls, keep-alive and warm has several requests. So of a
# hundred requests some 80 are cheap (echo, lines, files), and 12 run a program, half of them in a warm interpreter.
ROUND: Final = {
    "echo": 12, "lines": 12, "local": 8, "tls": 4, "keep_alive": 10, "single": 12, "download": 1, "https": 2,
    "proxied": 2, "status": 1, "warm": 4, "cold": 3, "upload": 3, "raw": 2, "inetd": 2,
}  # fmt: skip


async def serve(load: Load, requests: int) -> None:
    """Have so many requests made, in rounds, by several clients at a time."""
    names = [name for name, count in ROUND.items() for _ in range(count)]
    visits = iter(range(sys.maxsize))

    async def client() -> None:
        while load.books.requests.total() < requests:
            visit = client_of(load, names[next(visits) * 37 % len(names)])  # 37: kinds take turns
            try:
                await visit()
            except VisitOver:
                pass

    await asyncio.gather(*(client() for _ in range(CLIENTS)))


def memory_by_process(stage: Stage) -> dict[str, int]:
    """Anonymous memory of each process, by what it is and its pid."""
    found = stage.server.processes()
    pids = {"supervisor": [stage.server.pid], "dispatcher": found.dispatchers, "worker": found.workers}
    pids["warm helper"] = found.helpers
    return {f"{role} {pid}": memory_of(pid).get("Anonymous", 0) for role, each in pids.items() for pid in each}


async def soak(requests: int) -> bool:
    """Run it and print the figures; True if memory is flat and nothing is lost."""
    # The fewest clients; no worker is replaced.
    async with staged(Variant("round-robin", workers=2), 0, keep_visits=False) as stage:
        stage.load.in_a_hurry = True
        began = time.monotonic()
        tenths = []
        for tenth in range(1, 11):
            await serve(stage.load, requests * tenth // 10)
            await stage.settled()
            tenths.append(memory_by_process(stage))
        took = time.monotonic() - began
        first, last = tenths[0], tenths[-1]
        left = await end(stage)
        books = stage.books
        rows = [(kind, count, count - books.answered[kind]) for kind, count in sorted(books.requests.items())]
        print("\n".join(table(("request", "sent", "lost"), rows)), end="\n\n")
        growth = {name: last.get(name, 0) / memory - 1 for name, memory in first.items() if memory}
        print(
            "\n".join(
                table(
                    ("process: KiB after each tenth", *map(str, range(1, 11)), "growth"),
                    [
                        (name, *(str(each.get(name, 0) >> 10) for each in tenths), f"{share:+.2%}")
                        for name, share in growth.items()
                    ],
                )
            ),
            end="\n\n",
        )
        wrong = [f"{each.kind}: {each.why}" for each in books.lost[:20]] + left
        wrong += [f"{name} has grown by {share:.2%}" for name, share in growth.items() if share > GROWTH]
        wrong += [f"{name} has ended" for name in first if name not in last]
        print("\n".join(f"FAILED {each}" for each in wrong))
        total = books.requests.total()
        print(f"{total} requests in {took:.0f} s, {len(books.lost)} lost: {'FAILED' if wrong else 'passed'}")
        return not wrong


def main() -> int:
    """Read the environment, and run."""
    assert ROUND.keys() <= SHARES.keys()
    return 0 if asyncio.run(soak(int(os.environ.get("SOAK_REQUESTS") or REQUESTS))) else 1


if __name__ == "__main__":
    exit_with(main)
