"""What commands that ask or signal a running server print when that fails."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..config.errors import ConfigErrors
from .output import EXIT_FAILED, EXIT_USAGE, fail


@contextmanager
def reporting_failures() -> Iterator[None]:
    """Exit with a message if a server can't be asked or signalled."""
    from .control_client import NoAnswer

    try:
        yield
    except ConfigErrors as errors:
        fail(EXIT_USAGE, map(str, errors.problems))
    except NoAnswer as error:
        fail(error.exit_code, [f"poolsrv: {error}"] if error.exit_code == EXIT_FAILED else [str(error)])
