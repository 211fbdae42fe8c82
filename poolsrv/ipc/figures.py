"""The engine's own metrics: names, kinds, labels, and what each counts. docs/operations.md explains them."""

from __future__ import annotations

from typing import Final

import msgspec

from .metrics import COUNTER, GAUGE, HISTOGRAM, Kind


class Figure(msgspec.Struct, frozen=True):
    """A metric of the engine."""

    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


# Those that the dispatcher counts.
ACCEPTED: Final = "poolsrv_connections_accepted"
REFUSED: Final = "poolsrv_connections_refused"
LOST: Final = "poolsrv_connections_lost"
WORKER_ENDS: Final = "poolsrv_worker_ends"
CPU: Final = "poolsrv_worker_cpu_seconds"

# Those that the workers count.
EVENTS: Final = "poolsrv_events"
BYTES_IN: Final = "poolsrv_received_bytes"
BYTES_OUT: Final = "poolsrv_sent_bytes"
DURATION: Final = "poolsrv_connection_duration_seconds"
HANDED_OVER: Final = "poolsrv_accept_to_worker_seconds"
FIRST_BYTE: Final = "poolsrv_first_byte_seconds"
HOOK: Final = "poolsrv_hook_seconds"
SLOW_HOOKS: Final = "poolsrv_slow_hooks"
FAULTS: Final = "poolsrv_plugin_faults"
FAILED_HANDSHAKES: Final = "poolsrv_failed_handshakes"
UNDELIVERED: Final = "poolsrv_connections_undelivered"

# Those that each worker has for itself: records of ``status``, no sums.
LAG: Final = "poolsrv_loop_lag_seconds"
DESCRIPTORS: Final = "poolsrv_descriptors"
DESCRIPTOR_LIMIT: Final = "poolsrv_descriptor_limit"
PER_WORKER: Final = frozenset({LAG, DESCRIPTORS, DESCRIPTOR_LIMIT})

FIGURES: Final[dict[str, Figure]] = {
    ACCEPTED: Figure(COUNTER, "Connections accepted", ("listener",)),
    REFUSED: Figure(COUNTER, "Connections refused, by the config key that refuses them", ("listener", "reason")),
    LOST: Figure(COUNTER, "Connections that were open in a worker that died"),
    WORKER_ENDS: Figure(COUNTER, "Workers that have ended, by how", ("how",)),
    CPU: Figure(COUNTER, "CPU time of the workers"),
    EVENTS: Figure(COUNTER, "Events that the workers' loops have dispatched"),
    BYTES_IN: Figure(COUNTER, "Bytes received from clients", ("listener",)),
    BYTES_OUT: Figure(COUNTER, "Bytes sent to clients", ("listener",)),
    DURATION: Figure(HISTOGRAM, "Time from a connection's accept to its end", ("listener",)),
    HANDED_OVER: Figure(HISTOGRAM, "Time from a connection's accept until its worker takes it", ("listener",)),
    FIRST_BYTE: Figure(HISTOGRAM, "Time from a connection's accept to the client's first byte", ("listener",)),
    HOOK: Figure(HISTOGRAM, "Time that hooks take (a sample)", ("listener", "hook")),
    SLOW_HOOKS: Figure(COUNTER, "Hooks and callbacks that took slow_hook or longer", ("listener", "plugin", "hook")),
    FAULTS: Figure(COUNTER, "Exceptions out of hooks and callbacks", ("listener", "plugin", "hook")),
    FAILED_HANDSHAKES: Figure(COUNTER, "TLS handshakes that failed", ("listener",)),
    UNDELIVERED: Figure(COUNTER, "Connections for which their worker had no descriptor left"),
    LAG: Figure(GAUGE, "The longest iteration of the loop since the last report"),
    DESCRIPTORS: Figure(GAUGE, "Open descriptors"),
    DESCRIPTOR_LIMIT: Figure(GAUGE, "The limit of open descriptors"),
}
