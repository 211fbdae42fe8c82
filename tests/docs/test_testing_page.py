"""docs/testing.md beside the code: every public member with its signature, and examples that work."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from poolsrv import testing
from poolsrv.testing.conforming import PLAYS
from tests.helpers.server_mark import server_starts
from tools.website import api

PAGE = (Path(__file__).parents[2] / "docs" / "testing.md").read_text()
# Public in the code, for the harness alone.
ENGINE = api.HIDDEN


def documented(section: str) -> dict[str, str]:
    text = re.search(rf"^###? {section}\n(.*?)(?=^##|\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert text is not None, section
    codes: list[str] = []
    for item in re.split(r"^- (?=`)", text[1], flags=re.MULTILINE)[1:]:
        head = re.match(r"((?:`[^`]+`(?:,\s+)?)+):", item)
        assert head is not None, item
        codes += re.findall(r"`([^`]+)`", head[1])
    codes += re.findall(r"; `(log: str)` has", text[1])
    return {re.match(r"\w+", code)[0]: " ".join(code.split()) for code in codes}  # type: ignore[index]


def signature(name: str, function: Any) -> str:
    parameters, bare_star = [], False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name == "self":
            continue
        if parameter.kind is parameter.KEYWORD_ONLY and not bare_star:
            bare_star = True
            parameters.append("*")
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        star = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        parameters.append(f"{star}{parameter.name}: {parameter.annotation}{default}")
    found = inspect.signature(function).return_annotation
    return f"{name}({', '.join(parameters)})" + ("" if name[0].isupper() else f" -> {found}")


@pytest.mark.parametrize("name", ["Harness", "Client", "Server"])
def test_every_member_is_on_the_page_as_it_is(name: str) -> None:
    cls = getattr(testing, name)
    page = documented(name)
    attributes = set(re.findall(r":ivar (\w+):", inspect.getdoc(cls) or ""))
    members = {member for member in dir(cls) if not member.startswith("_")} | attributes
    assert set(page) - {name} == members - ENGINE.get(name, set())
    for member, code in page.items():
        found = cls if member == name else inspect.getattr_static(cls, member, None)
        if inspect.isfunction(found) or inspect.isclass(found):
            assert code == signature(member, found)
        elif isinstance(found, property):
            annotation = inspect.signature(found.fget).return_annotation  # type: ignore[arg-type]
            assert code == f"{member}: {annotation}"


def test_every_public_name_is_on_the_page() -> None:
    for name in testing.__all__:
        assert re.search(rf"\b{name}\b", PAGE), name
    assert documented("Options")["load_options"] == signature("load_options", testing.load_options)
    functions = documented("Conformance")
    assert set(functions) == {"assert_conforms", "conformance", "Dialogue"}
    for name, code in functions.items():
        assert code == signature(name, getattr(testing, name))


def test_every_play_is_on_the_page() -> None:
    assert re.findall(r"^\| `([\w-]+)` \|", PAGE, re.MULTILINE) == list(PLAYS)


@pytest.mark.server
@pytest.mark.long
def test_the_examples_work(tmp_path: Path) -> None:
    server_starts()
    for block in re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL):
        name = re.match(r"# (\w+\.py)\n", block)
        assert name is not None, block
        (tmp_path / name[1]).write_text(block)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "-c", os.devnull, "."],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    files = [path.read_text() for path in tmp_path.glob("test_*.py")]
    assert f"{sum(text.count('def test_') for text in files)} passed" in result.stdout
