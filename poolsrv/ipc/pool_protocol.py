"""What a pool may say to the supervisor, and when; everything else is refused.

Theory. The supervisor may be root. A pool can't be trusted once it has dropped privileges: it runs plugins, which serve
clients. So a message is accepted only in its phase, as in the monitor of OpenSSH, and each of its fields is checked. A
pool says once, before it serves, what root acts on: the names of files and the sockets. The kernel confirms that the
pool's own process sent this, while it still was the supervisor's user. From then on the pool can't change it. (A pool
that a reload starts may name others, in the same way.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from ..core.logs import LEVELS
from .counted import is_counted
from .kept_runs import MOST_OF_A_KIND, are_runs
from .pool_link import LINES_PER_MESSAGE, LONGEST_LINE, BadMessage, Message, is_path

# Phases of a pool. STARTING: it reads its config, and binds. SEALED: it has said what it needs, and was granted it.
STARTING, SEALED, SERVING, LEAVING = "starting", "sealed", "serving", "leaving"
LONGEST_TIME: Final = 1_000_000_000  # seconds
MOST_SOCKETS: Final = 4096
_LONGEST_KEY: Final = 1000  # characters
_MOST_PLUGINS: Final = 200
_LONGEST_NAME: Final = 200  # characters
_MAX_ID: Final = 2**32 - 2  # the greatest number of a user or a group

_ALLOWED: Final = {
    STARTING: {"plan", "bound", "configured", "failed"},
    SEALED: {"serves", "failed", "alive", "claims"},
    SERVING: {"alive", "leaves", "released"},
}
_ALWAYS: Final = {"released", "alive"}  # also of a pool that is leaving
_PRIVILEGED: Final = {"bound", "configured"}  # only from a process that still is the supervisor's user

Check = Callable[[object], bool]


def check(phase: str, message: Message, pid: int) -> bool:
    """Check a message.

    :param phase: the phase of the pool that has sent it.
    :param pid: that pool's pid.
    :returns: whether to act on it. False for what a pool has sent before it learned that it has to stop; then the
        descriptors are closed. What has been released, and what it goes on counting,
        matters all the same.
    :raises BadMessage: the pool must not send this; its descriptors are closed.
    """
    try:
        _check(phase, message, pid)
    except BadMessage:
        message.close()
        raise
    if phase == LEAVING and message.kind not in _ALWAYS:
        message.close()
        return False
    return True


def _check(phase: str, message: Message, pid: int) -> None:
    kind, sender = message.kind, message.sender
    if kind not in _FIELDS:
        raise BadMessage(f"an unknown message {kind[:40]!r}")
    if sender is None or sender.pid != pid:
        raise BadMessage(f"{kind!r} from another process")
    if phase == LEAVING and kind not in _ALWAYS:
        return
    if phase != LEAVING and kind not in _ALLOWED[phase]:
        raise BadMessage(f"{kind!r} while it is {phase}")
    if kind in _PRIVILEGED and sender.uid != os.getuid():
        raise BadMessage(f"{kind!r} as user {sender.uid}")
    if message.fds and kind != "bound":
        raise BadMessage(f"{kind!r} with descriptors")
    for name, is_right in _FIELDS[kind].items():
        if not is_right(message.fields.get(name)):
            raise BadMessage(f"{kind!r} with a wrong {name!r}")


def _is_whole(least: int, most: int) -> Check:
    return lambda value: type(value) is int and least <= value <= most


def _is_time(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= LONGEST_TIME  # type: ignore[operator]


def _is_time_or_none(value: object) -> bool:
    return value is None or _is_time(value)


def _is_keys(value: object) -> bool:
    return isinstance(value, list) and len(value) <= MOST_SOCKETS and all(_is_text(key, _LONGEST_KEY) for key in value)


def _is_lines(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= LINES_PER_MESSAGE
        and all(_is_text(line, LONGEST_LINE) for line in value)
    )


def _is_names(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) <= _MOST_PLUGINS and all(_is_text(one, _LONGEST_NAME) for one in value)
    )


def _is_text(value: object, longest: int) -> bool:
    return isinstance(value, str) and len(value) <= longest


def _is_path_or_none(value: object) -> bool:
    return value is None or is_path(value)


def _is_log(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.get("level") in LEVELS
        and value.get("format") in ("text", "json")
        and _is_path_or_none(value.get("file"))
        and _is_owner(value.get("owner"))
    )


def _is_owner(value: object) -> bool:
    return value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is_whole(-1, _MAX_ID), value)))


def _is_described(value: object) -> bool:
    return isinstance(value, list)  # received_sockets() checks the rest


_FIELDS: Final[Mapping[str, Mapping[str, Check]]] = {
    "plan": {"start_timeout": _is_time},
    "bound": {"sockets": _is_described},
    "configured": {
        "keys": _is_keys,
        "graceful_timeout": _is_time,
        "drain_notice": _is_time_or_none,  # older pools have none
        "hang_timeout": _is_time,
        "max_draining_pools": _is_whole(1, 1_000_000),
        "runs": lambda value: value is None or _is_whole(0, MOST_OF_A_KIND)(value),  # older pools say nothing
        "pidfile": _is_path_or_none,
        "log": _is_log,
    },
    "serves": {},
    "failed": {"lines": _is_lines, "exit_code": _is_whole(1, 255)},
    "alive": {"counted": is_counted, "runs": are_runs, "last": lambda value: value in (None, True)},
    "leaves": {},
    "claims": {"plugins": _is_names},
    "released": {"number": _is_whole(0, 2**53)},
}
