"""Checks the mark ``server``: a test has it if and only if a server runs, or is installed, for it.

So ``-m "not server"`` leaves out every test that starts a server, and only those. `ServerProcess` announces each start
itself. A test that starts or installs a server in another way calls `server_starts` first.
"""

from __future__ import annotations

from pathlib import Path

import pytest

_current: list[pytest.Item] = []  # the test that runs, or whose fixtures are set up
_starts = [0]
_fixtures: set[tuple[Path, str]] = set()  # file and name of the fixtures that have started a server


def server_starts() -> None:
    """Announce that the current test starts a server, or installs one.

    :raises pytest.fail.Exception: the test does not have the mark ``server``.
    """
    if _current and not _is_marked(_current[-1]):
        pytest.fail('a server starts or is installed, but this test lacks the mark "server"')
    _starts[0] += 1


def count_starts() -> int:
    """How many servers this process has started."""
    return _starts[0]


def enter(item: pytest.Item) -> None:
    """Make this test the current one."""
    _current.append(item)


def leave() -> None:
    """The current test is over."""
    _current.pop()


def note_fixture(name: str) -> None:
    """Remember that this fixture of the current test's file has started a server, which later tests share."""
    _fixtures.add((_current[-1].path, name))


def check(item: pytest.Item, starts_before: int) -> None:
    """Fail a test whose mark is not true.

    :param starts_before: `count_starts` before the test.
    """
    names = item.fixturenames if isinstance(item, pytest.Function) else ()
    has_server = count_starts() > starts_before or any((item.path, name) in _fixtures for name in names)
    if has_server and not _is_marked(item):
        pytest.fail('this test uses a server, but lacks the mark "server"', pytrace=False)
    if _is_marked(item) and not has_server:
        pytest.fail('this test has the mark "server", but no server has run for it', pytrace=False)


def _is_marked(item: pytest.Item) -> bool:
    return item.get_closest_marker("server") is not None
