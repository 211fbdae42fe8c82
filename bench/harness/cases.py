"""The cases: each has a question, peers, and the run that answers it."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

from . import measure
from .measure import Sample, Settings
from .peers import (
    BARE,
    CLASSIC,
    COMPILED,
    FORKING,
    GEVENT,
    POOLSRV,
    PROTOCOL,
    STREAMS,
    TWISTED,
    UVLOOP,
    bare,
    classic,
    one_program_per_connection,
    passing,
    poolsrv,
    poolsrv_over_tls,
    program,
    uvloop,
)
from .servers import Cores, Peer
from .static import file_servers
from .web import web_servers


@dataclass(frozen=True)
class Case:
    """One table and one plot of the results."""

    name: str
    title: str
    what: str
    peers: list[Peer]
    run: Callable[[Peer, Settings], Sample]
    columns: list[str]  # the first is the figure that is plotted and compared
    reference: str = CLASSIC.name  # the peer that the others are compared to
    quick: bool = True  # whether --quick runs it


ECHO_COLUMNS = ["cpu_us", "rate", "p50_us", "p99_us", "busy_percent", "pss_mib", "errors"]
CONNECT_COLUMNS = ["rate", "cpu_us", "p50_us", "p99_us", "busy_percent", "errors"]
BULK_COLUMNS = ["mib_per_second", "core_ms_per_gib", "busy_percent", "errors"]
CGI_COLUMNS = ["rate", "core_us", "cpu_us", "p50_us", "p99_us", "pss_mib", "errors"]

POOLSRV_ONE = poolsrv()
POOLSRV_COMPILED = poolsrv(COMPILED, compiled=True)
ECHO_PEERS = [CLASSIC, POOLSRV_ONE, POOLSRV_COMPILED, BARE, UVLOOP, PROTOCOL, STREAMS, GEVENT, TWISTED]
POOLSRV_FOUR = poolsrv("poolsrv, 4 workers", workers=4)
LONG_QUEUE = program("classic pool, long queue", "classic_pool", 1, 4096)
BURST_PEERS = [CLASSIC, LONG_QUEUE, POOLSRV_ONE, POOLSRV_FOUR, BARE, UVLOOP, PROTOCOL, GEVENT, TWISTED]
ECHO_SIZES = {"128": (128, "128 bytes"), "16k": (16384, "16 KiB")}


def _under_load(**arguments: object) -> Callable[[Peer, Settings], Sample]:
    return partial(measure.under_load, **arguments)  # type: ignore[arg-type]


def _echo() -> list[Case]:
    return [
        Case(
            f"echo-{name}-{connections}",
            f"Echo of {text}, {connections:,} connection{'s' if connections > 1 else ''} kept open",
            "Each connection has one message in flight at a time. One worker. CPU time is that of the whole server for"
            " each message. Where the server is not busy all the time, the load generator limits the rate.",
            ECHO_PEERS + ([FORKING] if connections == 1 else []),  # it serves at most 40 at a time
            _under_load(mode="echo", connections=connections, size=size),
            ECHO_COLUMNS,
            quick=connections == 64 or name == "128",
        )
        for name, (size, text) in ECHO_SIZES.items()
        for connections in (1, 64, 1000)
    ]


def _connect() -> list[Case]:
    cases = []
    for width in (1, 16):
        for workers in (1, 2, 4):
            peers = [
                classic(workers),
                poolsrv(workers=workers),
                poolsrv("poolsrv, least-connections", workers=workers, dispatch="least-connections"),
                passing(workers),
                BARE,
            ]
            if workers == 1:
                peers += [POOLSRV_COMPILED, UVLOOP, PROTOCOL, STREAMS, GEVENT, TWISTED, FORKING]
            if width > 1:
                peers.insert(1, program("classic pool, long queue", "classic_pool", workers, 4096))
            cases.append(
                Case(
                    f"connect-{width}-{workers}w",
                    f"A connection for each request, {width} at a time, {workers} worker{'s' if workers > 1 else ''}",
                    "Connect, send 128 bytes, get them back, close. All workers share the server's one core, so this"
                    " shows what passing connections on costs, not what more cores gain. A connection without an"
                    " answer for a second is an error. The classic pool loses notes where several connections come at a"
                    " time, and then stalls.",
                    peers,
                    _under_load(mode="connect", connections=width, timeout=1),
                    CONNECT_COLUMNS,
                    reference=CLASSIC.name if width == 1 else BARE.name,
                    quick=workers == 2 or (width, workers) == (16, 1),
                )
            )
    return cases


def _accept(peer: Peer, settings: Settings) -> Sample:
    return measure.under_load(peer, settings, mode="connect", connections=64, timeout=1)


def _accept_on_all_cores(peer: Peer, settings: Settings) -> Sample:
    """Neither the server nor the load is bound to a core."""
    both = settings.cores.server | settings.cores.load
    return _accept(peer, replace(settings, cores=Cores(both, both)))


def _ways() -> list[Case]:
    """New connections by the number of workers, in each way to dispatch them."""
    cases = []
    for workers, run in ((1, _accept), (2, _accept), (4, _accept), (2, _accept_on_all_cores)):
        spread = run is _accept_on_all_cores
        ways = ("round-robin", "least-connections", "kernel")
        peers = [
            poolsrv(f"{name}, {way}", workers=workers, dispatch=way, compiled=name == COMPILED)
            for name in (POOLSRV, COMPILED)
            for way in ways
        ]
        where = (
            "Server and load share all cores, and take turns on them."
            if spread
            else "All workers share the server's one core: CPU time for each connection shows what would be left to"
            " more cores."
        )
        cases.append(
            Case(
                f"accept-{workers}w{'-all-cores' if spread else ''}",
                f"New connections, {workers} worker{'s' if workers > 1 else ''}{', all cores' if spread else ''}",
                f"Connect, send 128 bytes, get them back, close; 64 at a time. {where} With kernel dispatch, as with"
                " reuse_port, each worker accepts by itself.",
                [*peers, uvloop(workers), bare(workers), passing(workers)],
                run,
                CONNECT_COLUMNS,
                reference=uvloop(workers).name,
                quick=workers == 2 and not spread,
            )
        )
    return cases


def _bursts() -> list[Case]:
    return [
        Case(
            f"burst-{count}",
            f"A burst of {count:,} connections at once",
            "All are opened at once, and each sends 128 bytes. How many get an answer within 5 s, and when does the"
            " last one? The classic pool's listening queue is 5 long, as in the textbooks; with a long queue it shows"
            " what its notes alone lose.",
            BURST_PEERS,
            partial(measure.burst, connections=count),
            ["failed", "answered", "burst_ms", "p50_us", "p99_us"],
            quick=count in (10, 4000),
        )
        for count in (10, 100, 1000, 4000)
    ]


def _idle(peer: Peer, settings: Settings) -> Sample:
    idle = settings.scale(10000, 500)
    return measure.under_load(peer, settings, mode="echo", connections=64, idle=idle, size=128)


# Servers by the number of idle connections that they have beside the active ones.
AMONG = {
    count: [poolsrv(f"{POOLSRV}, {count:,} idle"), program(f"bare C loop, {count:,} idle", "echo_min")]
    for count in (100, 9000)
}


def _among_idle(peer: Peer, settings: Settings) -> Sample:
    count = next(count for count, peers in AMONG.items() if peer in peers)
    idle = settings.scale(count, count // 10)
    return measure.under_load(peer, settings, mode="echo", connections=64, idle=idle, size=128)


def _standing() -> list[Case]:
    return [
        Case(
            "idle-growth",
            "64 active connections beside 100 and 9,000 idle ones",
            "As the echo of 128 bytes with 64 connections. Shows what idle connections cost the active ones:"
            " in a good server only space in the processor's caches.",
            [peer for peers in zip(*AMONG.values(), strict=True) for peer in peers],
            _among_idle,
            [*ECHO_COLUMNS, "not_connected"],
            reference=AMONG[100][0].name,
        ),
        Case(
            "idle-10000",
            "64 active connections beside 10,000 idle ones",
            "As the echo of 128 bytes with 64 connections; the idle ones are silent after their first message.",
            ECHO_PEERS,
            _idle,
            [*ECHO_COLUMNS, "not_connected"],
        ),
        *(
            Case(
                f"bulk-{count}",
                f"Bulk transfer, {count} connection{'s' if count > 1 else ''}",
                "The client writes and reads 256 KiB at a time without pause; the bytes that come back count.",
                ECHO_PEERS,
                partial(measure.bulk, connections=count),
                BULK_COLUMNS,
                quick=count == 4,
            )
            for count in (1, 4)
        ),
    ]


def _programs() -> list[Case]:
    what = "16 connections from wrk, kept alive if the server can do that."
    cases = [
        Case(
            "program-per-connection",
            "One program for each connection",
            "As inetd does it: each connection goes to a static program, which writes 60 bytes and ends; 16 at a time.",
            [*one_program_per_connection(), measure.SPAWN_LOOP],
            measure.programs_per_connection,
            CGI_COLUMNS,
            reference="tcpserver",
        ),
        *(
            Case(
                f"cgi-{name}",
                f"CGI over HTTP: {text}",
                f"{what} The program says hello and ends.",
                [
                    *web_servers(warm=name == "python"),
                    measure.SPAWN_LOOP,
                    measure.CGI_LOOP,
                    *([measure.FORK_LOOP] if name == "python" else []),
                ],
                partial(measure.cgi, program=file),
                CGI_COLUMNS,
                reference="lighttpd",
                quick=name != "shell",
            )
            for name, text, file in (
                ("static", "a static C program", "static"),
                ("shell", "a shell script", "shell.sh"),
                ("python", "a Python script", "script.py"),
            )
        ),
    ]
    cases.append(
        Case(
            "cgi-output",
            "CGI over HTTP: 1 GiB of output",
            "One request to a program that writes 1 GiB, read as fast as it comes. The memory is that at the end.",
            web_servers(large=True),
            lambda peer, settings: measure.cgi_output(peer, settings, settings.scale(1 << 30, 16 << 20)),
            ["mib_per_second", "core_ms_per_gib", "pss_mib", "errors"],
            reference="lighttpd",
        )
    )
    return cases


def _files() -> list[Case]:
    return [
        Case(
            "file-1k",
            "A file of 1 KiB over HTTP",
            "16 connections from wrk, kept alive.",
            file_servers(),
            measure.small_file,
            CGI_COLUMNS,
            reference="nginx",
        ),
        Case(
            "file-100m",
            "A file of 100 MiB over HTTP",
            "Ten times, one after the other, read as fast as it comes; it is in the page cache.",
            file_servers(),
            measure.large_file,
            ["mib_per_second", "core_ms_per_gib", "pss_mib", "errors"],
            reference="nginx",
        ),
    ]


def _costs() -> list[Case]:
    with_plugins = [
        poolsrv(f"poolsrv, {count} further plugin{'s' if count > 1 else ''}", plugins=count) for count in (1, 3)
    ]
    return [
        Case(
            "plugins",
            "What further plugins cost",
            "Echo of 128 bytes, 64 connections; the further plugins do nothing. One implementation is called directly,"
            " several in a loop.",
            [POOLSRV_ONE, *with_plugins],
            _under_load(mode="echo", connections=64, size=128),
            ECHO_COLUMNS,
            reference=POOLSRV,
        ),
        Case(
            "startup",
            "Time to start",
            "From the command to the log line `ready` with 4 workers; the other commands end by themselves. All run on"
            " the server's one core, with bytecode compiled beforehand.",
            measure.startup_peers(),
            measure.startup,
            ["start_ms"],
            reference=measure.startup_peers()[0].name,
        ),
        Case(
            "memory",
            "Memory",
            "After some work with 64 connections, which are still open. Private memory is shared with no other"
            " process.",
            [CLASSIC, POOLSRV_ONE, POOLSRV_FOUR, BARE, UVLOOP, PROTOCOL, GEVENT, TWISTED],
            measure.roles_memory,
            ["pss_mib", "processes", "top_private_mib", "middle_private_mib", "worker_private_mib", "worker_pss_mib"],
        ),
        Case(
            "memory-idle",
            "Memory for each idle connection",
            "The growth of the server's processes by 9,000 connections that are silent after one answer, for each of"
            " them.",
            [BARE, POOLSRV_ONE, poolsrv_over_tls(), UVLOOP, PROTOCOL, STREAMS, GEVENT, TWISTED],
            lambda peer, settings: measure.idle_memory(peer, settings, settings.scale(9000, 500)),
            ["bytes_per_connection", "pss_mib", "not_connected", "errors"],
            reference=UVLOOP.name,
        ),
    ]


def all_cases() -> list[Case]:
    """Every case, in the order of the results."""
    return [*_echo(), *_connect(), *_ways(), *_bursts(), *_standing(), *_programs(), *_files(), *_costs()]
