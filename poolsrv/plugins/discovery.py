"""Find the installed plugins. Nothing of theirs is imported here."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec

from ..core.words import quoted
from ..errors import PoolsrvError
from ..worker import hookspecs
from . import entry_points

if TYPE_CHECKING:
    from importlib import metadata

log = logging.getLogger("poolsrv.plugins")


class PluginError(PoolsrvError):
    """A plugin that can't be used. The message is one line without the plugin's name, which the caller adds."""


class Installed(msgspec.Struct, frozen=True):
    """A plugin that a distribution offers.

    :ivar name: the entry point's name, which the config uses.
    :ivar target: what the entry point refers to: ``"poolsrv_shout:Shout"``.
    :ivar source: the distribution that installed it, or the directory with its metadata, which is read only when
        needed; None if it is not installed.
    :ivar rivals: other distributions that offer a plugin of this name; if there are any, none can be used.
    """

    name: str
    target: str
    source: metadata.Distribution | str | None
    rivals: tuple[str, ...] = ()

    @property
    def distribution(self) -> str:
        """The distribution's name."""
        source = self._read_source()
        return source.name if source else "?"

    @property
    def version(self) -> str:
        """The distribution's version."""
        source = self._read_source()
        return source.version if source else "?"

    def _read_source(self) -> metadata.Distribution | None:
        if not isinstance(self.source, str):
            return self.source
        from importlib import metadata  # slow to import, see entry_points.py

        return metadata.Distribution.at(self.source)

    def __str__(self) -> str:
        origin = f", of {self.distribution} {self.version}" if self.source is not None else ""
        return f"the plugin {quoted(self.name)} ({self.target}{origin})"


def installed() -> dict[str, Installed]:
    """Find every installed plugin, by name."""
    found: dict[str, Installed] = {}
    for entry_point in _entry_points():
        plugin = Installed(entry_point.name, entry_point.value, entry_point.dist)
        earlier = found.get(plugin.name)
        if earlier is not None and earlier.distribution != plugin.distribution:
            plugin = msgspec.structs.replace(earlier, rivals=(*earlier.rivals, plugin.distribution))
        found[plugin.name] = plugin
    return dict(sorted(found.items()))


def _entry_points() -> Iterable[metadata.EntryPoint]:
    from importlib import metadata  # slow to import, see entry_points.py

    try:
        return metadata.entry_points(group=hookspecs.PROJECT)
    except ValueError:
        pass  # one distribution's are not UTF-8, which must not hide the others
    found: list[metadata.EntryPoint] = []
    for distribution in metadata.distributions():
        try:
            found += distribution.entry_points.select(group=hookspecs.PROJECT)
        except ValueError as error:
            log.warning("the entry points of %s can't be read: %s", distribution.name, error)
    return found


def found_quickly() -> dict[str, Installed]:
    """Find installed plugins, by name, but perhaps not all: see entry_points.py."""
    found = entry_points.find(hookspecs.PROJECT)
    return {name: Installed(name, target, directory) for name, (target, directory) in found.items()}
