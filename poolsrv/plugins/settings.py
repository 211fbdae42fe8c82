"""Give each ``--set`` of a command to the plugin that has such an option, now that the plugins' options are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import msgspec

from ..config.arguments import OWN_FLAGS, Setting
from ..config.decoder import keys
from ..config.describe import own_first, unknown, unknown_option
from ..config.draft import Draft, ListenerDraft
from ..config.from_arguments import put
from ..config.model import LISTENER_KEYS, LOG_KEYS, POOL_KEYS
from ..core.words import one_of

# The options of each plugin by the plugin's name; None for one that takes none.
Schemas: TypeAlias = Mapping[str, type[msgspec.Struct] | None]


def place(draft: Draft, listener: ListenerDraft, schemas: Schemas) -> None:
    """Put the settings into the tables of plugins; add an error for each that no plugin has.

    :param schemas: the options of those plugins that could be imported; the handler comes last among the plugins.
    """
    handler = next((plugin.name for plugin in listener.plugins if plugin.is_handler), None)
    for setting in listener.settings:
        name, inner = setting.key[0], setting.key[1:]
        owner, own = handler, setting
        if inner and any(name == plugin.name for plugin in listener.plugins):
            owner, own = name, Setting(inner, setting.text)
        if owner is None or owner not in schemas:
            continue  # that plugin has an error of its own
        schema = schemas[owner]
        if schema is not None and own.key[0] in keys(schema):
            if owner not in listener.tables:
                table = draft.document["listeners"][listener.name].setdefault(owner, {})
                listener.tables[owner] = table
            put(draft, schema, listener.tables[owner], own, (*listener.key, owner))  # type: ignore[arg-type]
        else:
            text = next(plugin.text for plugin in listener.plugins if plugin.name == owner)
            message = _unknown(own.key, text, schema, owner == handler and own is setting, schemas)
            draft.problems.add((*listener.key, owner, *own.key), message)


def _unknown(
    key: tuple[str, ...], owner: str, schema: type[msgspec.Struct] | None, may_be_any: bool, schemas: Schemas
) -> str:
    """The message for a key that is no option.

    :param may_be_any: it could be a key of the listener or the pool too.
    """
    options = own_first(schema) if schema is not None else []
    if not may_be_any:
        return unknown_option(key[0], options, owner)
    tables = {"pool": POOL_KEYS, "log": LOG_KEYS}
    if key[0] in tables and key[1:]:
        return unknown(key[1], tables[key[0]])
    if others := [name for name, other in schemas.items() if other is not None and key[0] in keys(other)]:
        return f"not an option of {owner}, expected {one_of([f'--set {name}.{key[0]}' for name in others])}"
    for table, known in tables.items():
        if key[0] in known:
            return f"not a key of a listener, expected --set {table}.{key[0]}"
    return unknown_option(key[0], (*options, *(name for name in LISTENER_KEYS if name not in OWN_FLAGS)), owner)
