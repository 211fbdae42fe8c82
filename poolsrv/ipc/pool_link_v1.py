"""Version 1 of the pool link, for upgrades: the running supervisor is older than the pool that it starts.

Theory. A supervisor outlives an upgrade of the package, and starts the newer pool by the name it knows,
``poolsrv.supervised``. Version 1 differs from today's in this:

- no descriptor for stack dumps is passed on the command line;
- ``start`` says how often the pool has to send ``alive`` (0: never), where ``go`` does now;
- ``configured`` has fewer fields, and there is neither ``plan`` nor ``leaves``, nor ``claims`` with what belongs to it;
- no time on the machine's clock (``began``) comes with ``about``.

The link that ``adapt`` returns translates both ways, so the pool knows nothing of it. The other direction, a newer
supervisor and an older pool, does not exist: a pool is started from what is installed, an older one after a downgrade,
which says that it speaks another version.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from ..core.procfs import seconds_since_boot
from .pool_link import Message, PoolLink

VERSION: Final = 1

_UNKNOWN: Final = {"plan", "leaves"}  # kinds of messages that version 1 lacks
_CONFIGURED: Final = ("keys", "graceful_timeout", "pidfile", "log")
_ALIVE_EVERY: Final = 30.0  # seconds, where the supervisor does not ask for it


class LinkToVersion1(PoolLink):
    """A pool's end of a link whose other end speaks version 1.

    :param link: the link so far, which must not be used any more.
    :param alive_every: seconds between two messages ``alive``; 0: the supervisor wants none.
    """

    def __init__(self, link: PoolLink, alive_every: float) -> None:
        super().__init__(link.detach())
        self._alive_every = alive_every

    def send(self, kind: str, fds: Sequence[int] = (), **fields: Any) -> None:
        if kind in _UNKNOWN or (kind == "alive" and not self._alive_every):
            return
        if kind == "configured":
            fields = {name: fields[name] for name in _CONFIGURED}
        super().send(kind, fds, **fields)

    def receive(self, wait: bool = True) -> Message | None:
        message = super().receive(wait)
        if message is not None and message.kind == "go":
            message.fields["alive_every"] = self._alive_every or _ALIVE_EVERY
        elif message is not None and message.kind == "about":
            message.fields["about"] = _with_began(message.fields["about"])
        return message


def adapt(link: PoolLink, start: dict[str, Any]) -> PoolLink:
    """Return a link that translates, and bring the fields of ``start`` up to date."""
    start["about"] = _with_began(start["about"])
    return LinkToVersion1(link, start["alive_every"])


def _with_began(about: dict[str, Any]) -> dict[str, Any]:
    """Add the times on the machine's clock, worked out from the time of day."""
    boot = time.time() - seconds_since_boot()
    reload = about["last_reload"]
    if reload is not None:
        reload = {**reload, "began": reload["at"] - boot}
    return {**about, "began": about["started_at"] - boot, "last_reload": reload}
