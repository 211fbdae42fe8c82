"""The config as the rest of poolsrv sees it, and the keys that the file may have for it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import msgspec

from ..core.privileges import Identity
from ..net.access_list import Network
from ..net.addresses import Address
from .decoder import keys
from .errors import ConfigErrors, Problem

if TYPE_CHECKING:
    pass


def has_limits(config: ListenerConfig) -> bool:
    """Whether the config limits who is admitted. Without any limit no ``Admission`` is needed."""
    return bool(config.max_connections or config.connection_rate or limits_sources(config))


def limits_sources(config: ListenerConfig) -> bool:
    """Whether a listener goes by who comes."""
    return bool(config.allow or config.deny or config.max_per_source or config.rate_per_source)


def has_to_ask(config: ListenerConfig) -> bool:
    """Whether only the worker knows who comes, and the dispatcher whether he may."""
    return config.proxy_protocol and limits_sources(config)


__all__ = ["Config", "ConfigErrors", "LimitsConfig", "ListenerConfig", "LogConfig", "PoolConfig", "Problem"]

Dispatch: TypeAlias = Literal["round-robin", "least-connections"]
HalfClose: TypeAlias = Literal["finish", "abort", "timely"]
WhenFull: TypeAlias = Literal["wait", "refuse"]
LogFormat: TypeAlias = Literal["text", "json"]
LogLevel: TypeAlias = Literal["debug", "info", "warning", "error"]

LONGEST_TIME = 1_000_000_000  # seconds, 31 years: timers take no more
Seconds: TypeAlias = Annotated[
    float, msgspec.Meta(ge=0, le=LONGEST_TIME, extra={"words": f"a number of seconds, from 0 to {LONGEST_TIME}"})
]
StartTime: TypeAlias = Annotated[
    float, msgspec.Meta(ge=1, le=LONGEST_TIME, extra={"words": f"a number of seconds, from 1 to {LONGEST_TIME}"})
]
MOST_DRAINING = 1000
MOST_WORKERS = 1024  # beyond that a number is a slip of the finger
MOST_BACKLOG = 65535
LONGEST_KEEPALIVE = 32767  # seconds, MAX_TCP_KEEPIDLE of linux/tcp.h
LONGEST_USER_TIMEOUT = 2_147_483  # seconds; tcp(7) has it in milliseconds, in an int
HIGHEST_RATE = 1_000_000  # a second


class PoolConfig(msgspec.Struct, frozen=True):
    """The table ``[pool]``.

    :ivar workers: how many there are, ``"auto"`` resolved.
    :ivar dispatch: how a worker is chosen for a new connection.
    :ivar graceful_timeout: seconds that open connections get on stop and reload.
    :ivar start_timeout: seconds in which every worker of a pool has to serve.
    :ivar hang_timeout: seconds of silence after which a worker is killed and replaced; 0 is never.
    :ivar max_draining_pools: former pools that may still have connections; of more, the oldest is ended.
    :ivar max_boot_failures: failed starts of a worker in a row, after which a pool that has never been whole gives up.
    :ivar recycle_after_connections: after about so many a worker is replaced; 0 is never.
    :ivar max_worker_memory: bytes of resident memory above which a worker is replaced; 0 is never.
    :ivar pidfile: where the supervisor's pid is written.
    :ivar control: the unix socket that tells how the server does.
    :ivar identity: whom the pool runs as; None: as it was started.
    :ivar umask: of the pool; None: as it was started.
    :ivar chdir: the working directory of the pool; None: as it was started.
    :ivar no_new_privs: whether programs are kept from gaining privileges.
    """

    workers: int
    dispatch: Dispatch = "round-robin"
    graceful_timeout: float = 30.0
    start_timeout: float = 60.0
    hang_timeout: float = 0.0
    max_draining_pools: int = 4
    max_boot_failures: int = 5
    recycle_after_connections: int = 0
    max_worker_memory: int = 0
    pidfile: Path | None = None
    control: Path | None = None
    identity: Identity | None = None
    umask: int | None = None
    chdir: Path | None = None
    no_new_privs: bool = False


class LimitsConfig(msgspec.Struct, frozen=True):
    """The table ``[limits]``: resource limits of the pool's processes (getrlimit(2)); None: as it was started.

    :ivar open_files: RLIMIT_NOFILE, of each process.
    :ivar core_size: RLIMIT_CORE, bytes.
    """

    open_files: Annotated[int, msgspec.Meta(ge=1)] | None = None
    core_size: Annotated[int, msgspec.Meta(ge=0)] | None = None


class SniTable(msgspec.Struct, frozen=True):
    """One of ``[[listeners.NAME.tls.sni]]``: a certificate for the clients that ask for these names."""

    names: list[str]
    certificate: Path
    key: Path | None = None


class TlsTable(msgspec.Struct, frozen=True):
    """The table ``[listeners.NAME.tls]``."""

    certificate: Path
    key: Path | None = None
    client_ca: Path | None = None
    client_certificate: Literal["required", "optional"] | None = None
    minimum_version: Literal["1.2", "1.3"] = "1.2"
    alpn: list[str] = []
    handshake_timeout: Seconds = 10.0
    sni: list[SniTable] = []


class LogConfig(msgspec.Struct, frozen=True):
    """The table ``[log]``.

    :ivar format: of each line.
    :ivar level: the least that is logged, unless the command line says otherwise.
    :ivar file: where it goes; None: standard error.
    """

    format: LogFormat = "text"
    level: LogLevel = "info"
    file: Path | None = None

    def settings(self, identity: Identity | None) -> dict[str, Any]:
        """As ``logs.set_up`` takes it, and JSON too.

        :param identity: whom the pool runs as.
        """
        return {
            "level": self.level,
            "format": self.format,
            "file": str(self.file) if self.file is not None else None,
            "owner": identity and [-1 if number is None else number for number in (identity.uid, identity.gid)],
        }


class ListenerConfig(msgspec.Struct, frozen=True):
    """One table ``[listeners.NAME]``.

    :ivar name: NAME.
    :ivar bind: where it listens; at least one address.
    :ivar handler: the plugin that answers.
    :ivar plugins: further plugins, called before the handler, in this order.
    :ivar workers: only the first so many workers serve it, never more than the pool has; None: all of them.
    :ivar backlog: connections that the kernel keeps until they are accepted; net.core.somaxconn caps it.
    :ivar max_connections: at a time, over all workers; 0 is no limit.
    :ivar connection_rate: new ones a second, over all workers; 0 is no limit.
    :ivar connection_rate_burst: so many at once after a pause; 0 is a second's worth.
    :ivar when_full: what becomes of who comes when one of these two limits is reached.
    :ivar max_per_source: at a time from one source address; 0 is no limit.
    :ivar rate_per_source: new ones a second from one source address; 0 is no limit.
    :ivar rate_per_source_burst: as ``connection_rate_burst``.
    :ivar ipv6_prefix: how many bits of an IPv6 address are the source.
    :ivar allow: networks whose clients are admitted; without any, all are.
    :ivar deny: networks whose clients are refused.
    :ivar idle_timeout: seconds without a byte; 0 is never.
    :ivar first_byte_timeout: seconds until a client's first byte; 0 is never.
    :ivar connection_lifetime: seconds that a connection may last; 0 is for ever.
    :ivar half_close: what a client that stops sending means; None: the handler's default.
    :ivar max_unsent: bytes kept for a client that does not read.
    :ivar socket_mode: permission bits of unix sockets; None: as the umask has it.
    :ivar tcp_nodelay: what is sent goes out at once (TCP_NODELAY).
    :ivar keepalive: seconds of silence after which the kernel asks whether the peer is still there; 0 is never.
    :ivar tcp_user_timeout: seconds after which a connection is given up on whose bytes are not acknowledged
        (TCP_USER_TIMEOUT); 0 is the kernel's own time.
    :ivar reuse_port: other servers may listen on the same address (SO_REUSEPORT).
    :ivar proxy_protocol: each connection begins with the header in which a proxy says who its client is.
    :ivar trusted_proxies: networks of the proxies that are believed; those on unix sockets always are.
    :ivar proxy_header_timeout: seconds until the header is there; 0 is never.
    :ivar tls: how TLS is spoken; None: not at all.
    :ivar plugin_options: the plugins' own tables, as the file has them, by plugin name.
    """

    name: str
    bind: tuple[Address, ...]
    handler: str
    plugins: tuple[str, ...] = ()
    workers: int | None = None
    backlog: int = 4096
    max_connections: int = 0
    connection_rate: float = 0.0
    connection_rate_burst: int = 0
    when_full: WhenFull = "wait"
    max_per_source: int = 0
    rate_per_source: float = 0.0
    rate_per_source_burst: int = 0
    ipv6_prefix: int = 64
    allow: tuple[Network, ...] = ()
    deny: tuple[Network, ...] = ()
    idle_timeout: float = 60.0
    first_byte_timeout: float = 0.0
    connection_lifetime: float = 0.0
    half_close: HalfClose | None = None
    max_unsent: int = 16777216
    socket_mode: int | None = None
    tcp_nodelay: bool = True
    keepalive: int = 300
    tcp_user_timeout: float = 0.0
    reuse_port: bool = False
    proxy_protocol: bool = False
    trusted_proxies: tuple[Network, ...] = ()
    proxy_header_timeout: float = 5.0
    tls: TlsTable | None = None
    plugin_options: Mapping[str, Mapping[str, Any]] = {}


class Config(msgspec.Struct, frozen=True):
    """A whole config file.

    :ivar path: the file, as the user named it.
    """

    path: Path
    pool: PoolConfig
    listeners: tuple[ListenerConfig, ...]
    limits: LimitsConfig = LimitsConfig()
    log: LogConfig = LogConfig()


# What the tables may have in the file, before addresses are read and "auto" is resolved. The bounds are the contract
# of docs/configuration.md.
PerSecond: TypeAlias = Annotated[
    float, msgspec.Meta(ge=0, le=HIGHEST_RATE, extra={"words": f"a number a second, from 0 to {HIGHEST_RATE}"})
]
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0)]
Workers: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=MOST_WORKERS)]


class PoolTable(msgspec.Struct):
    """The keys of ``[pool]``."""

    workers: Workers | Literal["auto"] = "auto"
    dispatch: Dispatch = "round-robin"
    graceful_timeout: Seconds = 30.0
    start_timeout: StartTime = 60.0
    hang_timeout: Seconds = 0.0
    max_draining_pools: Annotated[int, msgspec.Meta(ge=1, le=MOST_DRAINING)] = 4
    max_boot_failures: Annotated[int, msgspec.Meta(ge=1)] = 5
    recycle_after_connections: Annotated[int, msgspec.Meta(ge=0)] = 0
    max_worker_memory: Annotated[int, msgspec.Meta(ge=0)] = 0
    pidfile: Path | None = None
    control: Path | None = None
    user: str | Annotated[int, msgspec.Meta(ge=0)] | None = None
    group: str | Annotated[int, msgspec.Meta(ge=0)] | None = None
    umask: int | str | None = None
    chdir: Path | None = None
    no_new_privs: bool | None = None


class ListenerTable(msgspec.Struct):
    """The keys of ``[listeners.NAME]``; every other one is the table of a plugin."""

    bind: str | list[str]
    handler: str
    plugins: list[str] = []
    workers: Workers | None = None
    backlog: Annotated[int, msgspec.Meta(ge=1, le=MOST_BACKLOG)] = 4096
    max_connections: Count = 0
    connection_rate: PerSecond = 0.0
    connection_rate_burst: Count = 0
    when_full: WhenFull = "wait"
    max_per_source: Count = 0
    rate_per_source: PerSecond = 0.0
    rate_per_source_burst: Count = 0
    ipv6_prefix: Annotated[int, msgspec.Meta(ge=1, le=128)] = 64
    allow: list[str] = []
    deny: list[str] = []
    idle_timeout: Seconds = 60.0
    first_byte_timeout: Seconds = 0.0
    connection_lifetime: Seconds = 0.0
    half_close: HalfClose | None = None
    max_unsent: Annotated[int, msgspec.Meta(ge=1)] = 16777216
    socket_mode: int | str | None = None
    tcp_nodelay: bool = True
    keepalive: Annotated[int, msgspec.Meta(ge=0, le=LONGEST_KEEPALIVE)] = 300
    tcp_user_timeout: Annotated[
        float,
        msgspec.Meta(
            ge=0, le=LONGEST_USER_TIMEOUT, extra={"words": f"a number of seconds, from 0 to {LONGEST_USER_TIMEOUT}"}
        ),
    ] = 0.0
    reuse_port: bool = False
    proxy_protocol: bool = False
    trusted_proxies: list[str] = []
    proxy_header_timeout: Seconds = 5.0
    tls: TlsTable | None = None


POOL_KEYS = keys(PoolTable)
LIMITS_KEYS = keys(LimitsConfig)
LOG_KEYS = keys(LogConfig)
LISTENER_KEYS = keys(ListenerTable)
# What no plugin can be called. The other two it can: a plugin's options are a table, and these keys are lists.
RESERVED_NAMES = tuple(key for key in LISTENER_KEYS if key not in ("allow", "deny"))
