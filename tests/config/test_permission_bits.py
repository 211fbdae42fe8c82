"""Permission bits: ``socket_mode`` and ``umask``."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolsrv.config.reader import read
from tests.helpers.configs import errors


@pytest.mark.parametrize("mode", ["0o640", '"0640"', '"640"', '"0o640"'])
def test_a_socket_mode_is_octal_however_it_is_written(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "mode.toml"
    path.write_text(f'[listeners.a]\nbind = "unix:a"\nhandler = "echo"\nsocket_mode = {mode}\n')
    assert read(path).finish().listeners[0].socket_mode == 0o640


@pytest.mark.parametrize("key", ["umask", "socket_mode"])
@pytest.mark.parametrize(
    ("written", "mode"),
    [("0o22", 0o22), ("0x1b4", 0o664), ("0b110", 0o6), ("7", 7), ("0", 0), ("0o777", 0o777), ('"022"', 0o22)],
)
def test_octal_permission_bits(key: str, written: str, mode: int, tmp_path: Path) -> None:
    assert errors(tmp_path, with_mode(key, written)) == []
    config = read(tmp_path / "test.toml").finish()
    assert (config.pool.umask if key == "umask" else config.listeners[0].socket_mode) == mode


@pytest.mark.parametrize("key", ["umask", "socket_mode"])
@pytest.mark.parametrize(
    ("written", "hint"),
    [("22", " (write 0o022)"), ("440", " (write 0o440)"), ("27 # 0o27", " (write 0o027)"), ("18", ""), ("0o1000", "")],
)
def test_permission_bits_in_decimal_are_an_error_with_a_hint(key: str, written: str, hint: str, tmp_path: Path) -> None:
    example = "0o022" if key == "umask" else "0o660"
    (message,) = errors(tmp_path, with_mode(key, written))
    assert message.endswith(f", expected permission bits in octal, such as {example}{hint}")


def with_mode(key: str, written: str) -> str:
    pool, own = (f"umask = {written}", "") if key == "umask" else ("", f"socket_mode = {written}")
    return f'[pool]\n{pool}\n[listeners.a]\nbind = "unix:a"\nhandler = "echo"\n{own}\n'


def test_decimal_permission_bits_are_recognized_however_tables_are_written(tmp_path: Path) -> None:
    listener = '[listeners.a]\nbind = ":1"\nhandler = "echo"\n'
    for written in ("pool.umask = 22\n", "pool = { workers = 1, umask = 22 }\n", '[pool]\n"umask" = 22\n'):
        assert len(errors(tmp_path, written + listener)) == 1, written
        assert errors(tmp_path, written.replace("22", "0o22") + listener) == [], written
