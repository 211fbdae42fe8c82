"""The pages of the site that are made of the source, its navigation, and the check of what MkDocs builds."""

from __future__ import annotations

import re
from pathlib import Path

import poolsrv_http
import pytest

import poolsrv
from poolsrv import testing
from poolsrv.cli.main import COMMANDS
from poolsrv.config import model
from poolsrv.worker.hooks import HOOK_NAMES
from tests.docs import test_operations_page
from tools.website import api, check_site, commands, exit_codes, keys, log_lines, markdown, project_files

ROOT = Path(__file__).parents[2]
MKDOCS = (ROOT / "mkdocs.yml").read_text()


# -- what is made of the source


def test_every_command_and_each_of_its_options_is_in_the_reference() -> None:
    page = commands.page()
    for name in [name for names in COMMANDS.values() for name in names]:
        assert f"## `poolsrv {name}`" in page
        assert f"](#poolsrv-{name}) |" in page
    assert "| `-c, --config FILE` |" in page
    assert "`POOLSRV_CONFIG` stands for `--config`" in page


def test_every_key_is_in_the_reference() -> None:
    page = keys.page()
    for header, known in {
        "[pool]": model.POOL_KEYS,
        "[limits]": model.LIMITS_KEYS,
        "[log]": model.LOG_KEYS,
        "[listeners.NAME]": model.LISTENER_KEYS,
        "[listeners.NAME.tls]": model.TlsTable.__struct_fields__,
    }.items():
        section = re.search(rf"^## `{re.escape(header)}`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        assert section is not None
        assert tuple(re.findall(r"^\| `(\w+)` \|", section[1], re.MULTILINE)) == tuple(known)
    assert {re.match(r"\[+(\w+)", header)[1] for header in keys.TABLES} == set(model.TABLES)  # type: ignore[index]
    assert '| `workers` | a whole number from 1 to 1024 or "auto" | `"auto"` |' in page


def test_options_of_the_bundled_plugins_are_in_the_reference() -> None:
    page = keys.plugin_options()
    assert "## `cgi`" in page
    assert "## `echo`" in page
    assert "| `max_programs` |" in page
    assert not re.search(r"^\| `\w+` \| \| ", page, re.MULTILINE)


def test_every_name_for_plugins_is_in_the_reference() -> None:
    for page, module, names in (
        (api.hooks(), "poolsrv.worker.hookspecs", HOOK_NAMES),
        (api.members(), "poolsrv", poolsrv.__all__),
        (api.http(), "poolsrv_http", poolsrv_http.__all__),
        (api.testing(), "poolsrv.testing", testing.__all__),
    ):
        assert set(re.findall(r"^::: ([\w.]+)$", page, re.MULTILINE)) == {f"{module}.{name}" for name in names}


def test_every_log_line_of_the_source_is_in_the_reference() -> None:
    page = log_lines.page()
    found = log_lines.messages()
    for message in found:
        if message.shown.strip(" .:#'"):
            assert f"| {message.level} | {markdown.code(message.shown)} |" in page, message
    places = {f"{Path(message.file).name}:{message.line}" for message in found}
    # Another reader of the source finds no message that is not there.
    assert {place for place, part in test_operations_page.messages() if " " in part} <= places


def test_a_line_of_the_reference_is_a_message_of_the_source() -> None:
    shown = {markdown.code(message.shown) for message in log_lines.messages()}
    rows = re.findall(r"^\| \w[\w ]* \| (`.*?`) \| ", log_lines.page(), re.MULTILINE)
    assert len(rows) > 50
    assert set(rows) <= shown


def test_what_a_log_line_means_is_what_the_page_for_operators_says() -> None:
    def meaning(text: str) -> str:
        return log_lines.meaning(log_lines.Message("", 0, "info", text)) or ""

    assert meaning("ready: %s (%s)") == "All workers serve, for the first time."
    assert meaning("worker %s failed over") == ""
    assert meaning("the dispatcher of the pool (%s) has been silent for %.1f s, %s: killing it").startswith(
        "A plugin's"
    )
    assert "](../operations.md#when-a-worker-dies-or-hangs)" in meaning(
        "the dispatcher of the pool (%s) has been silent"
    )


def test_every_exit_code_of_the_source_is_in_the_reference() -> None:
    page = exit_codes.page()
    names = set()
    for path in (ROOT / "poolsrv").rglob("*.py"):
        names |= set(re.findall(r"^(EXIT_[A-Z_]+)(?:: \w+)? = \d+", path.read_text(), re.MULTILINE))
    assert names == {code.name for code in exit_codes.codes()}
    assert all(f"| `{name}` |" in page for name in names)
    assert "| 3 | `unknown` |" in page
    assert "2  wrong usage" in page


# -- the navigation


def test_the_navigation_names_pages_that_exist() -> None:
    named = re.findall(r": ([\w./-]+\.md)$", MKDOCS, re.MULTILINE)
    assert len(named) == len(set(named))
    made = set(project_files.pages())
    hooks = (ROOT / "tools" / "website" / "hooks.py").read_text()
    for name in named:
        assert (ROOT / "docs" / name).exists() or name in made or f'"{name}"' in hooks, name
    # All made pages are named; MkDocs adds the others of docs/ and the examples, see hooks.py.
    assert set(re.findall(r'"(reference/[\w-]+\.md)"', hooks)) <= set(named)


def test_links_to_files_beside_the_pages_lead_somewhere_on_the_site() -> None:
    text = (
        "[a](../examples/systemd) [b](../examples/systemd/poolsrv.socket) [c](../bench/README.md#x) [d](cgi.md#y) "
        "[e](../Makefile) [f](https://example.org/) [g](#here) [h](../poolsrv.toml)\n\n```\n[i](../Makefile)\n```\n"
    )
    assert project_files.rewrite(text, "operations.md") == (
        "[a](examples/systemd.md) [b](examples/systemd.md#poolsrv-socket) [c](bench/README.md#x) [d](cgi.md#y) "
        f"[e]({project_files.REPOSITORY}/Makefile) [f](https://example.org/) [g](#here) "
        "[h](examples/README.md#the-sample-config)\n\n```\n[i](../Makefile)\n```\n"
    )
    assert project_files.rewrite("[a](../docs/cgi.md)", "bench/README.md") == "[a](../cgi.md)"
    assert (
        project_files.rewrite("[cgi.md](cgi.md#x) [x](cgi.md)", "plugins.md")
        == "[The cgi plugin](cgi.md#x) [x](cgi.md)"
    )
    assert "{ #poolsrv-socket }" in project_files.pages()["examples/systemd.md"]


# -- the check of a site


def site(folder: Path, **changes: str) -> Path:
    pages = {
        "index.html": '<nav><a href="a/">a</a><a href="."></a></nav><link rel="stylesheet" href="s.css">',
        "a/index.html": '<p id="here"><a href="../#x">no</a><a href="#here"></a></p>',
        "s.css": "body { background: url(data:x) }",
        "search/search_index.json": '{"docs": [{"location": ""}, {"location": "a/#here"}]}',
    }
    pages["index.html"] += '<p id="x">'
    for name, text in {**pages, **changes}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_site_that_is_whole(tmp_path: Path) -> None:
    assert list(check_site.problems(site(tmp_path))) == []


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("a/index.html", '<script src="https://cdn.example/x.js">', "a/index.html loads https://cdn.example/x.js"),
        ("a/index.html", '<link rel="preconnect" href="//fonts.example">', "a/index.html loads //fonts.example"),
        ("a/index.html", '<img src="x.png">', "a/index.html loads x.png, which does not exist"),
        ("s.css", "@import url(https://fonts.example/f);", "s.css loads https://fonts.example/f"),
        ("a/index.html", '<a href="../b/">', "a/index.html has a link to ../b/, which does not exist"),
        ("a/index.html", '<a href="../#y">', "a/index.html has a link to ../#y, but that page has no such place"),
        ("b/index.html", "<p>", "b/index.html is not in the navigation"),
        ("search/search_index.json", '{"docs": [{"location": ""}]}', "a/index.html is not in the search"),
    ],
)
def test_what_is_wrong_with_a_site(tmp_path: Path, name: str, text: str, problem: str) -> None:
    assert problem in list(check_site.problems(site(tmp_path, **{name: text})))
