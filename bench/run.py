"""Measure poolsrv against the classic C pool, a bare C loop and the servers that people use instead.

`make bench` runs it; `--help` says how to run parts of it, README.md what the figures mean.
"""

import argparse
import os
import time
from fnmatch import fnmatchcase
from pathlib import Path

from harness import environment, report
from harness.cases import Case, all_cases
from harness.environment import BUILD, RESULTS, say
from harness.measure import RunFailed, Sample, Settings
from harness.peers import COMPILED, POOLSRV
from harness.printing import exit_with
from harness.report import COLUMNS, Outcome
from harness.servers import Cores, NotAvailable, Peer, cpus, prepare_process

EPILOG = """\
examples:
  run.py                                      everything: most of an hour
  run.py --quick                              check that everything works (under two minutes; no figure means anything)
  run.py --list                               the cases and their peers
  run.py --case echo-128-64 --rounds 9        one case, more rounds
  run.py --case 'echo-*' --peer poolsrv --peer 'classic pool'
                                              a comparison of two, in all echo cases

The first run compiles the C programs into bench/build/ and makes bench/.venv. As root on Debian it installs missing
packages, unless you pass --no-install; otherwise it reports what is missing and leaves out the peers that need it. The
results go to bench/results/; those of cases that did not run stay as they are. With --peer or --quick they go to
bench/build/part/ instead, since they say less than a whole run.

A quiet machine matters more than many rounds: results.md says where other processes used it.
"""


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Measure poolsrv against reference servers, in turn, on this machine.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--case", action="append", metavar="NAME", help="only this case (repeatable; * and ? as in a shell)")
    add("--peer", action="append", metavar="NAME", help="only this server (repeatable; * and ? as in a shell)")
    add("--rounds", type=int, default=5, help="how many times to measure each server (default 5)")
    add("--seconds", type=float, default=2.0, help="length of a run (default 2; CPU time counts in steps of 10 ms)")
    add("--quick", action="store_true", help="one short round of nearly all: shows that it works, and no more")
    add("--list", action="store_true", help="list cases and peers, run nothing")
    add("--no-install", action="store_true", help="install no Debian packages")
    add("--server-cpus", type=cpus, default="0", metavar="LIST", help="the server's CPUs, 0,1 or 0-3 (default 0)")
    add("--load-cpus", type=cpus, default="1", metavar="LIST", help="the load generator's CPUs (default 1)")
    arguments = parser.parse_args()
    if arguments.rounds < 1 or arguments.seconds <= 0:
        parser.error("--rounds and --seconds must be above 0")
    return arguments


def fits(name: str, patterns: list[str] | None) -> bool:
    """Whether a name is selected."""
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def choose(arguments: argparse.Namespace) -> list[Case]:
    """The selected cases; a name that fits none is an error, which lists the known names."""
    everything = all_cases()
    for pattern in arguments.case or []:
        if not any(fits(case.name, [pattern]) for case in everything):
            raise SystemExit(f"--case {pattern}: no such case; known cases: {', '.join(c.name for c in everything)}")
    peers = sorted({peer.name for case in everything for peer in case.peers})
    for pattern in arguments.peer or []:
        if not any(fits(name, [pattern]) for name in peers):
            raise SystemExit(f"--peer {pattern}: no such peer; known peers: {', '.join(peers)}")
    quick_only = arguments.quick and not arguments.case
    return [case for case in everything if fits(case.name, arguments.case) and (case.quick or not quick_only)]


def why_missing(peer: Peer) -> str:
    """Why a peer can't run, or an empty string."""
    for program in sorted(peer.programs):
        if environment.which(program) is None:
            return f"{program} is not installed (Debian package {environment.PACKAGES[program]})"
    if peer.module and not environment.has_module(peer.module):
        return f"the Python module {peer.module} is not in bench/.venv"
    return ""


def run_case(case: Case, peers: list[Peer], rounds: int, settings: Settings) -> Outcome:
    """All rounds of a case. The peers take turns, so that a slow minute of the machine hits all of them alike."""
    outcome = Outcome()
    for peer in peers:
        if why := why_missing(peer):
            outcome.missing[peer.name] = why
    for turn in range(rounds):
        for peer in peers:
            if peer.name in outcome.missing:
                continue
            try:
                sample = case.run(peer, settings)
            except NotAvailable as error:
                if peer.name in outcome.samples:
                    outcome.failures.setdefault(peer.name, []).append(str(error))
                else:
                    outcome.missing[peer.name] = str(error)
                say(f"  {turn + 1}/{rounds} {peer.name}: not available: {error}")
            except RunFailed as error:
                outcome.failures.setdefault(peer.name, []).append(str(error))
                say(f"  {turn + 1}/{rounds} {peer.name}: failed: {error}")
            else:
                outcome.samples.setdefault(peer.name, []).append(sample)
                say(f"  {turn + 1}/{rounds} {peer.name}: {in_short(case, sample)}")
    return outcome


def in_short(case: Case, sample: Sample) -> str:
    """The first figures of a sample, to show progress."""
    shown = [key for key in case.columns if key in sample][:4]
    if "errors" in sample and "errors" not in shown:
        shown.append("errors")
    return ", ".join(f"{COLUMNS[key].header} {sample[key]:,.{COLUMNS[key].digits}f}" for key in shown)


def main() -> int:
    """Run the selected cases; returns 1 where something failed that should have worked."""
    arguments = parse_arguments()
    cases = choose(arguments)
    if arguments.list:
        for case in cases:
            print(f"{case.name}\n    {case.title}\n    {'; '.join(peer.name for peer in case.peers)}")
        return 0
    begun = time.monotonic()
    prepare_process()
    chosen = {case.name: [peer for peer in case.peers if fits(peer.name, arguments.peer)] for case in cases}
    if not any(chosen.values()):
        say("no selected case has a peer of that name; --list shows the peers of each case")
        return 2
    try:
        environment.compile_programs()
        environment.make_venv()
        if any(peer.name.startswith(COMPILED) for peers in chosen.values() for peer in peers):
            environment.make_compiled_venv()
        if not arguments.no_install:
            wanted = {program for peers in chosen.values() for peer in peers for program in peer.programs}
            environment.install_packages(
                wanted | ({"wrk"} if any(case.name.startswith("cgi-") for case in cases) else set())
            )
    except environment.SetupError as error:
        say(str(error))
        return 1
    cores = Cores(arguments.server_cpus, arguments.load_cpus)
    seconds, warmup, rounds = (0.2, 0.05, 1) if arguments.quick else (arguments.seconds, 0.3, arguments.rounds)
    settings = Settings(cores, seconds, warmup, arguments.quick)
    part = BUILD / "part"
    directory: Path = part if arguments.quick or arguments.peer else RESULTS
    if directory == part:  # a record of one run only
        (part / "results.json").unlink(missing_ok=True)
    bad: list[str] = []
    missing: list[str] = []
    for case in cases:
        if not chosen[case.name]:
            continue
        say(f"{case.name}: {case.title}")
        outcome = run_case(case, chosen[case.name], rounds, settings)
        missing += [f"{case.name}, {peer}: {why}" for peer, why in outcome.missing.items()]
        bad += [f"{case.name}, {peer}: {text[0]}" for peer, text in outcome.failures.items()]
        for peer, samples in outcome.samples.items():  # the other servers' errors are results, ours are faults
            if peer.startswith(POOLSRV) and any(sample.get("errors") for sample in samples):
                bad.append(f"{case.name}, {peer}: errors under load")
        record = report.record(case, outcome, rounds=rounds, seconds=seconds, quick=arguments.quick)
        report.save(directory, {case.name: record}, [known.name for known in all_cases()])
    for text in missing:
        say(f"not available: {text}")
    for text in bad:
        say(f"FAILED: {text}")
    minutes = (time.monotonic() - begun) / 60
    say(f"{len(cases)} cases in {minutes:.1f} minutes; results in {os.path.relpath(directory / 'results.md')}")
    return 1 if bad else 0


if __name__ == "__main__":
    exit_with(main)
