"""``python -m tools.website.check_site FOLDER``: whether the site that MkDocs has built is whole.

Nothing is loaded from elsewhere, every page is in the navigation and in the search, every link within the site leads to
a page, and to a place that it has.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

BASE = "https://site.invalid/"
# Attributes from which a browser loads something without being asked, by element.
LOADED = {
    "audio": "src", "iframe": "src", "img": "src", "script": "src", "source": "src", "video": "src",
}  # fmt: skip
LOADED_LINKS = {"stylesheet", "preload", "icon", "preconnect", "dns-prefetch", "manifest", "modulepreload"}


class Page(HTMLParser):
    """What a page of the site names.

    :ivar assets: what a browser loads by itself.
    :ivar links: what a reader can follow.
    :ivar anchors: places in the page.
    :ivar nav: links of the navigation.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.assets: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.nav: list[str] = []
        self._depth = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what the element names."""
        values = {name: value or "" for name, value in attrs}
        if tag == "nav":
            self._depth += 1
        if "id" in values:
            self.anchors.add(values["id"])
        if tag in LOADED and LOADED[tag] in values:
            self.assets.append(values[LOADED[tag]])
        if tag == "link" and set(values.get("rel", "").split()) & LOADED_LINKS:
            self.assets.append(values["href"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
            if self._depth:
                self.nav.append(values["href"])

    def handle_endtag(self, tag: str) -> None:
        """Leave the navigation."""
        if tag == "nav":
            self._depth -= 1


def problems(folder: Path) -> Iterator[str]:
    """What is wrong with a site, one line each."""
    pages = {
        str(path.relative_to(folder)): Page(path.read_text(encoding="utf-8"))
        for path in sorted(folder.rglob("*.html"))
        if path.name != "404.html"
    }
    for style in folder.rglob("*.css"):
        for target in re.findall(r"url\(['\"]?(https?:[^)]*|//[^)]*)\)", style.read_text(encoding="utf-8")):
            yield f"{style.relative_to(folder)} loads {target}"
    for name, page in pages.items():
        for target in page.assets:
            if target.startswith("data:"):
                continue
            if urlsplit(urljoin(BASE + name, target)).netloc != urlsplit(BASE).netloc:
                yield f"{name} loads {target}"
            elif _file(folder, name, target) is None:
                yield f"{name} loads {target}, which does not exist"
        for target in page.links:
            yield from _link(folder, pages, name, target)
    home = pages["index.html"]
    shown = {_file(folder, "index.html", target) for target in home.nav}
    index = json.loads((folder / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {_file(folder, "index.html", entry["location"]) for entry in index["docs"]}
    for name in pages:
        if name not in shown:
            yield f"{name} is not in the navigation"
        if name not in found:
            yield f"{name} is not in the search"


def _link(folder: Path, pages: dict[str, Page], name: str, target: str) -> Iterator[str]:
    parts = urlsplit(urljoin(BASE + name, target))
    if parts.netloc != urlsplit(BASE).netloc:
        return
    file = _file(folder, name, target)
    if file is None:
        yield f"{name} has a link to {target}, which does not exist"
    elif parts.fragment and file in pages:
        anchor = unquote(parts.fragment)
        if anchor not in pages[file].anchors and not anchor.startswith("__"):
            yield f"{name} has a link to {target}, but that page has no such place"


def _file(folder: Path, name: str, target: str) -> str | None:
    """The file that a link of a page leads to; None if there is none."""
    path = unquote(urlsplit(urljoin(BASE + name, target)).path).lstrip("/")
    if path.endswith("/") or not path:
        path += "index.html"
    return path if (folder / path).is_file() else None


def main() -> None:
    """Check, and exit with 1 if anything is wrong."""
    folder = Path(sys.argv[1])
    found = list(problems(folder))
    if found:
        sys.exit("\n".join(found))
    print(f"docs: well: {folder}/index.html")


if __name__ == "__main__":
    main()
