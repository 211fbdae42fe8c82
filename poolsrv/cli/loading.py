"""Load a config as a pool would, for commands that show or check it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.errors import ConfigErrors
from .output import EXIT_FAILED, EXIT_USAGE, fail

if TYPE_CHECKING:
    from ..config.arguments import Arguments
    from ..config.draft import Draft
    from ..worker.spec import ServerSpec


def load(config: Path) -> tuple[Draft, ServerSpec]:
    """Load a config, and its plugins as the user that the pool is to run as; exit with every error."""
    from ..config import reader

    return _load(lambda: reader.read(config))


def load_arguments(arguments: Arguments) -> tuple[Draft, ServerSpec]:
    """Do the same with the config that a command's arguments say."""
    from ..config import from_arguments

    return _load(lambda: from_arguments.read(arguments), arguments.command)


def _load(read: Callable[[], Draft], command: str = "poolsrv") -> tuple[Draft, ServerSpec]:
    from ..core import privileges
    from ..errors import StartError
    from ..plugins import loader

    try:
        draft = read()
        draft.is_served = False
        if (identity := loader.identity_for(draft)) is not None:
            privileges.become_for_imports(identity)
        return draft, loader.load_plugins(draft)
    except ConfigErrors as errors:
        fail(EXIT_USAGE, map(str, errors.problems))
    except StartError as error:
        fail(EXIT_FAILED, [f"{command}: {error}"])
