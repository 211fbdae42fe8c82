"""Links between the pages: each leads to a file that exists, and to a heading that it has."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tools import check_dist
from tools.links import Link, anchors_of, relative_links

ROOT = Path(__file__).parents[2]
LISTED = subprocess.run(["git", "ls-files", "*.md"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
PAGES = LISTED.split() or [str(path.relative_to(ROOT)) for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))]


def is_wrong(page: str, link: Link) -> bool:
    target = (ROOT / page).parent / link.path if link.path else ROOT / page
    return not target.exists() or bool(link.anchor and link.anchor not in anchors_of(target.read_text()))


def test_every_link_leads_somewhere() -> None:
    assert PAGES
    assert [
        (page, each) for page in PAGES for each in relative_links((ROOT / page).read_text()) if is_wrong(page, each)
    ] == []


def test_a_reader_of_the_readme_finds_each_page() -> None:
    linked = {link.path for link in relative_links((ROOT / "README.md").read_text())}
    assert {f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")} <= linked


def test_links_are_found_and_headings_become_anchors() -> None:
    text = "# A `[b.C]` and *d*\n\n## Twice\n\n## Twice\n\n[x](a.md#b) `[y](c.md)`\n\n```\n# no\n[z](d.md)\n```\n[w](https://e)\n"
    assert list(relative_links(text)) == [Link("a.md", "b")]
    assert anchors_of(text) == {"a-bc-and-d", "twice", "twice-1"}


def test_links_of_the_readme_are_to_work_on_pypi(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text("# Here\n")
    check_dist.check_links(
        f"[a](#here) [b]({check_dist.REPOSITORY}/v1/docs/a.md#here) [c](https://elsewhere/x)", tmp_path
    )
    check_dist.check_links(f"![a]({check_dist.PICTURES}/v1/docs/a.md)", tmp_path)
    for wrong in (
        "docs/a.md",
        f"{check_dist.PICTURES}/v1/b.png",
        f"{check_dist.REPOSITORY}/v1/docs/b.md",
        f"{check_dist.REPOSITORY}/v1/docs/a.md#there",
    ):
        with pytest.raises(check_dist.NotRight):
            check_dist.check_links(f"[a]({wrong})", tmp_path)
    with pytest.raises(check_dist.NotRight):
        check_dist.check_links("no link", tmp_path)
