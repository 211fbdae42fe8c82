"""The config file's tables as structs: every key with its type, its bounds and its default, declared once.

The bounds are the contract of docs/configuration.md.

The annotations are types here, not strings: msgspec would have to evaluate each of them at each start.
"""

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from ..core.privileges import Identity
from ..net.access_list import Network
from ..net.addresses import Address
from .decoder import keys

Dispatch: TypeAlias = Literal["round-robin", "least-connections", "kernel"]
HalfClose: TypeAlias = Literal["finish", "abort", "timely"]
WhenFull: TypeAlias = Literal["wait", "refuse"]
LogFormat: TypeAlias = Literal["text", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

LONGEST_TIME = 1_000_000_000  # seconds, 31 years: timers take no more
MOST_DRAINING = 1000
MOST_WORKERS = 1024  # a larger number is a typing error
MOST_BACKLOG = 65535
APART = -1  # the number of the worker for the listeners that no other worker serves
LONGEST_KEEPALIVE = 32767  # seconds, MAX_TCP_KEEPIDLE of linux/tcp.h
LONGEST_USER_TIMEOUT = 2_147_483  # seconds; tcp(7) has it in milliseconds, in an int
HIGHEST_RATE = 1_000_000  # a second
MOST_RUNS = 500  # as the supervisor keeps, ipc/kept_runs.py

Seconds: TypeAlias = Annotated[
    float, msgspec.Meta(ge=0, le=LONGEST_TIME, extra={"words": f"a number of seconds, from 0 to {LONGEST_TIME}"})
]
StartTime: TypeAlias = Annotated[
    float, msgspec.Meta(ge=1, le=LONGEST_TIME, extra={"words": f"a number of seconds, from 1 to {LONGEST_TIME}"})
]
UserTimeout: TypeAlias = Annotated[
    float,
    msgspec.Meta(
        ge=0, le=LONGEST_USER_TIMEOUT, extra={"words": f"a number of seconds, from 0 to {LONGEST_USER_TIMEOUT}"}
    ),
]
PerSecond: TypeAlias = Annotated[
    float, msgspec.Meta(ge=0, le=HIGHEST_RATE, extra={"words": f"a number a second, from 0 to {HIGHEST_RATE}"})
]
Number: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
AtLeastOne: TypeAlias = Annotated[int, msgspec.Meta(ge=1)]
Workers: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MOST_WORKERS)]


class PoolTable(msgspec.Struct, frozen=True):
    """The keys of ``[pool]``, as the file has them.

    :ivar workers: the number of workers; ``"auto"`` is the number of usable CPUs.
    :ivar dispatch: how a worker is chosen for a new connection.
    :ivar graceful_timeout: seconds that open connections get on stop and reload.
    :ivar drain_notice: seconds between the signal to stop and the end of accepting: ``/readyz`` says no meanwhile.
    :ivar start_timeout: seconds within which every worker of a new pool has to serve.
    :ivar slow_hook: seconds from which on a hook or a callback of a plugin is logged as slow; 0 is never.
    :ivar hang_timeout: seconds of silence after which a worker is killed and replaced; 0 is never.
    :ivar max_draining_pools: former pools that may still have connections; beyond that, the oldest is ended.
    :ivar max_boot_failures: failed starts of a worker in a row after which a pool that never served gives up.
    :ivar recycle_after_connections: connections after which a worker is replaced, roughly; 0 is never.
    :ivar max_worker_memory: bytes of resident memory above which a worker is replaced; 0 is never.
    :ivar pidfile: the file that has the supervisor's pid.
    :ivar control: the unix socket that answers ``status``.
    :ivar runs: records of program runs that are kept for ``poolsrv runs``, and as many of failed and slow ones; 0:
        none.
    :ivar user: name or number of the user that the pool runs as; None: unchanged.
    :ivar group: name or number of its group; None: the user's.
    :ivar umask: the pool's umask; None: unchanged.
    :ivar chdir: the pool's working directory; None: unchanged.
    :ivar no_new_privs: whether programs are kept from gaining privileges; None: if ``user`` is set.
    """

    workers: Workers | Literal["auto"] = "auto"
    dispatch: Dispatch = "round-robin"
    graceful_timeout: Seconds = 30.0
    drain_notice: Seconds = 0.0
    start_timeout: StartTime = 60.0
    hang_timeout: Seconds = 0.0
    slow_hook: Seconds = 0.1
    max_draining_pools: Annotated[int, msgspec.Meta(ge=1, le=MOST_DRAINING)] = 4
    max_boot_failures: AtLeastOne = 5
    recycle_after_connections: Number = 0
    max_worker_memory: Number = 0
    pidfile: Path | None = None
    control: Path | None = None
    runs: Annotated[int, msgspec.Meta(ge=0, le=MOST_RUNS)] = 200
    user: str | Number | None = None
    group: str | Number | None = None
    umask: int | None = None
    chdir: Path | None = None
    no_new_privs: bool | None = None


class PoolConfig(PoolTable, frozen=True, kw_only=True):
    """``[pool]``, with what the file leaves to the machine decided.

    :ivar identity: what ``user`` and ``group`` mean on this machine; None: the pool runs as it was started.
    """

    workers: int
    no_new_privs: bool = False
    identity: Identity | None = None


class LimitsConfig(msgspec.Struct, frozen=True):
    """``[limits]``: resource limits of the pool's processes (getrlimit(2)); None: unchanged.

    :ivar open_files: RLIMIT_NOFILE, for each process.
    :ivar core_size: RLIMIT_CORE, in bytes.
    """

    open_files: AtLeastOne | None = None
    core_size: Number | None = None


class LogConfig(msgspec.Struct, frozen=True):
    """``[log]``.

    :ivar format: the format of each line.
    :ivar level: the lowest level that is logged, unless the command line says otherwise.
    :ivar file: the file that lines are appended to; None: standard error.
    """

    format: LogFormat = "text"
    level: LogLevel = "info"
    file: Path | None = None

    def settings(self, identity: Identity | None) -> dict[str, Any]:
        """The arguments of ``logs.set_up``, also as JSON has them.

        :param identity: what the pool runs as, and so the owner of the file.
        """
        return {
            "level": self.level,
            "format": self.format,
            "file": str(self.file) if self.file is not None else None,
            "owner": identity and [-1 if number is None else number for number in (identity.uid, identity.gid)],
        }


class SniTable(msgspec.Struct, frozen=True):
    """One of ``[[listeners.NAME.tls.sni]]``: a certificate for the clients that ask for these names."""

    names: list[str]
    certificate: Path
    key: Path | None = None


class TlsTable(msgspec.Struct, frozen=True):
    """``[listeners.NAME.tls]``."""

    certificate: Path
    key: Path | None = None
    client_ca: Path | None = None
    client_certificate: Literal["required", "optional"] | None = None
    minimum_version: Literal["1.2", "1.3"] = "1.2"
    alpn: list[str] = []
    handshake_timeout: Seconds = 10.0
    sni: list[SniTable] = []


class ListenerConfig(msgspec.Struct, frozen=True):
    """One table ``[listeners.NAME]``. Its keys are all members but ``name``, ``plugin_options``, ``first_worker``,
    ``apart`` and ``programs``.

    :ivar name: NAME.
    :ivar bind: the addresses that it listens on, at least one.
    :ivar handler: the plugin that answers.
    :ivar plugins: further plugins, called before the handler, in this order.
    :ivar workers: only the first so many workers serve it, never more than the pool has; None: all of them.
    :ivar exclusive: there is one instance of its plugins in the world: one worker serves it, and on reload the old one
        has stopped before the new one starts.
    :ivar backlog: connections that the kernel keeps until they are accepted; net.core.somaxconn caps it.
    :ivar max_connections: open connections, over all workers; 0 is no limit.
    :ivar connection_rate: new connections a second, over all workers; 0 is no limit.
    :ivar connection_rate_burst: connections that may come at once after a pause; 0 is a second's worth.
    :ivar when_full: whether clients wait or are refused when one of these two limits is reached.
    :ivar max_per_source: open connections of one source address; 0 is no limit.
    :ivar rate_per_source: new connections a second from one source address; 0 is no limit.
    :ivar rate_per_source_burst: like ``connection_rate_burst``.
    :ivar ipv6_prefix: how many bits of an IPv6 address are the source.
    :ivar allow: networks whose clients are admitted; if empty, all clients are.
    :ivar deny: networks whose clients are refused.
    :ivar idle_timeout: seconds without a byte after which a connection ends; 0 is never.
    :ivar first_byte_timeout: seconds until a client's first byte; 0 is unlimited.
    :ivar connection_lifetime: seconds that a connection may last; 0 is unlimited.
    :ivar half_close: what it means when a client stops sending; None: the handler's default.
    :ivar max_unsent: bytes kept for a client that does not read.
    :ivar socket_mode: permission bits of unix sockets; None: what the umask leaves.
    :ivar tcp_nodelay: data is sent at once (TCP_NODELAY).
    :ivar keepalive: seconds of silence after which the kernel probes the peer; 0 is never.
    :ivar tcp_user_timeout: seconds that sent data may stay unacknowledged before the connection is reset
        (TCP_USER_TIMEOUT); 0 is the kernel's own time.
    :ivar reuse_port: other servers may listen on the same address (SO_REUSEPORT).
    :ivar proxy_protocol: each connection begins with the header in which a proxy names its client.
    :ivar trusted_proxies: networks of the proxies that are believed; proxies on unix sockets always are.
    :ivar proxy_header_timeout: seconds until that header is complete; 0 is unlimited.
    :ivar log_connections: a line in the log at the end of each connection.
    :ivar tls: the certificates and settings of TLS; None: no TLS.
    :ivar plugin_options: the plugins' own tables, as the file has them, by plugin name.
    :ivar first_worker: the number of the first worker that serves it.
    :ivar apart: a worker of its own serves it, which serves no other listeners than such: its handler is to answer
        whatever the others do.
    :ivar programs: the user and group of its programs; None: the pool's.
    """

    name: str
    bind: tuple[Address, ...]
    handler: str
    plugins: tuple[str, ...] = ()
    workers: Workers | None = None
    exclusive: bool = False
    backlog: Annotated[int, msgspec.Meta(ge=1, le=MOST_BACKLOG)] = 4096
    max_connections: Number = 0
    connection_rate: PerSecond = 0.0
    connection_rate_burst: Number = 0
    when_full: WhenFull = "wait"
    max_per_source: Number = 0
    rate_per_source: PerSecond = 0.0
    rate_per_source_burst: Number = 0
    ipv6_prefix: Annotated[int, msgspec.Meta(ge=1, le=128)] = 64
    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    idle_timeout: Seconds = 60.0
    first_byte_timeout: Seconds = 0.0
    connection_lifetime: Seconds = 0.0
    half_close: HalfClose | None = None
    max_unsent: AtLeastOne = 16777216
    socket_mode: int | None = None
    tcp_nodelay: bool = True
    keepalive: Annotated[int, msgspec.Meta(ge=0, le=LONGEST_KEEPALIVE)] = 300
    tcp_user_timeout: UserTimeout = 0.0
    reuse_port: bool = False
    proxy_protocol: bool = False
    trusted_proxies: tuple[Network, ...] = ()
    proxy_header_timeout: Seconds = 5.0
    log_connections: bool = False
    tls: TlsTable | None = None
    plugin_options: Mapping[str, Mapping[str, Any]] = {}
    first_worker: int = 0
    apart: bool = False
    programs: Identity | None = None

    def is_for(self, worker: int) -> bool:
        """Whether the worker with this number, from 0, or ``APART``, serves the listener."""
        if self.apart:
            return worker == APART
        number = worker - self.first_worker
        return number >= 0 and (self.workers is None or number < self.workers)


class Config(msgspec.Struct, frozen=True):
    """A whole config file.

    :ivar path: the file, as the user named it; or the command whose arguments are the config.
    :ivar place: the same for ``status``: the file's absolute path.
    """

    path: Path
    pool: PoolConfig
    listeners: tuple[ListenerConfig, ...]
    limits: LimitsConfig = LimitsConfig()
    log: LogConfig = LogConfig()
    place: str = ""


POOL_KEYS = keys(PoolTable)
LIMITS_KEYS = keys(LimitsConfig)
LOG_KEYS = keys(LogConfig)
_NO_KEYS = ("name", "plugin_options", "first_worker", "apart", "programs")
LISTENER_KEYS = tuple(key for key in keys(ListenerConfig) if key not in _NO_KEYS)
# Keys for which the handler's class may have a default. The others are not a protocol's business, or are needed before
# any plugin is imported.
DEFAULT_KEYS = (
    "workers",
    "max_connections",
    "idle_timeout",
    "first_byte_timeout",
    "connection_lifetime",
    "half_close",
    "max_unsent",
    "tcp_nodelay",
    "keepalive",
    "tcp_user_timeout",
)
SERVED_APART = "a worker of its own"  # in place of several
# Limits over all workers.
POOL_LIMITS = ("max_connections", "connection_rate", "max_per_source", "rate_per_source")
TABLES = ("pool", "limits", "log", "listeners")
# Names that no plugin can have. It can have the other two: a plugin's options are a table, and these keys are lists.
RESERVED_NAMES = tuple(key for key in LISTENER_KEYS if key not in ("allow", "deny"))


def tables_with(key: str) -> list[str]:
    """The headers of the tables that have such a key."""
    by_header = {
        "[pool]": POOL_KEYS,
        "[limits]": LIMITS_KEYS,
        "[log]": LOG_KEYS,
        "[listeners.NAME]": LISTENER_KEYS,
    }
    return [header for header, known in by_header.items() if key in known]


def has_limits(config: ListenerConfig) -> bool:
    """Whether the config limits which clients are admitted. If it does not, no ``Admission`` is needed."""
    return bool(config.max_connections or config.connection_rate or limits_sources(config))


def limits_sources(config: ListenerConfig) -> bool:
    """Whether admission depends on the client's address."""
    return bool(config.allow or config.deny or config.max_per_source or config.rate_per_source)


def why_dispatched(config: ListenerConfig, address: Address) -> str | None:
    """Why the dispatcher accepts at an address although ``dispatch`` is ``"kernel"``; None if the workers do."""
    if address.systemd:
        return "a socket of systemd"
    if address.family == socket.AF_UNIX:
        return "a unix socket"
    if config.apart:
        return SERVED_APART
    if config.reuse_port:
        return "shared with other servers (reuse_port)"
    return None


def sockets_of(pool: PoolConfig, config: ListenerConfig, address: Address) -> int:
    """How many sockets an address has: with kernel dispatch, one for each worker that serves it."""
    if pool.dispatch != "kernel" or why_dispatched(config, address) is not None:
        return 1
    return config.workers or pool.workers - config.first_worker


def has_to_ask(config: ListenerConfig) -> bool:
    """Whether the worker has to ask the dispatcher: only the worker knows the client's address, from the proxy."""
    return config.proxy_protocol and limits_sources(config)
