"""``python -m tools.chaos``: disturb a server for CHAOS_SECONDS, as CHAOS_SEED has it, and judge what became of it.

Exit status 0 if everything holds, else 1; then the folder with the log, the journal and the access log is kept.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import random
import shutil
import sys
import time

from poolsrv.errors import PoolsrvError

from ..printing import exit_with
from ..settings import number_of
from .attribution import attribute
from .damage import Trouble
from .disturbances import Disturber
from .evidence import Evidence
from .nuisances import Nuisances
from .plan import Plan, make_plan
from .report import causes_table, memory_table, requests_table, summary, table, troubles_table, verdict_lines
from .server import leftover_processes
from .site import Variant
from .stage import Stage, clients_of, staged
from .verdict import Check, Run, judge_run

REHEARSED = 5  # reloads before the first measurement


async def disturb(stage: Stage, plan: Plan, disturber: Disturber) -> None:
    """Let all of the plan happen, each event at its time, while the clients go on."""
    began = time.monotonic()
    running: list[asyncio.Task[None]] = []
    for event in plan.events:
        await asyncio.sleep(max(began + event.at - time.monotonic(), 0))
        if stage.server.process.poll() is not None:
            break
        running.append(asyncio.create_task(disturber.run(event)))
    await asyncio.gather(*running)
    await asyncio.sleep(max(began + plan.seconds - time.monotonic(), 0))


async def run(plan: Plan) -> bool:
    """Run a plan and print what came of it; True if everything holds."""
    baseline = Variant(plan.dispatch)
    async with staged(baseline, plan.seed) as stage:
        nuisances = Nuisances(stage.books, stage.load)
        disturber = Disturber(stage.server, stage.site, stage.limits, nuisances, baseline)
        disturber.damage.dispatches.append((0.0, plan.dispatch))
        # After kernel dispatch the supervisor keeps the sockets of as many workers as there ever were.
        # And it needs most memory while several pools drain at a time, under load; what it has needed once, it keeps.
        await stage.warm_up()
        async with clients_of(stage.load, plan.seed + 1):
            for variant in (Variant("kernel", workers=4), *[baseline] * REHEARSED):
                await disturber.apply(variant, Trouble("reload", 0.0))
        await stage.warm_up()
        await stage.settled()
        first = stage.measure()
        async with clients_of(stage.load, plan.seed):
            await disturb(stage, plan, disturber)
            disturber.close()
        left = [] if await stage.settled() else ["connections or former pools, long after the last client"]
        await disturber.apply(baseline, Trouble("reload", 0.0))
        await stage.warm_up()
        left += [] if await stage.settled() else ["connections or former pools, after the last reload"]
        last, status = stage.measure(), await stage.server.status()
        if status is None:
            raise PoolsrvError("the server does not answer at the end")
        left += await end(stage)
        evidence = Evidence.read(stage.folder, stage.server.lines)
        for pid, at in evidence.left.items():
            disturber.damage.killed.setdefault(pid, (at, "a plugin has ended its worker"))
        attribution = attribute(stage.books, disturber.damage, evidence)
        failures = disturber.failures + nuisances.failures
        judged = Run(stage.books, disturber.damage, evidence, attribution, status, first, last, left, failures)
        checks = judge_run(judged)
        holds = not any(check.wrong for check in checks)
        if holds:
            shutil.rmtree(stage.folder, ignore_errors=True)
        else:
            (stage.folder / "lost").write_text("\n".join(attribution.described))
        show(plan, judged, checks, stage.limits.missing)
        print("\n".join(summary(plan, judged, checks, "" if holds else str(stage.folder))), flush=True)
        return holds


async def end(stage: Stage) -> list[str]:
    """Stop the server.

    :returns: what it has left behind.
    """
    code = await stage.server.stop()
    left = [] if code == 0 else [f"the exit code is {code}"]
    left += [f"a process: {each}" for each in leftover_processes()]
    left += [f"a file: {path}" for path in (stage.folder / "run").iterdir()]
    return left + stage.limits.remove()


def show(plan: Plan, judged: Run, checks: list[Check], missing: dict[str, str]) -> None:
    """Print all figures."""
    parts = [
        requests_table(judged.books, judged.attribution),
        causes_table(judged.attribution),
        troubles_table(judged.damage),
        memory_table(judged.first, judged.last),
    ]
    if missing:
        parts.append(table(("not available here, and not tried", "why"), missing.items()))
    for part in parts:
        print("\n".join(part), end="\n\n")
    print("\n".join(verdict_lines(checks)), end="\n\n")


def main() -> int:
    """Read the command line and the environment, and run."""
    parser = argparse.ArgumentParser(prog="python -m tools.chaos", description="Disturb a server, and judge it.")
    parser.epilog = "Environment: CHAOS_SECONDS (600), CHAOS_SEED (a random one). See docs/reliability.md."
    parser.add_argument("-v", action="store_true", help="say what happens meanwhile")
    level = logging.INFO if parser.parse_args().v else logging.ERROR
    seconds = number_of("CHAOS_SECONDS", 600)
    seed = int(number_of("CHAOS_SEED", random.SystemRandom().randrange(1, 10**6)))
    logging.basicConfig(level=level, format="%(message)s", stream=sys.stdout)
    plan = make_plan(seed, seconds)
    print(
        f"CHAOS_SEED={seed} CHAOS_SECONDS={seconds:g}: {len(plan.events)} events, at first {plan.dispatch}", flush=True
    )
    return 0 if asyncio.run(run(plan)) else 1


if __name__ == "__main__":
    exit_with(main)
