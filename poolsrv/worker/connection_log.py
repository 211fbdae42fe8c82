"""The logger of one connection (``Connection.log``)."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import Any

log = logging.getLogger("poolsrv.connection")


def logger_of(listener: str, number: int, peer: str) -> logging.LoggerAdapter[logging.Logger]:
    """A logger whose lines name the connection."""
    return _ConnectionLog(log, {"listener": listener, "connection": number, "peer": peer})


class _ConnectionLog(logging.LoggerAdapter[logging.Logger]):
    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        assert self.extra is not None
        tags = self.extra
        kwargs["extra"] = {**tags, **(kwargs.get("extra") or {})}
        return f"{tags['listener']} #{tags['connection']} {tags['peer']}: {msg}", kwargs
