"""How a config names a plugin: by the name of an installed one, or as ``module:Class``."""

from __future__ import annotations

import re
from typing import NamedTuple

from .errors import Key

# Compiled when they are needed: most configs name plugins that are installed.
_TARGET = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*"
_FILE = r"(?:.*/)?(?P<module>\w+)\.py(?::(?P<name>\w+))?"


class PluginReference(NamedTuple):
    """A plugin that a listener names.

    :ivar name: the plugin's name on this listener, and that of the table with its options.
    :ivar text: what the config has: the same, or ``module:Class``.
    :ivar place: where the config has it.
    """

    name: str
    text: str
    place: Key

    @property
    def is_handler(self) -> bool:
        """Whether it answers on the listener."""
        return self.place[-1] == "handler"

    @property
    def is_class(self) -> bool:
        """Whether it names a class, which need not be installed."""
        return is_class(self.text)


def is_class(text: str) -> bool:
    """Whether this is ``module:Class``, not the name of an installed plugin."""
    return ":" in text


def name_of(text: str) -> str:
    """The plugin's name on its listener: of ``module:Class``, the name of the class in lower case."""
    return text.rpartition(":")[2].rpartition(".")[2].lower() if is_class(text) else text


def mistake_in(text: str) -> str | None:
    """What is wrong with ``module:Class``, and what was expected; None if nothing is, or it names no class."""
    if ".py" in text and (match := re.fullmatch(_FILE, text)):
        return f'the name of a file, expected the module\'s: "{match["module"]}:{match["name"] or "CLASS"}"'
    if is_class(text) and not re.fullmatch(_TARGET, text):
        return 'not the name of a class, expected "module:Class", such as "my_plugin:Shout"'
    return None
