"""Checkouts of poolsrv, and what compare.py measures of each.

A checkout may be older or newer than this one, so nothing of it is imported here: its server is started as a user would
start it, is ready when it logs so, and is otherwise known from /proc alone.
"""

import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from . import proc
from .environment import compile_programs
from .measure import Load, RunFailed, Sample, Settings, startup, under_load
from .peers import poolsrv_config
from .servers import Launch, Peer, Server
from .web import make_programs

WORKERS = 4  # of the servers whose start and memory are measured
STARTS = 3  # per turn: one start alone is too short a measurement


class NotComparable(Exception):
    """A folder is no checkout, or its Python can't run it; the text says what to do."""


@dataclass(frozen=True)
class Checkout:
    """A folder with poolsrv's source, and the Python that runs it."""

    folder: Path
    python: Path

    @classmethod
    def at(cls, folder: Path, python: Path | None = None) -> "Checkout":
        """The checkout in a folder, with the given Python or that of its .venv.

        :raises NotComparable: the folder is no checkout, or the Python can't run it.
        """
        folder = folder.resolve()
        if not (folder / "poolsrv" / "__main__.py").is_file():
            raise NotComparable(f"{folder} is not a checkout of poolsrv: it has no poolsrv/__main__.py")
        if python is None:
            python = folder / ".venv" / "bin" / "python"
            if not python.exists():
                hint = f"run `make -C {folder} .venv/dev.stamp`, or name its Python with --python"
                raise NotComparable(f"{folder} has no .venv/bin/python: {hint}")
        checkout = cls(folder, Path(os.path.abspath(python)))  # not resolved: a venv's Python is a link
        checkout._check()
        return checkout

    def _check(self) -> None:
        """Whether the Python runs this checkout, and no other installed poolsrv."""
        try:
            done = subprocess.run(
                [self.python, "-c", "import poolsrv; print(poolsrv.__file__)"],
                cwd="/",  # the current folder would come before what is installed
                capture_output=True,
                text=True,
                check=False,
            )
        except OSError as error:
            raise NotComparable(f"{self.python} can't be run: {error.strerror}") from None
        hint = f"install the checkout there: {self.python} -m pip install -e {self.folder}"
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["it printed nothing"])[-1]
            raise NotComparable(f"{self.python} can't import poolsrv ({last}); {hint}")
        found = Path(done.stdout.strip()).resolve()
        if not found.is_relative_to(self.folder / "poolsrv") and not self._is_installed_in(found.parent):
            raise NotComparable(f"{self.python} imports {found}, not {self.folder}/poolsrv; {hint}")

    def _is_installed_in(self, package: Path) -> bool:
        """Whether a package has been installed from this checkout, as it is now: pure, or compiled."""
        files = sorted((self.folder / "poolsrv").rglob("*.py"))
        copies = [package / file.relative_to(self.folder / "poolsrv") for file in files]
        return all(
            copy.is_file() and copy.read_bytes() == file.read_bytes() for file, copy in zip(files, copies, strict=True)
        )

    def commit(self) -> str:
        """The commit as git describes it, or an empty string where git knows none."""
        git = ["git", "-C", str(self.folder), "describe", "--always", "--dirty"]
        try:
            return subprocess.run(git, capture_output=True, text=True, check=False).stdout.strip()
        except OSError:
            return ""

    def server(self, *, workers: int = 1, handler: str = "echo", options: dict[str, str] | None = None) -> Peer:
        """The checkout's server, with a config for one listener."""

        def launch(directory: Path, port: int) -> Launch:
            if handler == "cgi":
                make_programs(directory)
            config = poolsrv_config(port, workers=workers, handler=handler, options=options)
            (directory / "poolsrv.toml").write_text(config)
            return Launch([[str(self.python), "-m", "poolsrv", "--config", "poolsrv.toml"]], ready_line=True)

        return Peer(str(self.folder), launch)


@dataclass(frozen=True)
class Figure:
    """One row of the comparison."""

    title: str
    unit: str
    digits: int


@dataclass(frozen=True)
class Measurement:
    """Figures that come from one run of a checkout's server."""

    figures: dict[str, Figure]
    run: Callable[[Checkout, Settings], Sample]
    prepare: Callable[[], None] = compile_programs


def _run_times(server: Server) -> dict[int, float]:
    """CPU seconds of each of the server's processes."""
    return {pid: proc.run_seconds(pid) for pid in proc.tree(server.pids())}


def _spent(before: dict[int, float], after: dict[int, float]) -> dict[int, float]:
    return {pid: seconds - before.get(pid, 0.0) for pid, seconds in after.items()}


def _loaded(server: Server, settings: Settings, arguments: dict[str, object]) -> tuple[Sample, dict[int, float]]:
    """Put load on a server; returns the result and the CPU seconds of each process.

    :raises RunFailed: some connection or message got no correct answer.
    """
    with Load(server, settings, arguments) as load:
        load.wait_ready()
        before = _run_times(server)
        result = load.go()
        spent = _spent(before, _run_times(server))
    errors = result["errors"] + result["setup_errors"] + result["not_connected"]
    if errors or not result["requests"]:
        raise RunFailed(f"{errors:.0f} errors in {result['requests']:.0f} requests; {server.complaint()}")
    return result, spent


def _echo(checkout: Checkout, settings: Settings) -> Sample:
    requests = settings.scale(300_000, 30_000)
    arguments = {"mode": "echo", "connections": 64, "size": 128, "requests": requests, "warmup": settings.warmup}
    with Server(checkout.server(), settings.cores) as server:
        result, spent = _loaded(server, settings, arguments)
    return {"echo_us": max(spent.values()) * 1e6 / result["requests"]}  # the worker is the only busy process


def _connect(checkout: Checkout, settings: Settings) -> Sample:
    requests = settings.scale(20_000, 2_000)
    arguments = {"mode": "connect", "connections": 16, "requests": requests, "warmup": settings.warmup}
    with Server(checkout.server(), settings.cores) as server:
        result, spent = _loaded(server, settings, arguments)
    return {"connect_us": sum(spent.values()) * 1e6 / result["requests"]}


def _cgi(checkout: Checkout, settings: Settings) -> Sample:
    options = {"protocol": '"http"', "root": '"cgi-bin"', "prefix": '"/cgi-bin/"'}
    request = "GET /cgi-bin/static HTTP/1.0\r\nHost: localhost\r\n\r\n"
    sample = under_load(
        checkout.server(handler="cgi", options=options),
        settings,
        mode="request",
        connections=16,
        requests=settings.scale(4_000, 400),
        send=request,
        min_bytes=len("HTTP/1.1 200 OK\r\n\r\nhello\n"),
    )
    if sample["errors"] or "cpu_us" not in sample:
        raise RunFailed(f"{sample['errors']:.0f} errors in {sample['requests']:.0f} requests")
    return {"cgi_us": sample["cpu_us"], "cgi_rate": sample["rate"]}


def _startup(checkout: Checkout, settings: Settings) -> Sample:
    peer = checkout.server(workers=WORKERS)
    starts = [startup(peer, settings)["start_ms"] for _ in range(settings.scale(STARTS, 1))]
    return {"startup_ms": median(starts)}


def _memory(checkout: Checkout, settings: Settings) -> Sample:
    """The workers' memory before any work. The load comes after: the processes that serve it are the workers."""
    arguments = {"mode": "echo", "connections": 16 * WORKERS, "size": 128, "requests": 20_000}
    with Server(checkout.server(workers=WORKERS), settings.cores) as server:
        memory = {pid: proc.memory(pid) for pid in proc.tree(server.pids())}
        _result, spent = _loaded(server, settings, arguments)
    workers = sorted(memory, key=lambda pid: spent.get(pid, 0.0))[-WORKERS:]
    return {"memory_mib": mean(memory[pid].private for pid in workers) / 1024}


MEASUREMENTS = {
    "echo": Measurement({"echo_us": Figure("echo, worker's CPU", "µs", 2)}, _echo),
    "connect": Measurement({"connect_us": Figure("connection, server's CPU", "µs", 1)}, _connect),
    "cgi": Measurement(
        {
            "cgi_us": Figure("static CGI request, CPU", "µs", 0),
            "cgi_rate": Figure("static CGI requests (more is better)", "/s", 0),
        },
        _cgi,
    ),
    "startup": Measurement({"startup_ms": Figure("start to ready, 4 workers", "ms", 0)}, _startup, lambda: None),
    "memory": Measurement({"memory_mib": Figure("a worker's private memory", "MiB", 2)}, _memory),
}
