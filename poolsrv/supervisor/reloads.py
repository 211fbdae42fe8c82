"""Reloads: whether another one is wanted, how the last one went, and what the service manager hears of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from ..core.procfs import seconds_since_boot
from ..core.systemd import Notifier
from ..core.words import counted

log = logging.getLogger("poolsrv.supervisor")


class Reloads:
    """The state of reloads.

    :ivar wanted: HUP came while no reload could begin: one has to follow.
    :ivar last: the outcome of the last one, as ``status`` shows it; None before the first.
    """

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._began = 0.0  # seconds since the machine's start
        self.wanted = False
        self.last: dict[str, Any] | None = None

    def postpone(self, why: str) -> None:
        """Have a reload follow, once it can begin. However often HUP comes until then, it is one reload."""
        if not self.wanted:
            log.info("SIGHUP: %s; another reload follows", why)
        self.wanted = True

    def begin(self, config: str) -> None:
        """Note that a reload begins."""
        self.wanted = False
        log.info("SIGHUP: reloading %s", config)
        self._notifier.reloading()
        self._began = seconds_since_boot()

    def succeeded(self) -> None:
        """Note that the new pool serves."""
        self.last = {"at": time.time(), "ok": True, "errors": [], "began": self._began}

    def failed(self, errors: Sequence[str]) -> None:
        """Log why the reload has failed."""
        for line in errors:
            log.error("reload: %s", line, extra={"reason": line})
        count = counted(len(errors), "error")
        log.error("the reload has failed, with %s; nothing has changed", count)
        self.last = {"at": time.time(), "ok": False, "errors": list(errors), "began": self._began}
        self._notifier.send("READY=1", f"STATUS=reload failed ({count}): {errors[0] if errors else 'see the log'}")
