"""Look for inputs that break a rule: ``python -m tests.fuzz.run [--seconds N] [--seed N] [--minimise] [TARGET]...``.

Needs atheris (``pip install -e '.[fuzz]'``), which measures which lines an input reaches, and changes those inputs that
reach new ones. Each target runs in a process of its own, begins with its kept corpus, and ends at the first fault. The
input is then printed as a line for the corpus. What it finds that reaches new lines stays in ``build/fuzz``. A seed
gives nearly the same inputs in the first seconds, if the sources are the same and ``build/fuzz`` is empty.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import subprocess
import sys
import time
from pathlib import Path

from tools.printing import exit_with

from . import kept
from .targets import NAMES, load

BUILD = Path(__file__).parents[2] / "build" / "fuzz"
INSTRUMENTED = ["poolsrv", "poolsrv_http", "poolsrv_cgi"]
SLOWEST = 60  # seconds for one input, on a busy machine
MEMORY = 1024  # megabytes
MOST_KEPT = 40  # inputs of a target, the shortest


def main() -> int:
    """Run the targets that the command line names, one after the other."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.run")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(NAMES))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs; 0: another one each time")
    parser.add_argument("--minimise", action="store_true", help="write the kept corpus from build/fuzz")
    parser.add_argument("--inside", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside is not None:
        return fuzz(options.targets[0], options.inside)
    if unknown := set(options.targets) - set(NAMES):
        parser.error(f"unknown target {', '.join(sorted(unknown))}, expected some of: {', '.join(NAMES)}")
    if options.minimise:
        for name in options.targets or NAMES:
            minimise(name)
        return 0
    return max([run(name, options.seconds, options.seed) for name in options.targets or NAMES])


def fuzz(name: str, arguments: list[str]) -> int:
    """In the target's process: give it to atheris, which ends the process."""
    import atheris

    logging.disable()
    with atheris.instrument_imports(include=INSTRUMENTED, enable_loader_override=False):
        target = load(name)
    # libFuzzer starts itself again to minimise, by a shell and by this name.
    atheris.Setup([" ".join(command(name)), *arguments], target.run)
    atheris.Fuzz()
    return 0


def command(name: str, *arguments: str) -> list[str]:
    """The command of a target's process, with arguments of libFuzzer."""
    return [sys.executable, "-m", "tests.fuzz.run", name, "--inside", *arguments]


def run(name: str, seconds: int, seed: int) -> int:
    """Look for so many seconds; 1 where an input breaks a rule."""
    folder = BUILD / name
    words, start = prepare(name)
    began = time.monotonic()
    result = subprocess.run(
        command(
            name,
            str(folder / "found"),
            str(start),
            *words,
            f"-max_len={load(name).longest}",
            f"-max_total_time={seconds}",
            f"-seed={seed}",
            "-reload=0",  # no other process adds inputs, and to look for them takes its time at random
            f"-timeout={SLOWEST}",
            f"-rss_limit_mb={MEMORY}",
            f"-artifact_prefix={folder}/",
            "-print_final_stats=1",
            "-verbosity=0" if sys.stderr.isatty() else "-verbosity=1",
        ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=os.environ | ({"PYTHONHASHSEED": str(seed)} if seed else {}),
        text=True,
        errors="replace",
        check=False,
    )
    (folder / "log").write_text(result.stdout)
    took = time.monotonic() - began
    executions = re.search(r"number_of_executed_units: *(\d+)", result.stdout)
    number = f"{int(executions[1]):,}" if executions else "no"
    print(f"{name}: {took:.0f} s, {number} executions", flush=True)
    if result.returncode == 0:
        return 0
    explain(name, result.stdout)
    return 1


def prepare(name: str) -> tuple[list[str], Path]:
    """Write the dictionary and the kept corpus as libFuzzer reads them."""
    folder = BUILD / name
    start = folder / "start"
    for one in (folder / "found", start):
        one.mkdir(parents=True, exist_ok=True)
    for former in start.iterdir():
        former.unlink()
    target = load(name)
    for number, data in enumerate(kept.read(name)):
        (start / str(number)).write_bytes(data)
    if not target.words:
        return [], start
    words = folder / "words"
    words.write_text("".join(map(entry, target.words)))
    return [f"-dict={words}"], start


def entry(word: bytes) -> str:
    """A line of libFuzzer's dictionary."""
    escaped = "".join(f"\\x{byte:02x}" for byte in word)
    return f'"{escaped}"\n'


def explain(name: str, output: str) -> None:
    """Say what has broken a rule."""
    traceback = re.search(r"=== Uncaught Python exception: ===\n(.*?)\n==\d+==", output, re.DOTALL)
    print(traceback[1] if traceback else output[-3000:])
    artifact = re.search(r"Test unit written to (\S+)", output)
    if artifact:
        print(f"The input, for tests/fuzz/corpus/{name}.txt:")
        print(kept.escaped(Path(artifact[1]).read_bytes()))


def minimise(name: str) -> None:
    """Keep as few inputs as reach all that is reached by those of the corpus and of the latest runs."""
    words, start = prepare(name)
    folder = BUILD / name
    least = folder / "least"
    least.mkdir(exist_ok=True)
    for former in least.iterdir():
        former.unlink()
    arguments = ["-merge=1", *words, f"-max_len={load(name).longest}", f"-timeout={SLOWEST}"]
    subprocess.run(
        command(name, *arguments, str(least), str(start), str(folder / "found")), check=True, capture_output=True
    )
    assert any(least.iterdir()), "libFuzzer has kept nothing"
    inputs = sorted((file.read_bytes() for file in least.iterdir()), key=len)
    kept.write(name, inputs[:MOST_KEPT])
    print(f"{name}: {len(inputs)} inputs reach all, {min(len(inputs), MOST_KEPT)} kept")


if __name__ == "__main__":
    exit_with(main)
