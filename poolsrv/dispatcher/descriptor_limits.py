"""The descriptor budget: whether the limit of open descriptors (RLIMIT_NOFILE) is enough for the config."""

from __future__ import annotations

import resource
from typing import Final

from ..config.model import Config, has_to_ask, sockets_of
from ..core.words import counted
from ..errors import StartError

DESCRIPTORS_PER_WORKER: Final = 3  # a channel's two ends, and a stack dump file
DESCRIPTORS_APART: Final = 5  # of the worker apart, with the pair on which it asks for the status
DESCRIPTORS_FOR_ANSWERS: Final = 2  # of a channel, if workers ask about admission
SPARE_DESCRIPTORS: Final = 32  # kept free for what is opened for a moment
MIN_CONNECTIONS: Final = 64  # for which there must be room


def check_descriptor_limit(config: Config) -> None:
    """Check that the dispatcher can hold its workers and addresses.

    :raises StartError: the limit is too low.
    """
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = limit - free_descriptors(config, config.pool.workers) + MIN_CONNECTIONS
    if limit < needed:
        raise StartError(
            f"the limit of open descriptors is {limit}, and {needed} are needed for"
            f" {counted(config.pool.workers, 'worker')} and"
            f" {counted(_addresses(config), 'address', 'addresses')}: raise it (ulimit -n), or configure fewer workers"
        )


def connections_per_worker(config: Config) -> int:
    """Count the connections of each worker that the dispatcher can hold at a time."""
    workers = config.pool.workers
    return max((free_descriptors(config, workers) - SPARE_DESCRIPTORS) // workers, 1)


def free_descriptors(config: Config, workers: int) -> int:
    """Count the descriptors that are left to the dispatcher with so many workers."""
    is_asked = any(has_to_ask(listener) for listener in config.listeners)
    per_worker = DESCRIPTORS_PER_WORKER + (DESCRIPTORS_FOR_ANSWERS if is_asked else 0)
    apart = DESCRIPTORS_APART if any(listener.apart for listener in config.listeners) else 0
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - per_worker * workers - apart - _addresses(config)


def _addresses(config: Config) -> int:
    return sum(sockets_of(config.pool, listener, address) for listener in config.listeners for address in listener.bind)
