"""What the connections of one listener share: the options made ready, the access log, the limits over all of them."""

from __future__ import annotations

import logging

from poolsrv import Worker

from .decoders import BodyLimits
from .forwarding import Forwarding
from .log_file import AccessLog
from .options import HttpOptions
from .request_head import SINGLE_FIELDS, RequestLimits
from .spool import SpoolAccount
from .stall import StallTimeout
from .times import ResponseTimes

__all__ = ["DRAIN_WAIT", "Shared"]

DRAIN_WAIT = 2.0  # seconds that a client gets for a request, once the worker is to end


class Shared:
    """Made in the parent, before the fork; `open` is for each worker.

    :ivar forwarding: the fields that proxies set.
    :ivar limits: of request heads.
    :ivar body_limits: of request bodies.
    :ivar access_log: the access log, or one that is never open.
    :ivar times: of responses.
    :ivar spooled: bytes of bodies that are kept, over all workers.
    :ivar stalled_bodies: request bodies that must not stand still for `body_timeout`.
    :ivar look_after: seconds from one look at a connection's deadline to the next.
    """

    def __init__(self, options: HttpOptions, log: logging.Logger) -> None:
        self.options = options
        self.forwarding = Forwarding(options)
        self.limits = RequestLimits(
            max_head=options.max_header_size,
            max_target=options.max_target_size,
            max_fields=options.max_header_fields,
            single=SINGLE_FIELDS | self.forwarding.single,
        )
        self.body_limits = BodyLimits(
            max_size=options.max_body_size,
            max_extensions=options.max_chunk_extensions,
            max_trailer=options.max_header_size,
            max_fields=options.max_header_fields,
        )
        self.access_log = AccessLog(options, log)
        self.times = ResponseTimes()
        self.spooled = SpoolAccount(options.max_spooled)
        self.stalled_bodies = StallTimeout(options.body_timeout)
        timeouts = (options.header_timeout, options.keepalive_timeout, DRAIN_WAIT)
        self.look_after = min(seconds for seconds in timeouts if seconds)
        self._log = log
        self._warned = False

    def open(self, worker: Worker) -> None:
        """In a worker, before its first connection.

        :raises ConfigError: the access log can't be opened.
        """
        self.spooled.open()
        self.stalled_bodies.open(worker)
        self.access_log.open(worker)
        self.times.open(worker)

    def warn_of_peer(self, host: str) -> None:
        """Log that a peer that is not believed has sent a proxy's fields. Only the first is logged."""
        if not self._warned:
            self._warned = True
            self._log.error("%s is none of trusted_proxies: fields that only these may set are dropped", host)
