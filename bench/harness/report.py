"""From samples to results.json, results.md and the plots.

results.json holds every round of every measurement; the other two are made from it alone. A run of some cases replaces
their results, and keeps those of the others with their dates.
"""

import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from .cases import Case
from .environment import PYTHON, REPO, which
from .measure import Sample
from .peers import POOLSRV
from .plot import Bar, bar_plot


@dataclass(frozen=True)
class Column:
    """A figure's name and format, and whether more (1) or less (-1) is better (0: neither)."""

    header: str
    unit: str = ""
    digits: int = 0
    better: int = 0


COLUMNS = {
    "cpu_us": Column("CPU µs per request", "µs", 1, -1),
    "core_us": Column("core µs per request", "µs", 1, -1),
    "rate": Column("requests/s", "/s", 0, 1),
    "p50_us": Column("p50 µs", "µs", 0, -1),
    "p99_us": Column("p99 µs", "µs", 0, -1),
    "busy_percent": Column("server busy %", "%", 0),
    "pss_mib": Column("memory MiB (PSS)", "MiB", 1, -1),
    "errors": Column("errors", "", 0, -1),
    "not_connected": Column("not connected", "", 0, -1),
    "answered": Column("answered", "", 0, 1),
    "failed": Column("failed", "", 0, -1),
    "burst_ms": Column("last answer ms", "ms", 0, -1),
    "mib_per_second": Column("MiB/s", "MiB/s", 0, 1),
    "core_ms_per_gib": Column("core ms per GiB", "ms", 0, -1),
    "start_ms": Column("ms", "ms", 0, -1),
    "processes": Column("processes", "", 0),
    "top_private_mib": Column("first process, private MiB", "MiB", 1, -1),
    "middle_private_mib": Column("its child, private MiB", "MiB", 1, -1),
    "worker_private_mib": Column("worker, private MiB", "MiB", 1, -1),
    "worker_pss_mib": Column("worker, PSS MiB", "MiB", 1, -1),
    "bytes_per_connection": Column("bytes per connection", "B", 0, -1),
}


@dataclass
class Outcome:
    """The results of all rounds of one case."""

    samples: dict[str, list[Sample]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)  # peer -> why it was not measured
    failures: dict[str, list[str]] = field(default_factory=dict)  # peer -> what went wrong in a round


def _commit() -> str:
    git = ["git", "-C", str(REPO)]
    done = subprocess.run([*git, "describe", "--always"], capture_output=True, text=True, check=False)
    outside = [":(exclude)bench/results"]  # the run itself writes it
    changed = subprocess.run([*git, "status", "--porcelain", "--", ".", *outside], capture_output=True, check=False)
    return done.stdout.strip() + ("-dirty" if changed.stdout else "")


def _version(*command: str) -> str:
    """The first line that a program prints about itself, on standard output or standard error."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).strip().splitlines()
    return lines[0].strip() if lines else ""


def environment() -> dict[str, str]:
    """What a reader needs to know of the machine and the versions, without the machine's name."""
    info = Path("/proc/cpuinfo").read_text()
    model = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), "?")
    code = (
        "import importlib.metadata as m; print(', '.join(f'{n} {m.version(n)}' for n in "
        "('uvloop', 'gevent', 'Twisted', 'pluggy', 'msgspec') if any(d.name.lower() == n.lower() for d in "
        "m.distributions())))"
    )
    found = {
        "cpu": f"{model}, {os.cpu_count()} seen",
        "kernel": platform.release(),
        "python": _version(str(PYTHON), "--version"),
        "packages": _version(str(PYTHON), "-c", code),
        "compiler": _version(str(which("cc")), "--version"),
    }
    for program, flag in (("lighttpd", "-v"), ("apache2", "-v"), ("nginx", "-v"), ("wrk", "-v")):
        if path := which(program):
            found[program] = _version(path, flag).removesuffix(" - a light and fast webserver")
    return found


def record(case: Case, outcome: Outcome, **how: object) -> dict[str, Any]:
    """One case, as results.json has it."""
    return {
        "title": case.title,
        "what": case.what,
        "when": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": _commit(),
        "environment": environment(),
        "reference": case.reference,
        "columns": case.columns,
        **how,
        "peers": outcome.samples,
        "missing": outcome.missing,
        "failures": outcome.failures,
    }


def save(directory: Path, records: dict[str, dict[str, Any]], order: list[str]) -> None:
    """Write results.json, results.md and the plots, with other cases' results of earlier runs."""
    file = directory / "results.json"
    known: dict[str, dict[str, Any]] = json.loads(file.read_text())["cases"] if file.exists() else {}
    known.update(records)
    cases = {name: known[name] for name in order if name in known}
    for case in cases.values():  # an earlier version may have had others
        case["columns"] = [key for key in case["columns"] if key in COLUMNS]
    plots = directory / "plots"
    plots.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"cases": cases}, indent=1, ensure_ascii=False) + "\n")
    (directory / "results.md").write_text(markdown(cases))
    for name, case in cases.items():
        (plots / f"{name}.svg").write_text(plot(case))


def _values(case: dict[str, Any], peer: str, key: str) -> list[float]:
    return [sample[key] for sample in case["peers"].get(peer, []) if key in sample]


def _number(value: float, column: Column) -> str:
    digits = column.digits if abs(value) < 1000 else 0
    return f"{value:,.{digits}f}"


def _cell(case: dict[str, Any], peer: str, key: str, *, spread: bool) -> str:
    values, column = _values(case, peer, key), COLUMNS[key]
    if not values:
        return "–"
    if key in ("errors", "not_connected"):  # a median would hide some
        return _number(sum(values), column)
    text = _number(median(values), column)
    if spread and len(values) > 1:
        text += f" ({_number(min(values), column)}–{_number(max(values), column)})"
    return text


def _ratio(case: dict[str, Any], peer: str, key: str) -> str:
    own, reference = _values(case, peer, key), _values(case, case["reference"], key)
    if not own or not reference or not median(reference):
        return "–"
    return f"{median(own) / median(reference):.2f}"


def _table(case: dict[str, Any]) -> list[str]:
    main, *others = case["columns"]
    others = [key for key in others if any(_values(case, peer, key) for peer in case["peers"])]
    way = {-1: "less is better", 1: "more is better"}.get(COLUMNS[main].better, "")
    head = ["server", f"{COLUMNS[main].header} ({way})", f"ratio to {case['reference']}"]
    head += [COLUMNS[key].header for key in others]
    lines = [_row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    for peer in case["peers"]:
        cells = [_cell(case, peer, main, spread=True), _ratio(case, peer, main)]
        cells += [_cell(case, peer, key, spread=False) for key in others]
        name = f"**{peer}**" if peer.startswith(POOLSRV) else peer
        lines.append(_row([name, *cells]))
    return lines


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def markdown(cases: dict[str, dict[str, Any]]) -> str:
    """results.md."""
    lines = [
        "# Results",
        "",
        "Made by `bench/run.py` from `results.json`; [README.md](../README.md) says what each figure means. Each figure"
        " is the median of the rounds, with minimum and maximum in parentheses; errors are the sum over all rounds.",
        "",
    ]
    for name, case in cases.items():
        image = f"![{case['title']}](plots/{name}.svg)"
        lines += [f"## {case['title']}", "", case["what"], "", *_table(case), "", image, ""]
        lines += [f"- {peer}: not measured, {why}" for peer, why in case["missing"].items()]
        for peer, failures in case["failures"].items():
            lines.append(f"- {peer}: {len(failures)} of the rounds failed: {failures[0]}")
        if (other := _disturbance(case)) > 5:
            lines.append(
                f"- Other processes took up to {other:.0f} % of a core meanwhile: treat these figures with care."
            )
        rounds = f"{case['rounds']} round{'s' if case['rounds'] > 1 else ''}"
        lines += [f"- `--case {name}`, {rounds}, {case['when']}, poolsrv {case['commit']}", ""]
    environments = {json.dumps(case["environment"], sort_keys=True): case["environment"] for case in cases.values()}
    lines += ["## Machine and versions", ""]
    for found in environments.values():
        lines += [*(f"- {key}: {value}" for key, value in found.items()), ""]
    return "\n".join(lines)


def _disturbance(case: dict[str, Any]) -> float:
    values = [sample.get("other_percent", 0.0) for samples in case["peers"].values() for sample in samples]
    return max(values, default=0.0)


def plot(case: dict[str, Any]) -> str:
    """The plot of a case's first column."""
    key = case["columns"][0]
    column = COLUMNS[key]
    bars = []
    for peer in case["peers"]:
        if values := _values(case, peer, key):
            text = f"{_number(median(values), column)} {column.unit}".strip()
            bars.append(Bar(peer, median(values), min(values), max(values), text, peer.startswith(POOLSRV)))
    way = {-1: "shorter is better", 1: "longer is better"}.get(column.better, "")
    note = f"{column.header}; {way}; bar: median, line: minimum to maximum"
    return bar_plot(case["title"], note, bars)
