"""Fixtures for pytest, which loads this module in every run: it imports nothing of the engine before a fixture is used.

``poolsrv_harness`` and ``poolsrv_server`` end what a test has started, and fail the test where that goes wrong.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .harness import Harness
    from .server import Server


@pytest.fixture
def poolsrv_harness(tmp_path: Path) -> Iterator[Callable[..., Harness]]:
    """``poolsrv_harness(Plugin, options, ...)``: a ``poolsrv.testing.Harness`` that is closed after the test.

    Its ``folder`` is ``tmp_path``, unless the test names another.
    """
    from .harness import Harness

    made: list[Harness] = []

    def make(handler: object, options: Any = None, **arguments: Any) -> Harness:
        arguments.setdefault("folder", tmp_path)
        made.append(Harness(handler, options, **arguments))
        return made[-1]

    yield make
    _close_all(made)


@pytest.fixture
def poolsrv_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """``poolsrv_server(Plugin, options, ...)``, or ``poolsrv_server(config=...)``: a ``poolsrv.testing.Server``.

    It is stopped after the test. The test fails if the server does not end with 0 then, or leaves anything behind.
    Where a test fails, pytest shows the server's log.
    """
    from .server import Server, config_of

    made: list[Server] = []

    def make(
        handler: object = None, options: Any = None, *, config: str | Path | None = None, **arguments: Any
    ) -> Server:
        if (handler is None) == (config is None):
            raise TypeError("poolsrv_server() takes either a plugin or a config")
        if config is not None and (options is not None or arguments):
            raise TypeError("poolsrv_server() takes nothing beside a config")
        text = config_of(handler, options, **arguments) if config is None else config
        made.append(Server(text, tmp_path / f"server{len(made)}"))
        return made[-1]

    yield make
    try:
        _close_all(made)
    finally:
        for server in made:
            print(server.log, file=sys.stderr)  # noqa: T201 - pytest shows it where the test has failed


def _close_all(made: list[Any]) -> None:
    errors = []
    for one in reversed(made):
        try:
            one.close()
        except BaseException as error:  # noqa: BLE001 - the others are to be closed too
            errors.append(error)
    if errors:
        raise errors[0]
