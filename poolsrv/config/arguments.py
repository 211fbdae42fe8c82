"""A config that the arguments of a command say, in place of a file: ``poolsrv run`` and ``poolsrv cgi``.

They pass through the supervisor as JSON, so that each new pool reads them, with the code as it then is. A value of
``--set`` stays text until the type that it is for is known: a plugin's options are known once it has been imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ..core.words import quoted
from .errors import Key, format_key
from .model import TABLES
from .plugin_reference import name_of

# Keys of a listener that have an argument of their own.
OWN_FLAGS: Final = {"bind": "--bind", "handler": "HANDLER", "plugins": "--plugin"}


class Setting(msgspec.Struct, frozen=True):
    """One ``--set KEY=VALUE``.

    :ivar key: the parts of the dotted key.
    :ivar text: the value.
    """

    key: tuple[str, ...]
    text: str


class Arguments(msgspec.Struct, frozen=True, kw_only=True):
    """What such a command says.

    :ivar command: the command, for messages: ``"poolsrv run"``.
    :ivar directory: where it was given, absolute: relative paths are relative to it.
    :ivar listener: the name of the only listener.
    :ivar handler: the plugin that answers there; ``plugins``, ``bind`` and ``workers`` are as in a file.
    :ivar options: options of the handler that the command itself sets.
    :ivar flags: the argument that each of these comes from.
    :ivar settings: in the order of the command line; a later one replaces an earlier one of the same key.
    :ivar warnings: what the user is to know if the server starts.
    """

    command: str
    directory: str
    listener: str
    handler: str
    bind: tuple[str, ...]
    plugins: tuple[str, ...] = ()
    workers: int | None = None
    options: dict[str, Any] = {}
    flags: dict[str, str] = {}
    settings: tuple[Setting, ...] = ()
    warnings: tuple[str, ...] = ()

    def name_of(self, key: Key) -> str:
        """Name the argument that a place in the config comes from."""
        listener, handler = ("listeners", self.listener), name_of(self.handler)
        if key[:2] != listener:
            return "--workers" if key == ("pool", "workers") else f"--set {format_key(key)}" if key else ""
        own, rest = str(key[2]) if key[2:] else "", key[3:]
        if own in OWN_FLAGS:
            return OWN_FLAGS[own]
        if own != handler:
            return f"--set {format_key(key[2:])}" if own else ""
        return self.flags.get(str(rest[0]), f"--set {format_key(rest)}") if rest else "HANDLER"

    def rename(self, message: str) -> str:
        """Name the argument in a message that begins with the key of a config file."""
        key, colon, rest = message.partition(": ")
        parts = tuple(key.split("."))
        if not colon or parts[0] not in TABLES:
            return message
        name = "--bind" if parts == ("listeners", self.listener) else self.name_of(parts)
        return f"{name}: {rest}"


def parse_setting(text: str) -> Setting:
    """Take ``KEY=VALUE`` apart. The key is one of TOML: dotted, and quoted where it has other characters.

    :raises ValueError: it is not of this form.
    """
    import tomli

    at = -1
    while (at := text.find("=", at + 1)) >= 0:  # quoted parts of a key may have a "=" too
        try:
            value: Any = tomli.loads(f"{text[:at]} = 0")
        except (tomli.TOMLDecodeError, ValueError, RecursionError):
            continue
        key = []
        while isinstance(value, dict) and len(value) == 1:
            ((name, value),) = value.items()
            key.append(name)
        if value == 0:
            return Setting(tuple(key), text[at + 1 :])
    if "=" not in text:
        raise ValueError(f"{quoted(text)} has no value, expected KEY=VALUE, such as idle_timeout=5")
    key_text = text.partition("=")[0]
    expected = 'letters, digits, - and _, with dots between the parts, or quotes: aliases."/git"=/usr/bin/git'
    raise ValueError(f"{quoted(key_text)} is not a key, expected {expected}")


def from_fields(fields: Mapping[str, Any]) -> Arguments:
    """What has come over the supervisor's link."""
    return msgspec.convert(fields, Arguments)


def to_fields(arguments: Arguments) -> dict[str, Any]:
    """Write the arguments as JSON has them."""
    fields: dict[str, Any] = msgspec.to_builtins(arguments)
    return fields
