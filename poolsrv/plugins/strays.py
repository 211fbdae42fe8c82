"""Name the mistake where a listener's table has a key or table that is neither its own nor one of its plugins'."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeAlias

import msgspec

from ..config.decoder import keys
from ..config.describe import show, unknown
from ..config.draft import Draft, ListenerDraft
from ..config.model import LISTENER_KEYS, POOL_KEYS
from ..core.words import did_you_mean, nearest, one_of, quoted, shortlist

# The options of each plugin by the plugin's name; None for one that takes none.
Schemas: TypeAlias = Mapping[str, type[msgspec.Struct] | None]


def check(
    draft: Draft,
    listener: ListenerDraft,
    plugins: Collection[str],
    schemas: Schemas,
    installed: Callable[[], Collection[str]],
) -> None:
    """Add an error for each such key and table.

    :param plugins: the names of the listener's plugins.
    :param schemas: the options of those that could be imported.
    :param installed: gives the names of all installed plugins.
    """
    for name in (*listener.strays, *(name for name in listener.tables if name not in plugins)):
        if name in plugins:
            value = draft.document["listeners"][listener.name][name]
            message = f"got {show(value)}, expected a table: {listener.plugin_header(name)}"
        elif owners := [plugin for plugin, schema in schemas.items() if schema is not None and name in keys(schema)]:
            message = f"`{name}` belongs in {one_of(map(listener.plugin_header, owners))}"
        elif name in listener.tables and name in installed():
            missing = (plugin for plugin in plugins if plugin not in schemas and plugin not in installed())
            if any(nearest(plugin, installed()) == name for plugin in missing):
                continue  # that plugin's name is misspelt, and has an error of its own
            message = (
                f"the plugin {quoted(name)} is not on this listener, expected it as `handler` or among `plugins`"
                f" of {listener.header}"
            )
        elif name in POOL_KEYS:
            message = f"`{name}` belongs in [pool]"
        elif name in listener.tables:
            expected = one_of(map(listener.plugin_header, plugins)) if plugins else "a table of one of its plugins"
            message = f"unknown table{did_you_mean(name, plugins)}, expected {expected}"
        else:
            message = _unknown_key(listener, name, schemas)
        draft.problems.add((*listener.key, name), message)


def _unknown_key(listener: ListenerDraft, name: str, schemas: Schemas) -> str:
    owners = {option: plugin for plugin, schema in schemas.items() if schema is not None for option in keys(schema)}
    meant = nearest(name, (*owners, *LISTENER_KEYS))
    if meant is not None and meant not in LISTENER_KEYS:
        hint = f" (did you mean {quoted(meant)} in {listener.plugin_header(owners[meant])}?)"
        return f"unknown key{hint}, expected {shortlist(LISTENER_KEYS)}"
    return unknown(name, LISTENER_KEYS)
