"""The check of the mark ``server``: a false mark fails its test."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import server_mark
from tests.helpers.server import ServerProcess


def test_a_test_without_the_mark_can_not_start_a_server(tmp_path: Path) -> None:
    with pytest.raises(pytest.fail.Exception, match='lacks the mark "server"'):
        ServerProcess("", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_test_without_the_mark_can_not_use_a_server_of_a_fixture(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(server_mark, "_fixtures", {(request.node.path, "monkeypatch")})
        with pytest.raises(pytest.fail.Exception, match='lacks the mark "server"'):
            server_mark.check(request.node, server_mark.count_starts())


def test_a_test_with_the_mark_has_to_start_a_server(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(server_mark, "_is_marked", lambda item: True)
        with pytest.raises(pytest.fail.Exception, match="no server has run"):
            server_mark.check(request.node, server_mark.count_starts())
        server_mark.check(request.node, server_mark.count_starts() - 1)
