#!/usr/bin/env python3
"""Compare two checkouts of poolsrv on this machine, in alternating runs.

`--help` says how to call it, README.md what its figures mean.
"""

import argparse
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from harness.checkouts import MEASUREMENTS, Checkout, Figure, Measurement, NotComparable
from harness.environment import REPO, SetupError, say
from harness.measure import RunFailed, Sample, Settings
from harness.printing import exit_with
from harness.servers import Cores, NotAvailable, cpus, prepare_process

EPILOG = f"""\
measurements, which --only selects:
{"".join(f"  {name:<9}{'; '.join(f.title for f in m.figures.values())}{chr(10)}" for name, m in MEASUREMENTS.items())}
examples:
  git worktree add --detach ../base main && make -C ../base .venv/dev.stamp
  compare.py ../base                          this checkout against it: about three minutes
  compare.py ../base --only echo --rounds 15  one measurement, more rounds
  compare.py . .                              a checkout against itself: how noisy the machine is
  compare.py . . --python .venv/bin/python --python .venv-3.14/bin/python
                                              two versions of Python
  compare.py . . --python .venv/bin/python --python .venv-compiled/bin/python
                                              plain Python and the compiled wheel (make test-compiled ARGS=--co)

Each round measures BASE and then NEW, which gives one ratio, NEW to BASE; the table has the median of the ratios. A
first pair of runs, a tenth as long, doesn't count. A difference that is smaller than the spread is noise.
"""


def parse_arguments() -> argparse.Namespace:
    """The command line; `checkouts` are BASE and NEW, checked."""
    parser = argparse.ArgumentParser(
        description="Compare two checkouts of poolsrv on this machine, in alternating runs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("base", type=Path, metavar="BASE", help="the folder of the checkout to compare with")
    add("new", type=Path, metavar="NEW", nargs="?", default=REPO, help="that of the other (default: this checkout)")
    add("--rounds", type=int, default=7, metavar="N", help="how many pairs of runs (default 7)")
    add("--only", action="append", choices=MEASUREMENTS, metavar="NAME", help="only this measurement (repeatable)")
    which = "the Python of BASE; given twice: of BASE, then of NEW (default: each one's .venv)"
    add("--python", action="append", type=Path, default=[], metavar="PATH", help=which)
    add("--server-cpus", type=cpus, metavar="LIST", help="the servers' CPUs, 0,1 or 0-3 (default: all)")
    add("--load-cpus", type=cpus, metavar="LIST", help="the load generator's CPUs (default: all)")
    add("--json", action="store_true", help="print JSON with every figure of every round, not a table")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error("--rounds must be above 0")
    if len(arguments.python) > 2:
        parser.error("--python: there are only two checkouts")
    pythons = [*arguments.python, None, None]
    try:
        arguments.checkouts = [Checkout.at(arguments.base, pythons[0]), Checkout.at(arguments.new, pythons[1])]
    except NotComparable as error:
        parser.error(str(error))
    return arguments


@dataclass
class Outcome:
    """The results of a measurement: one sample of each checkout for each round."""

    base: list[Sample] = field(default_factory=list)
    new: list[Sample] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def ratios(self, key: str) -> list[float]:
        """NEW to BASE, for each round."""
        return [new[key] / base[key] for base, new in zip(self.base, self.new, strict=True)]


def in_short(measurement: Measurement, sample: Sample) -> str:
    """The figures of a sample, to show progress."""
    return ", ".join(f"{sample[key]:.{f.digits}f} {f.unit}" for key, f in measurement.figures.items())


def compare(name: str, checkouts: list[Checkout], rounds: int, cores: Cores) -> Outcome:
    """All rounds of a measurement, after a short one that doesn't count. A round counts only if both runs succeed."""
    measurement, outcome = MEASUREMENTS[name], Outcome()
    measurement.prepare()
    for turn in range(rounds + 1):
        settings = Settings(cores, quick=turn == 0)
        label = f"{name} {turn}/{rounds}" if turn else f"{name}, warm-up"
        try:
            base, new = (measurement.run(checkout, settings) for checkout in checkouts)
        except (NotAvailable, RunFailed) as error:
            say(f"{label}: failed: {error}")
            outcome.failures.append(str(error))
            continue
        say(f"{label}: base {in_short(measurement, base)}; new {in_short(measurement, new)}")
        if turn:
            outcome.base.append(base)
            outcome.new.append(new)
    return outcome


def row(figure: Figure, key: str, outcome: Outcome) -> list[str]:
    """The cells of a figure's row."""
    base, new = (median(sample[key] for sample in samples) for samples in (outcome.base, outcome.new))
    ratios = outcome.ratios(key)
    spread = f"{min(ratios):.3f}..{max(ratios):.3f}"
    values = [f"{value:,.{figure.digits}f} {figure.unit}" for value in (base, new)]
    return [figure.title, *values, f"{median(ratios):.3f}", spread]


def table(outcomes: dict[str, Outcome]) -> str:
    """The table for people: medians of both, and of the ratios."""
    rows = [["", "base", "new", "new/base", "min..max"]]
    for name, outcome in outcomes.items():
        if outcome.base:
            rows += [row(figure, key, outcome) for key, figure in MEASUREMENTS[name].figures.items()]
        else:
            rows += [[f.title, "failed", "failed", "", ""] for f in MEASUREMENTS[name].figures.values()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for cells in rows:
        first, *others = (f"{text:>{width}}" for text, width in zip(cells, widths, strict=True))
        lines.append("  ".join([cells[0].ljust(len(first)), *others]).rstrip())
    return "\n".join(lines)


def record(outcomes: dict[str, Outcome], checkouts: list[Checkout], rounds: int) -> dict[str, Any]:
    """What --json prints."""
    found: dict[str, Any] = {"rounds": rounds}
    for side, checkout in zip(("base", "new"), checkouts, strict=True):
        found[side] = {"folder": str(checkout.folder), "python": str(checkout.python), "commit": checkout.commit()}
    figures = {}
    for name, outcome in outcomes.items():
        for key, figure in MEASUREMENTS[name].figures.items():
            ratios = outcome.ratios(key)
            figures[key] = {
                "title": figure.title,
                "unit": figure.unit,
                "base": [sample[key] for sample in outcome.base],
                "new": [sample[key] for sample in outcome.new],
                "ratios": ratios,
                "ratio": median(ratios) if ratios else None,
                "failures": outcome.failures,
            }
    return {**found, "figures": figures}


def main() -> int:
    """Run the selected measurements; returns 1 if a run failed."""
    arguments = parse_arguments()
    prepare_process()
    everything = frozenset(os.sched_getaffinity(0))
    cores = Cores(arguments.server_cpus or everything, arguments.load_cpus or everything)
    outcomes: dict[str, Outcome] = {}
    for side, checkout in zip(("base", "new"), arguments.checkouts, strict=True):
        say(f"{side}: {checkout.folder} {checkout.commit()}")
    try:
        for name in [name for name in MEASUREMENTS if not arguments.only or name in arguments.only]:
            outcomes[name] = compare(name, arguments.checkouts, arguments.rounds, cores)
    except SetupError as error:
        say(str(error))
        return 1
    if arguments.json:
        print(json.dumps(record(outcomes, arguments.checkouts, arguments.rounds), indent=1))
    else:
        print(table(outcomes))
    return 1 if any(outcome.failures for outcome in outcomes.values()) else 0


if __name__ == "__main__":
    exit_with(main)
