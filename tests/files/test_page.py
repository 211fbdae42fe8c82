"""docs/files.md has every option with its default, and its examples are configs that work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import poolsrv_cgi
import tomli
from poolsrv_files import Files
from poolsrv_http import FileOptions, HttpOptions

from poolsrv.config.decoder import Decoder
from poolsrv.config.errors import Problems

PAGE = (Path(__file__).parents[2] / "docs" / "files.md").read_text()
OF_HTTP = {field.name for field in msgspec.structs.fields(HttpOptions)}
FIELDS = {field.name: field for field in msgspec.structs.fields(Files.Options) if field.name not in OF_HTTP}


def test_every_option_is_on_the_page_with_its_default() -> None:
    rows = re.findall(r"^\| `(\w+)` \| [^|]* \| ([^|]*) \|", PAGE.partition("## Options")[2], re.MULTILINE)
    assert {name for name, _ in rows} == set(FIELDS)
    for name, default in rows:
        field = FIELDS[name]
        value = field.default if field.default is not msgspec.NODEFAULT else None
        if name == "media_types":
            value = {}
        assert default == ("required" if field.required else f"`{json.dumps(value)}`"), name


def test_every_option_is_described() -> None:
    """For `poolsrv plugins files`."""
    for struct in (Files.Options, FileOptions):
        own = list(struct.__annotations__)
        assert re.findall(r":ivar (\w+):", struct.__doc__ or "") == own


def test_the_examples_are_configs() -> None:
    options = {"files": Files.Options, "cgi": poolsrv_cgi.Cgi.Options}
    examples = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert len(examples) == 2
    for example in examples:
        (listener,) = tomli.loads(example)["listeners"].values()
        handler = listener["handler"]
        problems = Problems(Path("files.md"))
        Decoder(problems, Path()).decode(options[handler], listener[handler], ())
        assert not problems


def test_the_other_servers_options_have_counterparts_that_exist() -> None:
    table = PAGE.partition("## Moving from another server")[2]
    for cell in re.findall(r"\| ([^|]*) \|$", table, re.MULTILINE)[2:]:
        for name in re.findall(r"`(\w+) = ", cell):
            assert name in FIELDS, name
