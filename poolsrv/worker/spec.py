"""What a worker is built from: the config, and the plugins of each listener."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from ..config.model import Config, HalfClose, ListenerConfig
from .hooks import Hooks

if TYPE_CHECKING:
    from ..net.tls import ServerTls


Launch: TypeAlias = Callable[..., Any]  # of the worker's ``Reaper`` and its loop: a ``Reaper``


class ListenerSpec(msgspec.Struct, frozen=True):
    """A listener with its plugins.

    :ivar server_tls: where it has TLS.
    :ivar launch: makes, in a worker, what starts its programs; None: the worker starts them itself.
    :ivar half_close: the config's, or else the handler's attribute ``half_close``, or else ``"finish"``.
    """

    config: ListenerConfig
    hooks: Hooks
    half_close: HalfClose
    server_tls: ServerTls | None
    launch: Launch | None = None


class ServerSpec(msgspec.Struct, frozen=True):
    """All that a pool needs to know.

    :ivar listeners: in the order of the file.
    :ivar base: the config file's folder, absolute: the working directory may be another one later.
    """

    config: Config
    listeners: tuple[ListenerSpec, ...]
    base: Path
