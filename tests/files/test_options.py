"""The options of files, in the plugin of that name and beside programs, and the mistakes in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from poolsrv_cgi.options import Options as CgiOptions
from poolsrv_cgi.options import problems
from poolsrv_files import Files

from poolsrv import ConfigError
from poolsrv.config.decoder import Decoder
from poolsrv.config.errors import Problems


def decoded(value: object, tmp_path: Path) -> Any:
    found = Problems(tmp_path / "poolsrv.toml")
    options = Decoder(found, tmp_path).decode(Files.Options, {"root": value}, ())
    assert not found.keys
    return options.root


def test_a_directory_is_short_for_a_table(tmp_path: Path) -> None:
    """Relative paths count from the config in both."""
    assert decoded("htdocs", tmp_path) == {"/": tmp_path / "htdocs"}
    assert decoded({"/a": "x", "/b": "/y"}, tmp_path) == {"/a": tmp_path / "x", "/b": Path("/y")}


@pytest.mark.parametrize("value", [5, True, ["htdocs"], {"/": 5}, "", "a\0b"])
def test_anything_else_is_an_error_that_says_what_is_meant(value: object, tmp_path: Path) -> None:
    found = Problems(tmp_path / "poolsrv.toml")
    Decoder(found, tmp_path).decode(Files.Options, {"root": value}, ())
    assert len(found) == 1


def mistake(**options: Any) -> tuple[str, str]:
    with pytest.raises(ConfigError) as error:
        Files(Files.Options(**options))
    return error.value.key, error.value.message


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"root": {"/": Path("/nonexistent")}}, "root"),
        ({"root": {"/": Path("/etc/passwd")}}, "root"),
        ({"root": {"a": Path("/etc")}}, "root"),
        ({"root": {"/a/../b": Path("/etc")}}, "root"),
        ({"root": {"/a": Path("/etc"), "/a/": Path("/usr")}}, "root"),
        ({"index": ("a/b",)}, "index"),
        ({"index": ("",)}, "index"),
        ({"index": (".htaccess",)}, "index"),
        ({"media_types": {"md": "text/markdown"}}, "media_types"),
        ({"media_types": {".md": "markdown"}}, "media_types"),
        ({"media_types": {".md": "text/markdown\r\nX: y"}}, "media_types"),
        ({"default_media_type": ""}, "default_media_type"),
        ({"charset": "utf-8\r\n"}, "charset"),
        ({"charset": "ütf"}, "charset"),
        ({"cache_control": "no-cache\r\nSet-Cookie: a"}, "cache_control"),
        ({"cache_control": {"*.html": "nö"}}, "cache_control"),
        ({"cache_control": {"assets/*": "no-cache"}}, "cache_control"),
        ({"access_log": Path("/nonexistent/log")}, "access_log"),
    ],
)
def test_mistakes(options: dict[str, Any], key: str) -> None:
    found, message = mistake(**{"root": {"/": Path("/etc")}, **options})
    assert found == key
    assert message.isprintable()


def test_files_beside_programs(tmp_path: Path) -> None:
    """Each URL has one meaning."""

    def found(**options: Any) -> list[str]:
        return [key for key, _ in problems(CgiOptions(**options))]

    here = {"root": tmp_path, "files": {"/": tmp_path}}
    assert found(**here, prefix="/cgi-bin/") == []
    assert found(**here) == ["files"]
    assert found(root=tmp_path, files={"/static": tmp_path}) == []
    assert found(root=tmp_path, prefix="/x/", files={"/x": tmp_path}) == ["files"]
    assert found(aliases={"/sh": Path("/bin/sh")}, files={"/": tmp_path}) == []
    assert found(**here, prefix="/cgi-bin/", file_index=("a/b",)) == ["file_index"]
    assert found(protocol="line", root=tmp_path, files={"/": tmp_path}) == ["files", "files"]
    assert found(protocol="line", root=tmp_path, listings=True) == ["listings"]
