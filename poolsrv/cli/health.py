"""``poolsrv status --check``: one line and an exit code for monitoring."""

from __future__ import annotations

from pathlib import Path

from ..config.errors import ConfigErrors
from ..core.words import counted
from ..ipc.health import Health, judge, line
from .control_client import NoAnswer, ask


def check(config: Path | None) -> tuple[Health, str]:
    """Ask the server of a config how it is, whatever is wrong.

    :param config: None if the user has named none, and none is found.
    :returns: its health, and a line that says why.
    """
    if config is None:
        return line(Health.UNKNOWN, "there is no config to tell where the server is")
    try:
        status = ask(config)
    except ConfigErrors as errors:
        first, *others = errors.problems
        more = f" (and {counted(len(others), 'more error')})" if others else ""
        return line(Health.UNKNOWN, f"{first}{more}")
    except NoAnswer as error:
        return line(Health.DOWN if error.is_down else Health.UNKNOWN, str(error))
    return judge(status)
