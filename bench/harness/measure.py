"""One run of one peer: start it, put load on it, take the figures, stop it.

Each function returns a sample: names and numbers. COLUMNS in report.py explains the names.
"""

import json
import os
import subprocess
import time
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from tempfile import TemporaryDirectory

from . import proc
from .environment import BENCH, BUILD, PYTHON, which
from .peers import poolsrv_command, poolsrv_config
from .servers import Cores, Launch, NotAvailable, Peer, Server, free_port, on_cores, seconds_until_ready
from .static import LARGE, SMALL
from .web import make_programs, public_python

Sample = dict[str, float]
MIB = 1024 * 1024
LEAST_CPU = 0.05  # seconds; below it the clock's ticks would dominate the quotient


# Listed among the peers: limits that no server can beat on one core.
SPAWN_LOOP = Peer("spawn loop, no server", lambda _directory, _port: Launch([]))
CGI_LOOP = Peer("spawn loop with all that CGI needs", lambda _directory, _port: Launch([]))
FORK_LOOP = Peer("fork loop, no server", lambda _directory, _port: Launch([]))


class RunFailed(Exception):
    """The peer ran, but its work can't be measured; the text says why."""


@dataclass(frozen=True)
class Settings:
    """Settings that hold for all runs."""

    cores: Cores
    seconds: float = 2.0
    warmup: float = 0.3
    quick: bool = False

    def scale(self, full: int, quick: int) -> int:
        """The full size of something, or a smaller one for a quick check."""
        return quick if self.quick else full


class Load:
    """The load generator beside a server; it waits before and after the part that is measured."""

    def __init__(self, server: Server, settings: Settings, arguments: dict[str, object]) -> None:
        options = [part for key, value in arguments.items() for part in (f"--{key}", str(value))]
        self.server = server
        program = [str(PYTHON), str(BENCH / "tls_load.py")] if server.launch.tls else [str(BUILD / "load")]
        self.process = subprocess.Popen(
            [*program, "--port", str(server.port), "--sync", *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=on_cores(settings.cores.load),
        )
        server.others.add(self.process.pid)

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_error: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                pipe.close()

    def line(self) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RunFailed("the load generator ended early")
        return line

    def wait_ready(self) -> None:
        """Wait until its connections are open."""
        if self.line() != "ready\n":
            raise RunFailed("the load generator did not get ready")

    def go(self) -> Sample:
        """Start the load, and return its result at its end."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        result: Sample = json.loads(self.line())
        return result

    def run(self) -> Sample:
        """Start the load and take figures around it; the connections stay open until the end of the `with`."""
        self.wait_ready()
        with Window(self.server, self.process.pid) as window:
            result = self.go()
        result["errors"] += result["setup_errors"] + result["not_connected"]
        if not result["requests"] or not result["p99_us"]:  # without answers there is no latency, not one of 0
            del result["p50_us"], result["p99_us"]
        return {**result, **window.figures(result)}


class Window:
    """The time of a measurement: CPU time of the server, of its core, and of everything else."""

    def __init__(self, server: Server, load: int) -> None:
        self.server = server
        self.load = load

    def _now(self) -> tuple[float, float, float, float, float]:
        busy, core = proc.busy_seconds(), proc.busy_seconds(self.server.cores.server)
        return time.monotonic(), self.server.cpu_seconds(), proc.cpu_seconds([self.load]), busy, core

    def __enter__(self) -> "Window":
        self.start = self._now()
        return self

    def __exit__(self, *_error: object) -> None:
        spent = [end - start for start, end in zip(self.start, self._now(), strict=True)]
        self.elapsed, self.cpu, load, busy, self.core = spent
        self.other = max(0.0, busy - load - self.cpu)

    def figures(self, result: Sample) -> Sample:
        """The figures for the requests of a result."""
        if self.server.peer.hides_cpu:  # only what its core did is known
            return per_request(result, None, self.elapsed, self.core)
        sample = per_request(result, self.cpu, self.elapsed, self.core)
        if self.elapsed > 0.5:  # in less time, one clock tick is several per cent
            sample["other_percent"] = 100 * self.other / self.elapsed
        return sample


def per_request(result: Sample, cpu: float | None, elapsed: float, core: float) -> Sample:
    """Rates from totals. Without answers there is no cost per request either."""
    requests, seconds = result["requests"], result["seconds"]
    sample: Sample = {"core_seconds": core}
    if cpu is not None:
        sample.update(cpu_seconds=cpu, busy_percent=100 * cpu / elapsed)
    if requests and seconds:
        sample.update(rate=requests / seconds, core_us=core * 1e6 / requests)
        if cpu is not None and cpu >= LEAST_CPU:
            sample["cpu_us"] = cpu * 1e6 / requests
    return sample


def under_load(peer: Peer, settings: Settings, **arguments: object) -> Sample:
    """A server under the load generator; its memory is taken at the end, with the connections open."""
    arguments = {key.replace("_", "-"): value for key, value in arguments.items()}
    timed = "requests" not in arguments and arguments.get("mode") != "burst"
    if timed:
        arguments = {"seconds": settings.seconds, "warmup": settings.warmup, **arguments}
    with Server(peer, settings.cores) as server:
        if server.launch.send:
            arguments["send"] = server.launch.send
        with Load(server, settings, arguments) as load:
            sample = load.run()
            sample["pss_mib"] = server.memory().pss / 1024
    return sample


def bulk(peer: Peer, settings: Settings, connections: int) -> Sample:
    """Throughput of an echo of an endless stream, each byte counted once."""
    sample = under_load(peer, settings, mode="bulk", connections=connections, size=256 * 1024)
    if sample["bytes"]:
        sample["mib_per_second"] = sample["bytes"] / MIB / sample["seconds"]
        sample["core_ms_per_gib"] = sample["core_seconds"] * 1e3 / (sample["bytes"] / MIB / 1024)
    return sample


def burst(peer: Peer, settings: Settings, connections: int) -> Sample:
    """How many of the connections that are opened at once get an answer, and when the last one does."""
    timeout = settings.scale(5, 2)
    sample = under_load(peer, settings, mode="burst", connections=connections, timeout=timeout)
    sample["answered"], sample["failed"] = sample["requests"], sample["errors"]
    sample["burst_ms"] = sample["seconds"] * 1e3
    return sample


def idle_memory(peer: Peer, settings: Settings, connections: int) -> Sample:
    """Memory of an idle connection in the server's processes (the kernel's own is the same for all)."""
    with Server(peer, settings.cores) as server:
        with Load(server, settings, {"connections": 1, "requests": 100}) as load:  # so that first-use costs are paid
            load.run()
        time.sleep(0.2)
        before = server.memory().pss
        with Load(server, settings, {"connections": 0, "idle": connections}) as load:
            sample = load.run()
            after = server.memory().pss
    connected = sample["connected"]
    if not connected:
        raise RunFailed("no connection was answered")
    return {
        "connected": connected,
        "not_connected": sample["not_connected"],
        "errors": sample["errors"],
        "pss_mib": after / 1024,
        "bytes_per_connection": (after - before) * 1024 / connected,
    }


def roles_memory(peer: Peer, settings: Settings) -> Sample:
    """Memory of each kind of process of a server that has served for a moment.

    A kind is a depth in the process tree: the first process, its children, their children. For several processes at one
    depth it is the mean.
    """
    with Server(peer, settings.cores) as server:
        with Load(server, settings, {"connections": 64, "seconds": 0.3}) as load:
            load.run()
        roots = server.pids()
        everyone = proc.tree(roots)
        depths: dict[int, list[proc.Memory]] = {}
        for pid, stat in everyone.items():
            depth, parent = 0, stat.parent
            while parent in everyone:
                depth, parent = depth + 1, everyone[parent].parent
            depths.setdefault(depth, []).append(proc.memory(pid))
        total = server.memory()
    sample: Sample = {"pss_mib": total.pss / 1024, "processes": len(everyone)}
    kinds = {0: "top", len(depths) - 1: "worker"} if len(depths) > 1 else {0: "top"}
    kinds.update({1: "middle"} if len(depths) > 2 else {})
    for depth, kind in kinds.items():
        found = depths[depth]
        sample[f"{kind}_private_mib"] = sum(memory.private for memory in found) / len(found) / 1024
        sample[f"{kind}_pss_mib"] = sum(memory.pss for memory in found) / len(found) / 1024
    return sample


def programs_per_connection(peer: Peer, settings: Settings) -> Sample:
    """One program for each connection, 16 at a time."""
    if peer is SPAWN_LOOP:
        return loop(peer, settings, "static")
    return under_load(peer, settings, mode="request", connections=16, min_bytes=6)


def cgi(peer: Peer, settings: Settings, program: str) -> Sample:
    """A CGI program under wrk, with 16 connections that are kept alive if the server can do that."""
    if peer in (SPAWN_LOOP, CGI_LOOP, FORK_LOOP):
        return loop(peer, settings, program)
    with Server(peer, settings.cores) as server:
        _must_say_hello(server, f"/cgi-bin/{program}")
        return _under_wrk(server, settings, f"/cgi-bin/{program}")


def small_file(peer: Peer, settings: Settings) -> Sample:
    """A small file under wrk, with 16 connections that are kept alive."""
    with Server(peer, settings.cores) as server:
        _must_answer(server, "/small.txt", SMALL)
        return _under_wrk(server, settings, "/small.txt")


def large_file(peer: Peer, settings: Settings) -> Sample:
    """A large file, again and again, each on a connection of its own, read as fast as it comes."""
    request = "GET /large.bin HTTP/1.0\r\nHost: localhost\r\n\r\n"
    with Server(peer, settings.cores) as server:
        _must_answer(server, "/large.bin", LARGE)  # now it is in the page cache
        arguments = {"mode": "request", "connections": 1, "requests": settings.scale(10, 1), "timeout": 60}
        with Load(server, settings, {**arguments, "send": request, "min-bytes": LARGE}) as load:
            return _throughput(load.run(), server)


def _under_wrk(server: Server, settings: Settings, path: str) -> Sample:
    wrk = which("wrk")
    if wrk is None:
        raise NotAvailable("wrk, which makes the load, is missing (Debian: apt-get install wrk)")

    def command(seconds: float) -> list[str]:
        load = [wrk, "-t1", "-c16", f"-d{max(1, round(seconds))}s", "--timeout", "10s", "-s", str(BENCH / "wrk.lua")]
        return [*load, f"http://127.0.0.1:{server.port}{path}"]

    pin = on_cores(settings.cores.load)
    subprocess.run(command(settings.warmup), stdout=subprocess.DEVNULL, check=False, preexec_fn=pin)
    with subprocess.Popen(command(settings.seconds), stdout=subprocess.PIPE, text=True, preexec_fn=pin) as process:
        server.others.add(process.pid)
        assert process.stdout is not None
        with Window(server, process.pid) as window:
            text = process.stdout.read()
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie still has its CPU times
    memory = server.memory()
    if "\nJSON " not in text:
        raise RunFailed(f"wrk failed: {text.strip()[-200:]}")
    result: Sample = json.loads(text.rsplit("\nJSON ", 1)[1])
    return {**result, **window.figures(result), "pss_mib": memory.pss / 1024}


def _must_answer(server: Server, path: str, size: int) -> None:
    """Make one request, so that a server that answers with an error page is not measured."""
    client = HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        client.request("GET", path)
        answer = client.getresponse()
        length = len(answer.read())
    except (OSError, HTTPException) as error:
        raise RunFailed(f"{path}: {error!r}; {server.complaint()}") from None
    finally:
        client.close()
    if (answer.status, length) != (200, size):
        raise RunFailed(f"{path} answered {answer.status} with {length} bytes; {server.complaint()}")


def _throughput(sample: Sample, server: Server) -> Sample:
    """The figures of a large answer."""
    sample["pss_mib"] = server.memory().pss / 1024
    if sample["requests"]:
        sample["mib_per_second"] = sample["bytes"] / MIB / sample["seconds"]
        sample["core_ms_per_gib"] = sample["core_seconds"] * 1e3 / (sample["bytes"] / MIB / 1024)
    return sample


def _must_say_hello(server: Server, path: str) -> None:
    """Make one request, so that a server that answers with an error page is not measured."""
    for attempt in range(20):  # a FastCGI server behind it may start later
        client = HTTPConnection("127.0.0.1", server.port, timeout=10)
        try:
            client.request("GET", path)
            answer = client.getresponse()
            body = answer.read()
        except (OSError, HTTPException) as error:
            raise RunFailed(f"{path}: {error!r}; {server.complaint()}") from None
        finally:
            client.close()
        if answer.status == 200 and body.strip() == b"hello":
            return
        if attempt == 19 or answer.status < 500:
            raise RunFailed(f"{path} answered {answer.status}, {body[:60]!r}; {server.complaint()}")
        time.sleep(0.1)


def cgi_output(peer: Peer, settings: Settings, size: int) -> Sample:
    """One large response of a CGI program, without Content-Length, over HTTP/1.0."""
    request = f"GET /cgi-bin/big?{size} HTTP/1.0\r\nHost: localhost\r\n\r\n"
    with Server(peer, settings.cores) as server:
        _must_say_hello(server, "/cgi-bin/static")
        arguments = {"mode": "request", "connections": 1, "requests": 1, "timeout": 60}
        with Load(server, settings, {**arguments, "send": request, "min-bytes": size}) as load:
            return _throughput(load.run(), server)


def loop(peer: Peer, settings: Settings, program: str) -> Sample:
    """No server: start a program, or fork for a script, and wait for it, in a loop."""
    slow = program == "script.py" and peer is not FORK_LOOP  # an interpreter starts slowly
    total = settings.scale(4000, 200) // (10 if slow else 1)
    with TemporaryDirectory() as directory:
        file = make_programs(Path(directory)) / program
        if peer is FORK_LOOP:
            command = [str(public_python()), str(BENCH / "peers" / "fork_loop.py")]
        else:
            command = [str(BUILD / ("cgi_loop" if peer is CGI_LOOP else "spawn_loop"))]
        done = subprocess.run(
            [*command, str(total), str(file)],
            capture_output=True,
            text=True,
            check=False,
            preexec_fn=on_cores(settings.cores.server),
        )
    if done.returncode:
        raise RunFailed(done.stderr.strip())
    result: Sample = json.loads(done.stdout)
    cpu = result["cpu_seconds"]
    return {**result, **per_request(result, cpu, result["seconds"], cpu)}


def startup(peer: Peer, settings: Settings) -> Sample:
    """Time to the line with `ready`, or to the end of a command that is not a server."""
    with TemporaryDirectory() as name:
        launch = peer.launch(Path(name), free_port())
        seconds = seconds_until_ready(launch.commands[0], Path(name), settings.cores, launch.ready_line)
    return {"start_ms": seconds * 1e3}


def startup_peers() -> list[Peer]:
    """An interpreter alone, one that imports the usual libraries, and poolsrv."""

    def command(code: str) -> Peer:
        return Peer(f'python -c "{code}"', lambda _directory, _port: Launch([[str(PYTHON), "-c", code]]))

    def poolsrv(directory: Path, port: int) -> Launch:
        return Launch([poolsrv_command(directory, poolsrv_config(port, workers=4))], ready_line=True)

    return [command("import asyncio, ssl"), Peer("poolsrv", poolsrv), command("pass")]
