"""The options of the cgi plugin, and the mistakes in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from poolsrv_cgi import options as module
from poolsrv_cgi.options import PROTOCOLS, Limits, Options, problems


@pytest.fixture
def root(tmp_path: Path) -> Path:
    program = tmp_path / "run.sh"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "plain.py").write_text("")
    return tmp_path


def found(**options: Any) -> list[str]:
    return [key for key, _ in problems(Options(**options))]


def test_every_option_is_described() -> None:
    """RFC 3875 section 3.1 leaves the configuration to the server: here each option says what it does."""
    for struct in (Options, Limits):
        described: list[str] = []
        text = " ".join(base.__doc__ or "" for base in reversed(struct.__mro__))
        for names in re.findall(r":ivar ([^:]*):", text):
            described += names.split(", ")
        assert described == [field.name for field in msgspec.structs.fields(struct)]


def test_every_protocol_is_known() -> None:
    """Each option is for every protocol or for those named."""
    assert set(PROTOCOLS) <= {field.name for field in msgspec.structs.fields(Options)}
    assert {protocol for protocols in PROTOCOLS.values() for protocol in protocols} == {"http", "line", "inetd"}


def test_good_ones(root: Path) -> None:
    """No mistake is found in correct options."""
    assert found(root=root) == []
    assert found(aliases={"/git": root / "run.sh", "/py": root / "plain.py"}, interpreters={".py": ("python3",)}) == []
    assert found(protocol="line", root=root, arguments=True, max_line=100, stderr="client") == []
    assert found(protocol="inetd", program=("cat",), stderr="client") == []
    assert found(root=root, warm=("/app/*", "*.py"), warm_modules=("json", "email.message"), nph=("*/nph-*",)) == []
    forwarded = {"client_field": "Forwarded", "scheme_field": "forwarded", "host_field": "FORWARDED"}
    assert found(root=root, user_field="X-User", auth_type_field="x-type", **forwarded) == []
    assert found(roots={"/cgi-bin": root, "/htbin/": root / "none"}) == []
    assert found(root=root, prefix="/a", roots={"/": root, "/a/b": root}) == []
    assert found(root=root, prefix="/cgi-bin/", index="index.cgi", access_log=root / "log") == []


@pytest.mark.parametrize("command", [("no-such-program",), ("/no/such/program",), ("/etc/passwd",), ("/",), ("a\0b",)])
def test_a_command_that_is_not_there(root: Path, command: tuple[str, ...]) -> None:
    """A command that would fail with every request is found at the start."""
    assert found(root=root, interpreters={".php": command}) == ["interpreters"]
    assert found(protocol="line", root=root, interpreters={".php": command}) == ["interpreters"]
    assert found(protocol="inetd", program=command) == ["program"]


def test_a_command_is_searched_for_in_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a program is started."""
    assert found(protocol="inetd", program=("run.sh",)) == ["program"]
    monkeypatch.setenv("PATH", str(root))
    assert found(protocol="inetd", program=("run.sh",)) == []
    assert found(root=root, interpreters={".x": ("bin/relative",)}) == []


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"protocol": "line", "index": "x"}, "index"),
        ({"protocol": "line", "program": ("x",)}, "program"),
        ({"protocol": "line", "keepalive_timeout": 1.0}, "keepalive_timeout"),
        ({"arguments": True}, "arguments"),
        ({"stderr": "client"}, "stderr"),
        ({"program": ("x",)}, "program"),
    ],
)
def test_wrong_protocol(root: Path, options: dict[str, Any], key: str) -> None:
    """An option under a protocol that has no use for it is an error that says so."""
    [(name, message)] = problems(Options(root=root, **options))
    assert name == key
    assert f'protocol "{options.get("protocol", "http")}"' in message
    assert "expected protocol" in message


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"root": None}, "root"),
        ({"root": Path("/nonexistent/directory")}, "root"),
        ({"protocol": "line", "root": None}, "root"),
        ({"protocol": "inetd", "root": None}, "program"),
        ({"protocol": "inetd", "root": None, "program": ("/nonexistent",)}, "program"),
        ({"prefix": "cgi-bin"}, "prefix"),
        ({"prefix": "/a/../b"}, "prefix"),
        ({"roots": {"cgi-bin": Path("/usr")}}, "roots"),
        ({"roots": {"/a": Path("/usr"), "/a/": Path("/bin")}}, "roots"),
        ({"roots": {"/": Path("/usr")}}, "roots"),
        ({"roots": {"/a": Path("/etc/passwd")}}, "roots"),
        ({"protocol": "line", "roots": {"/a": Path("/usr")}}, "roots"),
        ({"index": "a/b"}, "index"),
        ({"index": ".."}, "index"),
        ({"aliases": {"git": Path("/bin/sh")}}, "aliases"),
        ({"aliases": {"/git": Path("/nonexistent")}}, "aliases"),
        ({"aliases": {"/git": Path("/etc/passwd")}}, "aliases"),
        ({"aliases": {"/git": Path("/etc")}}, "aliases"),
        ({"environment": {"A=B": "x"}}, "environment"),
        ({"environment": {"A": "x\0"}}, "environment"),
        ({"pass_environment": ("",)}, "pass_environment"),
        ({"interpreters": {"py": ("python3",)}}, "interpreters"),
        ({"interpreters": {".py": ()}}, "interpreters"),
        ({"extensions": ("cgi",)}, "extensions"),
        ({"extensions": (".tar.gz",)}, "extensions"),
        ({"warm": True, "warm_modules": ("not a name",)}, "warm_modules"),
        ({"warm_modules": ("json",)}, "warm_modules"),
        ({"nph": ("nph-*",)}, "nph"),
        ({"warm": ("app",)}, "warm"),
        ({"access_log": Path("/nonexistent/log")}, "access_log"),
        ({"access_log": Path("/etc")}, "access_log"),
        ({"user_field": "X_User"}, "user_field"),
        ({"user_field": "X-Üser"}, "user_field"),
        ({"user_field": "X-User:"}, "user_field"),
        ({"user_field": "-"}, "user_field"),
        ({"user_field": "Forwarded"}, "user_field"),
        ({"user_field": "authorization"}, "user_field"),
        ({"host_field": "Host"}, "host_field"),
        ({"scheme_field": "Content-Type"}, "scheme_field"),
        ({"auth_type_field": "X-Type"}, "auth_type_field"),
        ({"user_field": "X-A", "client_field": "x-a"}, "client_field"),
    ],
)
def test_mistakes(root: Path, options: dict[str, Any], key: str) -> None:
    """Each mistake is found once, with its key."""
    assert found(**{"root": root, **options}) == [key]


def test_all_mistakes_at_once(root: Path) -> None:
    """Not only the first is reported."""
    assert found(root=root, index="/", arguments=True, extensions=("x", "y")) == [
        "arguments", "index", "extensions", "extensions",
    ]  # fmt: skip


def test_ranges_are_declared() -> None:
    """The config reader checks what types can express."""
    for wrong in ({"timeout": -1}, {"max_programs": -1}, {"max_line": 1}, {"limits": {"open_files": 1}}, {"x": 1}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, Options, dec_hook=lambda kind, value: kind(value))
    good = msgspec.convert({"root": "/x", "warm": True}, Options, dec_hook=lambda kind, value: kind(value))
    assert (good.root, good.warm) == (Path("/x"), True)
    assert module.__doc__ is not None
