"""docs/cgi.md has every option with its type and default, and its examples are configs that work."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli
from poolsrv_cgi.options import PROTOCOLS, Limits, Options

from poolsrv.config.decoder import Decoder
from poolsrv.config.errors import Problems

PAGE = (Path(__file__).parents[2] / "docs" / "cgi.md").read_text()
FIELDS = {field.name: field for field in msgspec.structs.fields(Options)}
HEADINGS = {
    (): "### For every protocol",
    ("http", "line"): "### For http and line",
    ("http",): "### For http",
    ("line",): "### For line",
    ("line", "inetd"): "### For line and inetd",
    ("inetd",): "### For inetd",
}


def rows(heading: str) -> list[list[str]]:
    """The first table below a heading."""
    text = PAGE.partition(f"\n{heading}\n")[2].lstrip("\n")
    lines = [line for line in text.split("\n\n", 1)[0].splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("protocols", HEADINGS, ids=str)
def test_every_option_is_on_the_page(protocols: tuple[str, ...]) -> None:
    """Below the heading of its protocols, in the order of the code."""
    expected = [name for name in FIELDS if PROTOCOLS.get(name, ()) == protocols]
    assert [row[0].strip("`") for row in rows(HEADINGS[protocols])] == expected


def default_of(name: str) -> Any:
    field = FIELDS[name]
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()


def test_the_defaults_are_those_of_the_code() -> None:
    shown = {row[0].strip("`"): row[2] for heading in HEADINGS.values() for row in rows(heading)}
    expected = {}
    for name in FIELDS:
        default = default_of(name)
        if name == "umask":
            expected[name] = "that of the server"
        elif default is None or name == "program":
            expected[name] = shown[name] if shown[name] in ("required", "none") else "required or none"
        else:
            expected[name] = f"`{json.dumps({} if default == Limits() else default)}`"
    assert shown == expected


def test_every_limit_is_on_the_page() -> None:
    text = PAGE.partition("`limits` has these keys")[2]
    keys = re.findall(r"^\| `(\w+)`", text.partition("###")[0], re.MULTILINE)
    assert keys == [field.name for field in msgspec.structs.fields(Limits)]


def test_the_examples_are_configs() -> None:
    """Every option in an example exists, and has a value of its type."""
    found = 0
    for example in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL):
        for listener in tomli.loads(example)["listeners"].values():
            problems = Problems(Path("cgi.md"))
            Decoder(problems, Path()).decode(Options, listener["cgi"], ("cgi",))
            assert not problems
            found += 1
    assert found > 2


def test_the_tables_name_options_that_exist() -> None:
    """What is said to take the place of another server's option."""
    for cell in re.findall(r"^\| `[^|]*` \| (`.*`) \|$", PAGE.partition("### From lighttpd")[0], re.MULTILINE):
        for name in re.findall(r"`(\w+)(?: =|`)", cell):
            assert name in FIELDS, name
