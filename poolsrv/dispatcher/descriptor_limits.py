"""Whether the limit of open descriptors is enough for the config."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING, Final

from ..config.model import Config, has_to_ask
from ..core.words import counted
from ..errors import StartError

if TYPE_CHECKING:
    pass

DESCRIPTORS_PER_WORKER: Final = 3  # a channel's two ends, and a hang file
DESCRIPTORS_FOR_ANSWERS: Final = 2  # of a channel, where workers ask who is admitted
SPARE_DESCRIPTORS: Final = 32  # kept free for what is opened for a moment


def _check_descriptor_limit(config: Config) -> None:
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    needed = limit - _free_descriptors(config, config.pool.workers) + 64
    if limit < needed:
        raise StartError(
            f"the limit of open descriptors is {limit}, and {needed} are needed for"
            f" {counted(config.pool.workers, 'worker')} and"
            f" {counted(_addresses(config), 'address', 'addresses')}: raise it (ulimit -n), or configure fewer workers"
        )


def _descriptors_per_worker(config: Config) -> int:
    """How many connections of each worker may be here at a time."""
    workers = config.pool.workers
    return max((_free_descriptors(config, workers) - SPARE_DESCRIPTORS) // workers, 1)


def _free_descriptors(config: Config, workers: int) -> int:
    """What is left to the dispatcher beside listening sockets, with so many workers."""
    is_asked = any(has_to_ask(listener) for listener in config.listeners)
    per_worker = DESCRIPTORS_PER_WORKER + (DESCRIPTORS_FOR_ANSWERS if is_asked else 0)
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - per_worker * workers - _addresses(config)


def _addresses(config: Config) -> int:
    return sum(len(listener.bind) for listener in config.listeners)
