"""The users of programs: ``user`` and ``group`` in the table of a plugin that runs programs.

Programs with a /tmp of their own need a launcher too, though they may have the pool's user: only a process with a
single thread can make what that takes (core/private_tmp.py).

They are read with the file, as root if the server was started so, and before any plugin is imported: what the spawner
may become is decided here, by what root has read, and never by what a plugin, or the pool later, says.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..core.privileges import Identity
from ..core.words import quoted
from .errors import Key, format_key

if TYPE_CHECKING:
    from .draft import Draft, ListenerDraft
    from .model import Config

PLUGIN = "cgi"  # the one whose table has such keys


def read(draft: Draft, listener: ListenerDraft) -> None:
    """Read them. What is no name and no number is left to the plugin's own check of its options."""
    from . import identity  # pwd and grp are for few servers

    table = listener.tables.get(PLUGIN, {})
    uid, gid, name = None, None, ""
    for key in ("user", "group"):
        wanted = table.get(key)
        if isinstance(wanted, bool) or not isinstance(wanted, str | int):
            continue
        try:
            if key == "group":
                gid = identity.group_of(wanted)
                continue
            uid, gid, name = identity.user_of(wanted)
            if uid == 0:
                raise ValueError("programs can't be given root's rights, expected an ordinary user")
            if gid is None and "group" not in table:
                raise ValueError(f"user {uid} is not in the user database, expected `group` beside it")
        except ValueError as error:
            draft.problems.add((*listener.key, PLUGIN, key), str(error))
            return
    if (uid, gid) != (None, None):
        listener.programs = Identity(uid, gid, name)


def check(draft: Draft, listener: ListenerDraft) -> None:
    """The server has to be root to start programs as another user; once the plugins' options are known.

    The commands that only look at a config serve others too: the server's user, for example, who replays a capture.
    """
    key = (*listener.key, PLUGIN, "user")
    programs = listener.programs
    options = listener.options.get(PLUGIN)
    _check_tmp(draft, listener)
    if programs is None:
        for name in ("user", "group"):
            if getattr(options, name, None) is not None and not draft.problems:
                message = "can only be set in a config file, which root reads before plugins are imported"
                draft.problems.add((*key[:-1], name), message)
        return
    if draft.is_served:
        for where, message in _only_root_can(draft, listener):
            draft.problems.add(where, message)


def warnings(draft: Draft) -> Iterator[str]:
    """What would keep the user that reads the config from serving it: mistakes, where that user does."""
    for listener in draft.listeners:
        for where, message in _only_root_can(draft, listener):
            yield f"{format_key(where)}: {message}"


def _only_root_can(draft: Draft, listener: ListenerDraft) -> Iterator[tuple[Key, str]]:
    programs = listener.programs
    if programs is None or draft.uid == 0:
        return
    if programs.uid not in (None, draft.uid) or programs.gid not in (None, os.getgid()):
        wanted = quoted(programs.name) if programs.name else programs.uid
        who = f"programs as user {wanted}" if programs.uid is not None else f"programs with group {programs.gid}"
        name = "user" if programs.uid is not None else "group"
        message = f"only root can run {who}, and this is user {draft.uid}: expected poolsrv to be started as root"
        yield (*listener.key, PLUGIN, name), message


def _check_tmp(draft: Draft, listener: ListenerDraft) -> None:
    if not getattr(getattr(listener.options.get(PLUGIN), "sandbox", None), "private_tmp", 0):
        return
    uids = [one.uid for one in (listener.programs, draft.pool.get("identity")) if one is not None]
    message = ""
    if not wants_tmp(listener.tables):
        message = "can only be set in a config file, which is read before plugins are imported"
    elif next((uid for uid in uids if uid is not None), draft.uid) == 0:
        message = "can't be given to programs of root, expected `user` beside the sandbox, or in [pool]"
    if message and not draft.problems:
        draft.problems.add((*listener.key, PLUGIN, "sandbox", "private_tmp"), message)


def wants_tmp(tables: Mapping[str, Any]) -> bool:
    """Whether the programs of a listener are to have a /tmp of their own.

    :param tables: of its plugins, unchecked.
    """
    sandbox = tables.get(PLUGIN, {}).get("sandbox")
    size = sandbox.get("private_tmp") if isinstance(sandbox, Mapping) else None
    return isinstance(size, int) and size > 0


def users(config: Config) -> dict[str, tuple[int, int, list[int]]]:
    """Which user, group and groups the programs of each listener have, where a launcher has to start them."""
    return dict(_users(config))


def _users(config: Config) -> Iterator[tuple[str, tuple[int, int, list[int]]]]:
    own = pool_user(config)
    for listener in config.listeners:
        programs: Any = listener.programs or Identity(None, None)
        uid = own[0] if programs.uid is None else programs.uid
        gid = own[1] if programs.gid is None else programs.gid
        if (uid, gid) == own:
            if wants_tmp(listener.plugin_options) and uid != 0:
                yield listener.name, (uid, gid, _groups(config.pool.identity, gid))
        elif os.geteuid() == 0:
            yield listener.name, (uid, gid, _groups(programs, gid))


def _groups(identity: Any, gid: int) -> list[int]:
    if os.geteuid() != 0:
        return os.getgroups()
    return os.getgrouplist(identity.name, gid) if identity is not None and identity.name else [gid]


def name_of(uid: int) -> str:
    """A user's name, or number."""
    from . import identity

    return identity.user_of(uid)[2] or str(uid)


def pool_user(config: Config) -> tuple[int, int]:
    """The pool's user and group, also while this process is root."""
    found = config.pool.identity or Identity(None, None)
    return (
        os.getuid() if found.uid is None else found.uid,
        os.getgid() if found.gid is None else found.gid,
    )
