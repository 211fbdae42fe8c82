"""Servers that echo, or that run one program for each connection. Those for HTTP are in web.py."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

from .environment import BENCH, BUILD, COMPILED_VENV, PYTHON, VENV, which
from .servers import Launch, NotAvailable, Peer

POOLSRV = "poolsrv"
COMPILED = "poolsrv, compiled"  # the compiled wheel of this checkout


def poolsrv_config(
    port: int,
    *,
    workers: int = 1,
    dispatch: str = "round-robin",
    plugins: int = 0,
    handler: str = "echo",
    options: Mapping[str, str] | None = None,
) -> str:
    """A config as a user would write it, with all other keys at their defaults. The options' values are TOML."""
    lines = [
        "[pool]",
        f"workers = {workers}",
        f'dispatch = "{dispatch}"',
        "",
        "[listeners.bench]",
        f'bind = "127.0.0.1:{port}"',
        f'handler = "{handler}"',
    ]
    if plugins:
        lines.append(f"plugins = {[f'bench_noop{n}' for n in range(1, plugins + 1)]}")
    if options:
        lines += ["", f"[listeners.bench.{handler}]", *(f"{key} = {value}" for key, value in options.items())]
    return "\n".join(lines) + "\n"


def poolsrv_command(directory: Path, config: str, *, compiled: bool = False) -> list[str]:
    """The command that a user would type; writes the config into the directory."""
    venv = COMPILED_VENV if compiled else VENV
    program = venv / "bin" / "poolsrv"
    if not program.exists():
        raise NotAvailable(f"not installed in bench/{venv.name}")
    (directory / "poolsrv.toml").write_text(config)
    return [str(program), "--config", "poolsrv.toml"]


def poolsrv(
    name: str = POOLSRV,
    *,
    workers: int = 1,
    dispatch: str = "round-robin",
    plugins: int = 0,
    compiled: bool = False,
) -> Peer:
    """poolsrv with its bundled echo handler."""

    def launch(directory: Path, port: int) -> Launch:
        config = poolsrv_config(port, workers=workers, dispatch=dispatch, plugins=plugins)
        return Launch([poolsrv_command(directory, config, compiled=compiled)], ready_line=True)

    return Peer(name, launch)


def poolsrv_over_tls() -> Peer:
    """poolsrv with its bundled echo handler over TLS, with a certificate made for the run."""

    def launch(directory: Path, port: int) -> Launch:
        request = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost"
        files = ["-keyout", "key.pem", "-out", "certificate.pem"]
        subprocess.run([*request.split(), *files], cwd=directory, check=True, capture_output=True)
        # Thousands of handshakes in sequence may take longer than the default idle_timeout.
        config = poolsrv_config(port) + "idle_timeout = 0\n"
        config += '[listeners.bench.tls]\ncertificate = "certificate.pem"\nkey = "key.pem"\n'
        return Launch([poolsrv_command(directory, config)], ready_line=True, tls=True)

    return Peer(f"{POOLSRV}, TLS", launch, programs=frozenset({"openssl"}))


def program(name: str, binary: str, *arguments: object) -> Peer:
    """One of the C references; its first argument is the port."""
    command = [str(BUILD / binary), *map(str, arguments)]
    return Peer(name, lambda _directory, port: Launch([[command[0], str(port), *command[1:]]]))


def python(name: str, file: str, *arguments: str, module: str = "") -> Peer:
    """One of the scripts in bench/peers/; its first argument is the port."""
    script = str(BENCH / "peers" / file)
    return Peer(name, lambda _directory, port: Launch([[str(PYTHON), script, str(port), *arguments]]), module=module)


BARE = program("bare C loop", "echo_min")
CLASSIC = program("classic pool", "classic_pool", 1)
STREAMS = python("asyncio streams", "asyncio_streams.py")
PROTOCOL = python("asyncio Protocol", "asyncio_protocol.py")
UVLOOP = python("uvloop Protocol", "asyncio_protocol.py", "--uvloop", module="uvloop")
GEVENT = python("gevent", "gevent_stream.py", module="gevent")
TWISTED = python("Twisted", "twisted_protocol.py", module="twisted")
FORKING = python("ForkingTCPServer", "forking_server.py")


def bare(processes: int) -> Peer:
    """The bare C loop in several processes, each of which accepts by itself."""
    return program("bare C loop, reuse_port", "echo_min", processes)


def uvloop(processes: int) -> Peer:
    """The same with uvloop."""
    arguments = ("--uvloop", "--processes", str(processes))
    return python("uvloop, reuse_port", "asyncio_protocol.py", *arguments, module="uvloop")


def classic(workers: int) -> Peer:
    """The classic pool with this number of workers."""
    return program("classic pool", "classic_pool", workers)


def passing(workers: int) -> Peer:
    """poolsrv's way of passing connections on, in C."""
    return program("passing pool in C", "passing_pool", workers)


def one_program_per_connection() -> list[Peer]:
    """Servers that run a program for each connection, as inetd does. All run the same static program."""
    static = str(BUILD / "cgi_static")

    def poolsrv_inetd(directory: Path, port: int) -> Launch:
        options = {"protocol": '"inetd"', "program": f"[{static!r}]"}
        config = poolsrv_config(port, handler="cgi", options=options)
        return Launch([poolsrv_command(directory, config)], ready_line=True)

    def poolsrv_line(directory: Path, port: int) -> Launch:
        options = {"protocol": '"line"', "root": repr(str(BUILD))}
        config = poolsrv_config(port, handler="cgi", options=options)
        return Launch([poolsrv_command(directory, config)], ready_line=True, send="cgi_static\r\n")

    def tcpserver(_directory: Path, port: int) -> Launch:
        # No name look-ups, no ident, enough programs at a time, the same queue as the others.
        quiet = ["-q", "-D", "-H", "-R", "-l", "0", "-c", "1000", "-b", "4096"]
        return Launch([[str(which("tcpserver")), *quiet, "127.0.0.1", str(port), static]])

    def socat(_directory: Path, port: int) -> Launch:
        listen = f"TCP4-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog=4096"
        return Launch([[str(which("socat")), listen, f"EXEC:{static}"]])

    def socat_nofork(_directory: Path, port: int) -> Launch:
        listen = f"TCP4-LISTEN:{port},bind=127.0.0.1,reuseaddr,fork,backlog=4096"
        return Launch([[str(which("socat")), listen, f"EXEC:{static},nofork"]])

    def peer(name: str, launch: Callable[[Path, int], Launch], *programs: str) -> Peer:
        return Peer(name, launch, programs=frozenset(programs))

    return [
        peer("tcpserver", tcpserver, "tcpserver"),
        peer("poolsrv", poolsrv_inetd),
        peer("poolsrv, line", poolsrv_line),
        peer("socat", socat, "socat"),
        peer("socat, nofork", socat_nofork, "socat"),
    ]
