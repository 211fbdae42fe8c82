"""What a pool may say to the supervisor, and when: everything else is refused.

Theory. The supervisor may be root, and a pool is somebody else's once it has given root up: it runs plugins, and they
serve clients. So a message counts only in the phase that it belongs to, as in the monitor of OpenSSH, and each of its
fields is looked at. What root acts on, the names of files and the sockets, a pool tells once, before it serves
anybody; the kernel says that it was the pool's own process, and that it still was the supervisor's user. From then on
it can't change them. (Another pool, which a reload has started, may bring others: it tells them in the same way.)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Final

from ..core.logs import LEVELS
from .pool_link import LINES_PER_MESSAGE, LONGEST_LINE, BadMessage, Message, is_path

# Phases of a pool. STARTING: it reads its config, and binds. SEALED: it has told what root acts on, and got it.
STARTING, SEALED, SERVING, LEAVING = "starting", "sealed", "serving", "leaving"
LONGEST_TIME: Final = 1_000_000_000  # seconds
MOST_SOCKETS: Final = 4096
_LONGEST_KEY: Final = 1000  # characters
_MOST: Final = 2**32 - 2  # the greatest number of a user, or of a group

_ALLOWED: Final = {
    STARTING: {"plan", "bound", "configured", "failed"},
    SEALED: {"serves", "failed", "alive"},
    SERVING: {"alive", "leaves"},
}
_ROOTS: Final = {"bound", "configured"}  # only from a process that has not given up what the supervisor is

Check = Callable[[object], bool]


def check(phase: str, message: Message, pid: int) -> bool:
    """Whether a message is to be acted on. Where it is not its descriptors are closed.

    What is under way when a pool is told to stop means nothing any more.

    :param phase: of the pool that it came from.
    :param pid: of that pool.
    :raises BadMessage: it does not belong there.
    """
    try:
        _check(phase, message, pid)
    except BadMessage:
        message.close()
        raise
    if phase == LEAVING:
        message.close()
    return phase != LEAVING


def _check(phase: str, message: Message, pid: int) -> None:
    kind, sender = message.kind, message.sender
    if kind not in _FIELDS:
        raise BadMessage(f"an unknown message {kind[:40]!r}")
    if sender is None or sender.pid != pid:
        raise BadMessage(f"{kind!r} from another process")
    if phase == LEAVING:
        return
    if kind not in _ALLOWED[phase]:
        raise BadMessage(f"{kind!r} while it is {phase}")
    if kind in _ROOTS and sender.uid != os.getuid():
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


def _is_keys(value: object) -> bool:
    return isinstance(value, list) and len(value) <= MOST_SOCKETS and all(_is_text(key, _LONGEST_KEY) for key in value)


def _is_lines(value: object) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= LINES_PER_MESSAGE
        and all(_is_text(line, LONGEST_LINE) for line in value)
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
    return value is None or (isinstance(value, list) and len(value) == 2 and all(map(_is_whole(-1, _MOST), value)))


def _is_described(value: object) -> bool:
    return isinstance(value, list)  # the rest is received_sockets()'s to see


_FIELDS: Final[Mapping[str, Mapping[str, Check]]] = {
    "plan": {"start_timeout": _is_time},
    "bound": {"sockets": _is_described},
    "configured": {
        "keys": _is_keys,
        "graceful_timeout": _is_time,
        "hang_timeout": _is_time,
        "max_draining_pools": _is_whole(1, 1_000_000),
        "pidfile": _is_path_or_none,
        "log": _is_log,
    },
    "serves": {},
    "failed": {"lines": _is_lines, "exit_code": _is_whole(1, 255)},
    "alive": {},
    "leaves": {},
}
