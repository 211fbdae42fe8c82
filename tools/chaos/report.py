"""The figures of a run, as text."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from statistics import median

from poolsrv.core.words import counted

from .attribution import Attribution
from .books import Books
from .damage import Damage, Trouble
from .plan import Plan
from .verdict import Check, Measurement, Run

MOST_SHOWN = 12  # of what does not hold, for each check


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Rows in columns; the first column to the left, the others to the right."""
    texts = [list(map(str, row)) for row in (head, *rows)]
    widths = [max(len(row[column]) for row in texts) for column in range(len(head))]
    return [
        "  ".join(
            cell.ljust(width) if not at else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in texts
    ]


def requests_table(books: Books, attribution: Attribution) -> list[str]:
    """Requests by kind, with what was lost and why."""
    lost: Counter[str] = Counter(each.kind for each in books.lost)
    unexplained: Counter[str] = Counter(each.kind for each, _ in attribution.unexplained)
    rows = [
        (kind, count, books.answered[kind], lost[kind], unexplained[kind], *_times(books, kind))
        for kind, count in sorted(books.requests.items())
    ]
    rows.append(("all", books.requests.total(), books.answered.total(), len(books.lost), unexplained.total(), "", ""))
    return table(("request", "sent", "answered", "lost", "without cause", "median", "99 %"), rows)


def _times(books: Books, kind: str) -> tuple[str, str]:
    return f"{books.quantile(kind, 0.5) * 1000:.1f} ms", f"{books.quantile(kind, 0.99) * 1000:.0f} ms"


def causes_table(attribution: Attribution) -> list[str]:
    """Why requests were lost."""
    causes: Counter[str] = Counter()
    for (_, cause), count in attribution.causes.items():
        causes[cause] += count
    return table(("why requests were lost", "requests"), causes.most_common())


def troubles_table(damage: Damage) -> list[str]:
    """How often each kind of disturbance has happened, and how soon the server was well again."""
    by_kind: defaultdict[str, list[Trouble]] = defaultdict(list)
    for trouble in damage.troubles:
        by_kind[trouble.kind].append(trouble)
    rows = []
    for kind, found in sorted(by_kind.items()):
        times = [each.recovery for each in found if each.recovery is not None]
        spread = (f"{median(times):.2f} s", f"{max(times):.2f} s") if times else ("", "")
        rows.append((kind, sum(each.tried for each in found), sum(not each.tried for each in found) or "", *spread))
    return table(("disturbance", "times", "not tried", "well again: median", "longest"), rows)


def memory_table(first: Measurement, last: Measurement) -> list[str]:
    """Memory and descriptors at first and at last."""
    rows = [
        (
            role,
            f"{memory / 1024:.0f} KiB",
            f"{last.memory[role] / 1024:.0f} KiB",
            first.descriptors[role],
            last.descriptors[role],
        )
        for role, memory in first.memory.items()
    ]
    return table(("process", "memory at first", "at last", "descriptors at first", "at last"), rows)


def summary(plan: Plan, run: Run, checks: Sequence[Check], kept: str) -> list[str]:
    """The result in short: the last lines of the report.

    :param kept: the folder with all that the run has left, for a run that has failed.
    """
    books, attribution, troubles = run.books, run.attribution, run.damage.troubles
    failed = [check for check in checks if check.wrong]
    explained = sum(attribution.causes.values())
    tried = [trouble for trouble in troubles if trouble.tried]
    times = [trouble.recovery for trouble in tried if trouble.recovery is not None]
    again = f"; well again after {median(times):.1f} s in the median, {max(times):.1f} s at most" if times else ""
    lines = [
        f"{books.requests.total():,} requests and connections, {len(books.lost):,} lost, {explained:,} with a cause",
        f"{counted(len(tried), 'disturbance')} of {counted(len({each.kind for each in tried}), 'kind')}{again}",
    ]
    lines += [f"FAILED {check.name}: {check.wrong[0]}{_more(len(check.wrong) - 1)}" for check in failed]
    result = f"{len(failed)} of {len(checks)} checks FAILED" if failed else f"passed, {len(checks)} checks"
    lines.append(f"seed {plan.seed}, {plan.seconds:g} s: {result}")
    if failed:
        lines.append(f"the log, the journal and the access log: {kept}")
        lines.append(f"the same plan again: CHAOS_SEED={plan.seed} CHAOS_SECONDS={plan.seconds:g} make chaos")
    return lines


def _more(number: int) -> str:
    return f" (and {number} more)" if number else ""


def verdict_lines(checks: Sequence[Check]) -> list[str]:
    """Each check, with what does not hold."""
    lines = []
    for check in checks:
        lines.append(
            f"{'FAILED' if check.wrong else 'holds '} {check.name}" + (f": {check.figures}" if check.figures else "")
        )
        lines += [f"         {each}" for each in check.wrong[:MOST_SHOWN]]
        if len(check.wrong) > MOST_SHOWN:
            lines.append(f"         and {len(check.wrong) - MOST_SHOWN} more")
    return lines
