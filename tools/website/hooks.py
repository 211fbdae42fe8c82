"""What MkDocs calls while it builds the site."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parents[2]))  # MkDocs knows this file alone

from mkdocs.structure.files import File, Files

from tools.website import api, commands, exit_codes, keys, log_lines, project_files

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig

GENERATED = {
    "reference/commands.md": commands.page,
    "reference/keys.md": keys.page,
    "reference/plugin-options.md": keys.plugin_options,
    "reference/hooks.md": api.hooks,
    "reference/members.md": api.members,
    "reference/http.md": api.http,
    "reference/testing.md": api.testing,
    "reference/log-lines.md": log_lines.page,
    "reference/exit-codes.md": exit_codes.page,
}
MORE = "How-to"  # the section for pages that mkdocs.yml does not name


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put every page of docs/ that the navigation does not name at the end of a section, and the examples too."""
    nav: list[Any] = config.nav or []
    named = set(re.findall(r"[\w./-]+\.md", repr(nav)))
    docs = Path(config.docs_dir)
    others = sorted(str(path.relative_to(docs)) for path in docs.rglob("*.md"))
    _section(nav, MORE).extend(name for name in others if name not in named)
    examples = sorted(name for name in project_files.pages() if name.startswith("examples/"))
    examples.sort(key=lambda name: name != "examples/README.md")
    nav.insert(-1, {"Examples": [name for name in examples if name not in named]})
    config.nav = nav
    return config


def _section(nav: list[Any], title: str) -> list[Any]:
    for entry in nav:
        if isinstance(entry, dict) and title in entry:
            section = entry[title]
            assert isinstance(section, list)
            return section
    raise KeyError(title)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made."""
    for name, make in GENERATED.items():
        files.append(File.generated(config, name, content=make()))
    for name, text in project_files.pages().items():
        files.append(File.generated(config, name, content=text))
    for name in project_files.pictures():
        files.append(File.generated(config, name, abs_src_path=str(project_files.ROOT / name)))
    style = Path(__file__).with_name("extra.css")
    files.append(File.generated(config, "assets/extra.css", abs_src_path=str(style)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Make links to files beside docs/ lead somewhere."""
    place = page.file.src_uri
    if place.startswith("reference/"):
        return markdown
    return project_files.rewrite(markdown, place)
