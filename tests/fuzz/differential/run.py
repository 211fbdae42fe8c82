"""Compare: ``python -m tests.fuzz.differential.run [--seconds N] [--seed N] [--number N] [--only NAME]``.

Gives the same bytes to poolsrv's parser, to h11, and to Apache and lighttpd as processes, and counts what they disagree
about. Where another reader ends a message elsewhere, poolsrv has to refuse it; if it does not, the exit status is 1.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial

from tools.printing import exit_with

from .known import known
from .reading import FAULTS, Reading, disagreement, read_by_h11, read_by_poolsrv, shown
from .requests import Maker
from .servers import Backend, listens, read_all, running

SERVERS = ("apache", "lighttpd")
BATCH = 96
AGAIN = 3  # times that a server is asked alone before it is believed: on a busy machine it may only have been slow

Ask = Callable[[list[bytes]], Awaitable[list[Reading]]]


class Comparison:
    """Counts what readers disagree about with poolsrv.

    :ivar faults: lines about what poolsrv should have refused.
    """

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}
        self.faults: list[str] = []
        self.requests = 0

    async def batch(self, numbers: list[int], maker: Maker, readers: dict[str, Ask]) -> None:
        """Compare some requests."""
        data = [maker.request(number) for number in numbers]
        self.requests += len(data)
        ours = [read_by_poolsrv(one) for one in data]
        for name, ask in readers.items():
            counts = self.counts.setdefault(name, Counter())
            for number, one, mine, theirs in zip(numbers, data, ours, await ask(data), strict=True):
                what, reading = disagreement(mine, theirs), theirs
                for _ in range(AGAIN if what in FAULTS else 0):
                    reading = (await ask([one]))[0]
                    what = disagreement(mine, reading)
                    if what not in FAULTS:
                        break
                if what in FAULTS and (why := known(name, one, mine, reading)):
                    what = f"known: {why}"
                counts[what] += 1
                if what in FAULTS:
                    self._fault(name, number, what, one, mine, reading)

    def _fault(self, name: str, number: int, what: str, data: bytes, ours: Reading, theirs: Reading) -> None:
        self.faults.append(name)
        print(f"{name}, request {number}: {what}\n  {data!r}")
        print(
            f"  poolsrv: {shown(ours.messages)}, {ours.end}\n  {name}: {shown(theirs.messages)}, {theirs.end}",
            flush=True,
        )

    def report(self) -> None:
        """Say what there was."""
        for name, counts in self.counts.items():
            print(f"{name}, of {self.requests:,} requests:")
            for what, count in counts.most_common():
                print(f"  {count:>8,}  {what}")


async def by_h11(many: list[bytes]) -> list[Reading]:
    return list(map(read_by_h11, many))


async def compare(seconds: float, seed: int, numbers: list[int], names: list[str]) -> Comparison:
    """Compare for so many seconds, or these requests."""
    comparison, maker = Comparison(), Maker(seed)
    async with Backend() as backend:
        with ExitStack() as stack:
            readers: dict[str, Ask] = {"h11": by_h11}
            for name in names:
                port = stack.enter_context(running(name, backend.port))
                await listens(port)
                readers[name] = partial(read_all, port)
            if numbers:
                await comparison.batch(numbers, maker, readers)
            end, first = time.monotonic() + seconds, 0
            while not numbers and time.monotonic() < end:
                await comparison.batch(list(range(first, first + BATCH)), maker, readers)
                first += BATCH
    return comparison


def main() -> int:
    """Compare as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.differential.run")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--number", type=int, action="append", default=[], help="only this request; may be repeated")
    parser.add_argument("--only", choices=[*SERVERS, "h11"], action="append", default=[])
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the servers have to end, too
    names = [name for name in SERVERS if name in (options.only or SERVERS)]
    comparison = asyncio.run(compare(options.seconds, options.seed, options.number, names))
    comparison.report()
    return int(bool(comparison.faults))


if __name__ == "__main__":
    exit_with(main)
