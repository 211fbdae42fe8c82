"""Where the plugins of a config keep captures of failed runs, for ``poolsrv replay``."""

from __future__ import annotations

import os

from ..worker.spec import ServerSpec


def capture_folders(server: ServerSpec) -> list[str]:
    """The folders that handlers name in their attribute ``capture_folder``, each once."""
    found: dict[str, None] = {}
    for listener in server.listeners:
        folder = getattr(listener.hooks.plugins[-1].instance, "capture_folder", None)
        if isinstance(folder, str | os.PathLike):
            found[os.fspath(folder)] = None
    return list(found)
