"""docs/plugins.md beside the code: every hook and public member with its signature, and recipes that work."""

from __future__ import annotations

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from hashlib import pbkdf2_hmac
from pathlib import Path
from typing import Any

import pytest

import poolsrv
from poolsrv.config.model import DEFAULT_KEYS
from poolsrv.plugins import listener_keys
from poolsrv.worker import hookspecs
from poolsrv.worker.hooks import HOOK_NAMES
from tests.helpers import kinds
from tests.helpers.certificates import Certificates
from tests.helpers.distributions import install
from tests.helpers.http import Client
from tests.helpers.plugins import ask, listener
from tests.helpers.server import ServerProcess, receive_all
from tools.website import api

PAGE = (Path(__file__).parents[2] / "docs" / "plugins.md").read_text()

STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
METRICS = ("Metrics", "Counter", "Gauge", "Histogram")
# Public in the code, for the engine alone.
ENGINE = api.HIDDEN
# A connection's hooks stand in the place of these.
STREAM_ONLY = {"on_readable", "on_writable", "on_close"}


def documented(section: str) -> dict[str, str]:
    """The members of a section: name to the whole of what stands between the backquotes."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert text is not None, section
    members = {}
    for line in re.findall(r"^- (`.*)$", text[1], re.MULTILINE):
        # Several attributes may share a line, before the colon.
        for code in re.findall(r"`([^`]+)`(?:, |:)", line.split("`:")[0] + "`:"):
            members[re.match(r"\w+", code)[0]] = code  # type: ignore[index]
    return members


def signature(name: str, function: Any) -> str:
    """As in the source, without ``self``; annotations are strings, or simple types."""
    parameters, bare_star = [], False
    found = inspect.signature(function)
    for parameter in found.parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            bare_star = True
        elif parameter.kind is parameter.KEYWORD_ONLY and not bare_star:
            bare_star = True
            parameters.append("*")
        star = STARS.get(parameter.kind, "")
        annotation = getattr(parameter.annotation, "__name__", parameter.annotation)
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        parameters.append(f"{star}{parameter.name}: {annotation}{default}".replace("''", '""'))
    result = "" if found.return_annotation is found.empty or name[0].isupper() else f" -> {found.return_annotation}"
    return f"{name}({', '.join(parameters)}){result}".replace("BytesLike", "bytes | bytearray | memoryview")


def public(cls: type) -> set[str]:
    """Members without an underscore: those of the class, and the attributes that its docstring lists."""
    listed = re.findall(r":ivar ([\w, ]+):", " ".join(inspect.getdoc(base) or "" for base in cls.__mro__[:-1]))
    names = {name for names in listed for name in names.split(", ")}
    return names | {name for name in dir(cls) if not name.startswith("_")}


def parameters(code: str) -> list[str]:
    """The names of a function's parameters, as the page has them."""
    (function,) = ast.parse(f"def {code}: pass").body
    assert isinstance(function, ast.FunctionDef)
    found = (*function.args.args, function.args.vararg, *function.args.kwonlyargs)
    return [argument.arg for argument in found if argument is not None]


def check(cls: type, section: str, without: set[str]) -> None:
    page = documented(section)
    known = public(cls) - without
    assert set(page) <= known if kinds.is_compiled else set(page) == known
    for name, code in page.items():
        member = inspect.getattr_static(cls, name, None)
        if inspect.isfunction(member):
            assert code == signature(name, member)
        elif inspect.ismethoddescriptor(member):  # a compiled one
            assert parameters(code) == list(inspect.signature(member).parameters)[1:]
        elif isinstance(member, property):
            assert code == f"{name}: {inspect.signature(member.fget).return_annotation}"  # type: ignore[arg-type]
        else:
            assert re.fullmatch(rf"{name}: \S.*", code)


def test_every_hook_is_on_the_page_as_it_is() -> None:
    assert documented("Hooks") == {name: signature(name, getattr(hookspecs, name)) for name in HOOK_NAMES}


def test_every_member_of_a_stream_is_on_the_page_as_it_is() -> None:
    check(poolsrv.Stream, "Stream", set())


def test_every_member_of_a_connection_is_on_the_page_as_it_is() -> None:
    check(poolsrv.Connection, "Connection", public(poolsrv.Stream))
    assert set(documented("Stream")) >= STREAM_ONLY


@pytest.mark.parametrize(
    "name", ["Child", "ClientTls", "Sandbox", "Worker", "ServerReport", *METRICS, "Timer", "Handle"]
)
def test_every_member_of_the_others_is_on_the_page_as_it_is(name: str) -> None:
    check(getattr(poolsrv, name), name, ENGINE.get(name, set()))


def test_the_attributes_of_a_class_are_on_the_page() -> None:
    said = re.findall(r'"(\w+)"', (Path(listener_keys.__file__)).read_text())
    names = {"defaults", "half_close", "requires_workers", "exclusive", "apart", "believes_proxies"}
    assert names - {"believes_proxies"} <= set(said)
    assert set(documented("Options")) == names
    assert all(f"`{key}`" in PAGE for key in DEFAULT_KEYS)


def test_the_errors_are_on_the_page_as_they_are() -> None:
    errors = [poolsrv.ConfigError, poolsrv.LineTooLong, poolsrv.FrameTooLong]
    expected = {cls.__name__: signature(cls.__name__, cls) for cls in errors}
    assert documented("Errors") == expected


def test_every_name_that_plugins_import_is_on_the_page() -> None:
    for name in poolsrv.__all__:
        assert re.search(rf"\b{name}\b", PAGE), name


# -- the recipes

BLOCKS = [textwrap.dedent(block) for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "files").mkdir()
    (folder / "files" / "index.txt").write_text("from a file\n")
    Certificates(folder)
    site = folder / "site"
    for number, block in enumerate(BLOCKS):
        (name,) = re.findall(r"^class (\w+)[:(]", block, re.MULTILINE)
        install(site, f"recipe-{number}", {name.lower(): f"recipe_{number}:{name}"}, block)
    config = "".join(
        [
            "[pool]\nworkers = 1\n",
            *map(listener, ["shout", "lengths", "notes", "digest", "lookup", "async", "load", "words"]),
            listener("chat", workers=1),
            listener("folder") + '[listeners.folder.folder]\nroot = "files"\n',
            listener("counter"),
            listener("denied", "echo", plugins=["deny"]) + '[listeners.denied.deny]\nnetworks = ["127.0.0.0/8"]\n',
            listener("limited", "echo", plugins=["fair"]),
            listener("backend", "shout", bind="unix:backend.sock"),
            listener("proxy") + '[listeners.proxy.proxy]\nto = "unix:backend.sock"\n',
            listener("sealedbackend", "shout", bind="unix:sealed.sock")
            + '[listeners.sealedbackend.tls]\ncertificate = "server.pem"\nkey = "server.key"\n',
            listener("sealed")
            + '[listeners.sealed.sealed]\nto = "unix:sealed.sock"\n'
            + 'upstream_tls = { server_name = "localhost", ca_file = "ca.pem" }\n',
            listener("filter") + '[listeners.filter.filter]\nto = "unix:backend.sock"\n',
        ]
    )
    with ServerProcess(config, folder, paths=(site,)) as running:
        yield running.wait_ready()


@pytest.mark.server
def test_all_recipes_are_tried(server: ServerProcess) -> None:
    tried = "Shout Folder Lengths Counter Deny Fair Notes Digest Lookup Proxy Filter Sealed Chat Async Load Words"
    assert set(re.findall(r"^class (\w+)", "\n".join(BLOCKS), re.MULTILINE)) == set(tried.split())


@pytest.mark.server
@pytest.mark.parametrize(
    ("name", "sent", "answer"),
    [
        ("shout", b"hello", b"HELLO"),
        ("folder", b"", b"from a file\n"),
        ("lengths", b"\0\0\0\x05hello\0\0\0\0\0\0", b"\0\0\0\x05hello\0\0\0\0"),
        ("counter", b"a\nb\n", b"1\n2\n"),
        ("notes", b"a\nb\n", b"1\n2\n"),
        ("digest", b"poolsrv\n" * 100, (pbkdf2_hmac("sha256", b"poolsrv", b"salt", 100).hex() + "\n").encode() * 100),
        ("lookup", b"127.0.0.1\n127.0.0.2\n", b"127.0.0.1\n127.0.0.2\n"),
        ("limited", b"hello", b"hello"),
        ("proxy", b"hello", b"HELLO"),
        ("sealed", b"hello", b"HELLO"),
        ("filter", b"a secret", b"A ******"),
        ("async", b"hello\n", b"olleh\n"),
        ("words", b"HELLO you\n\n", b"1\n2\n"),
    ],
)
def test_a_recipe_answers(server: ServerProcess, name: str, sent: bytes, answer: bytes) -> None:
    assert server.exchange(name, sent) == answer


@pytest.mark.server
def test_the_recipe_for_refusing(server: ServerProcess) -> None:
    # As early as in connect(2).
    with pytest.raises(ConnectionResetError), server.connect("denied") as sock:
        receive_all(sock)


@pytest.mark.server
def test_the_recipe_for_limits(server: ServerProcess) -> None:
    socks = [server.connect("limited") for _ in range(20)]
    try:
        for sock in socks:
            assert ask(sock, b"hello") == b"hello"
        with pytest.raises(ConnectionResetError), server.connect("limited") as one_more:
            receive_all(one_more)
    finally:
        for sock in socks:
            sock.close()


@pytest.mark.server
def test_the_recipe_for_a_chat(server: ServerProcess) -> None:
    with server.connect("chat") as first, server.connect("chat") as second:
        for sock in (first, second):
            assert ask(sock, b"here").endswith(b"here")
        first.sendall(b"hello\n")
        for sock in (first, second):
            with sock.makefile("rb") as lines:
                assert b"hello\n" in lines


@pytest.mark.server
def test_the_recipe_for_http(server: ServerProcess) -> None:
    with Client(server, "load") as client:
        answer = client.get("/load")
        assert (answer.status, answer.headers[b"content-type"]) == (200, b"application/json")
        assert len(json.loads(answer.body)["load"]) == 3
        assert client.get("/load", method="HEAD").body == b""
        assert client.get("/load", method="POST", body=b"x").status == 405
        assert client.get("/").status == 404
    (recipe,) = (block for block in BLOCKS if "class Load" in block)
    assert len(recipe.strip().splitlines()) == 15
