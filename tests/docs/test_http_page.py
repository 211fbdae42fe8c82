"""docs/http.md beside the code: every public member with its signature, the options, and examples that work."""

from __future__ import annotations

import inspect
import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import poolsrv_http
import pytest

from tests.docs.test_plugins_page import public, signature
from tests.helpers.distributions import install
from tests.helpers.http import Client
from tests.helpers.plugins import listener
from tests.helpers.server import ServerProcess

PAGE = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
BLOCKS = [textwrap.dedent(block) for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]
HOOKS = {name for name in dir(poolsrv_http.HttpServer) if name.startswith("on_")} | {"on_worker_start"}
# Public in the code, for the library's own parts alone.
LIBRARY = {
    "HttpPlugin": HOOKS,
    "Request": set(),
    "RequestBody": {
        "await_rest", "forget", "is_idle", "is_over", "may_go_on", "on_input", "rest_may_come", "stop", "throw_away",
        "unread", "when_fed",
    },
    "Response": {"abandon", "begin", "caught_up", "input_came"},
}  # fmt: skip


def documented(section: str) -> dict[str, str]:
    """The members of a section: name to the whole of what stands between the backquotes."""
    text = re.search(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert text is not None, section
    found = re.findall(r"^- `([^`]+)`:", text[1], re.MULTILINE)
    return {re.split(r"\W", code, maxsplit=1)[0]: code for code in found}


def as_documented(name: str, function: Any) -> str:
    """A signature in the page's words: `Callback` is an alias, and bytes have double quotes."""
    return signature(name, function).replace("Callback", "Callable[[], object]").replace("b''", 'b""')


@pytest.mark.parametrize("name", LIBRARY)
def test_every_member_is_on_the_page_as_it_is(name: str) -> None:
    cls = getattr(poolsrv_http, name)
    page = documented(name)
    assert set(page) == public(cls) - LIBRARY[name]
    for member_name, code in page.items():
        member = inspect.getattr_static(cls, member_name, None)
        if inspect.isfunction(member):
            assert code == as_documented(member_name, member)
        elif isinstance(member, property):
            assert code == f"{member_name}: {inspect.signature(member.fget).return_annotation}"  # type: ignore[arg-type]
        else:
            assert re.fullmatch(rf"{member_name}: \S.*", code)


def test_every_hook_that_the_base_class_fills_is_on_the_page() -> None:
    text = PAGE.partition("## HttpPlugin")[2].partition("\n## ")[0]
    for name in HOOKS:
        assert f"`{name}`" in text


def test_every_option_is_on_the_page_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([^|]*) \|", PAGE, re.MULTILINE)
    fields = msgspec.structs.fields(poolsrv_http.HttpOptions)
    assert [name for name, _ in rows] == [field.name for field in fields]
    for (name, default), field in zip(rows, fields, strict=True):
        expected = "none" if field.default is None else f"`{json.dumps(field.default)}`"
        assert default == expected, name


def test_every_public_name_is_on_the_page() -> None:
    for name in poolsrv_http.__all__:
        assert re.search(rf"\b{name}\b", PAGE), name


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("http")
    site = folder / "site"
    for number, block in enumerate(BLOCKS):
        (name,) = re.findall(r"^class (\w+)\(HttpPlugin\):", block, re.MULTILINE)
        install(site, f"page-{number}", {name.lower(): f"page_{number}:{name}"}, block)
    (folder / "htdocs").mkdir()
    (folder / "htdocs" / "index.html").write_text("from a file")
    config = listener("greeter") + '[listeners.greeter.greeter]\ngreeting = "guest"\n' + listener("upper")
    config += listener("site") + '[listeners.site.site]\nfiles = "htdocs"\n'
    with ServerProcess("[pool]\nworkers = 1\n" + config, folder, paths=(site,)) as running:
        yield running.wait_ready()


@pytest.mark.server
def test_the_examples_work(server: ServerProcess) -> None:
    assert len(BLOCKS) == 3
    with Client(server, "site") as client:
        assert [client.get(path).body for path in ("/hello", "/")] == [b"hello\n", b"from a file"]
    with Client(server, "greeter") as client:
        assert client.get("/").body == b"guest number 1\n"
        assert client.get("/").body == b"guest number 2\n"
    with Client(server, "upper") as client:
        for _ in range(2):
            answer = client.get("/", method="POST", body=b"hello" * 100_000)
            assert answer.body == b"HELLO" * 100_000
            assert b"connection" not in answer.headers
