"""Files of the project beside docs/ as pages of the site, and where a link to one of them leads there.

On GitHub a page of docs/ links to ``../examples/systemd``; the site has a page for that.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from .markdown import fenced

ROOT = Path(__file__).parents[2]
REPOSITORY = "https://github.com/poolsrv/poolsrv/blob/main"
# Pages that are Markdown already, at the same place on the site.
MARKDOWN = ("CHANGELOG.md", "bench/README.md", "bench/results/results.md")
SAMPLE = "poolsrv.toml"
LANGUAGES = {".py": "python", ".toml": "toml", ".sh": "sh", ".service": "ini", ".socket": "ini", ".md": "markdown"}
LANGUAGES |= {".yaml": "yaml", ".yml": "yaml"}
LONGEST = 1 << 16  # bytes of a file that is shown
_SKIPPED = {"__pycache__", "build", "dist"}
_LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)\s#]*)(#[^)\s]*)?(\))")
_FILE_NAME = re.compile(r"\[([\w-]+\.md)\](?=\(\1[)#])")  # a link that shows the name of its file
_FENCE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def pages() -> dict[str, str]:
    """The Markdown of each page that is a file, or a folder of files, of the project."""
    found = {name: (ROOT / name).read_text(encoding="utf-8") for name in MARKDOWN}
    found["LICENSE.md"] = "# Licence\n\n" + fenced((ROOT / "LICENSE").read_text(encoding="utf-8"), "text")
    found["examples/README.md"] = _examples()
    for folder in _folders():
        found[f"examples/{folder.name}.md"] = _folder(folder)
    return found


def pictures() -> Iterator[str]:
    """The files that these pages show, relative to the project."""
    for path in sorted((ROOT / "bench" / "results" / "plots").glob("*.svg")):
        yield str(path.relative_to(ROOT))


def rewrite(markdown: str, page: str) -> str:
    """Make the links of a page lead to pages of the site, or to the project's repository.

    :param page: the page's place on the site.
    """
    source = page if page in MARKDOWN or page.startswith("examples/") else f"docs/{page}"

    def replace(found: re.Match[str]) -> str:
        before, path, anchor, after = found[1], found[2], found[3] or "", found[4]
        if not path:
            return found[0]
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        return f"{before}{_place(target, anchor, page)}{after}"

    def in_prose(text: str) -> str:
        return _LINK.sub(replace, _FILE_NAME.sub(lambda found: f"[{_title(found[1])}]", text))

    # Code is left alone.
    pieces, at = [], 0
    for block in _FENCE.finditer(markdown):
        pieces += [in_prose(markdown[at : block.start()]), block[0]]
        at = block.end()
    return "".join([*pieces, in_prose(markdown[at:])])


def _title(name: str) -> str:
    """The title of a page of docs/, for readers of the site, who know no files."""
    heading = re.search(r"^# (.+)$", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.MULTILINE)
    return heading[1] if heading else name


def _place(target: str, anchor: str, page: str) -> str:
    place = _page_of(target)
    if place is None:
        return f"{REPOSITORY}/{target}{anchor}"
    path, _, own_anchor = place.partition("#")
    relative = posixpath.relpath(path, posixpath.dirname(page) or ".")
    return f"{relative}{anchor or (own_anchor and '#' + own_anchor)}"


def _page_of(target: str) -> str | None:
    """The page on the site that has a file or folder of the project; None if none has it."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    if target in MARKDOWN or target.startswith(("bench/results/plots/", "reference/")):
        return target
    if target in ("README.md", "."):
        return "index.md"
    if target == "LICENSE":
        return "LICENSE.md"
    if target == SAMPLE:
        return "examples/README.md#the-sample-config"
    top, _, rest = target.partition("/")
    if top == "examples":
        name, _, file = rest.partition("/")
        if name.endswith(".md"):
            return target
        if not name:
            return "examples/README.md"
        return f"examples/{name}.md" + (f"#{_anchor(file)}" if file else "")
    return None


def _folders() -> list[Path]:
    return sorted(path for path in (ROOT / "examples").iterdir() if path.is_dir() and path.name not in _SKIPPED)


def _examples() -> str:
    lines = ["# Examples\n", "What is in the folder `examples`, and the sample config.\n"]
    for folder in _folders():
        files = ", ".join(f"`{path.relative_to(folder)}`" for path in _files(folder))
        lines.append(f"- [{folder.name}]({folder.name}.md): {files}")
    lines += ["", "## The sample config\n", f"`{SAMPLE}`, which `make run` serves.\n"]
    return "\n".join(lines) + "\n" + fenced((ROOT / SAMPLE).read_text(encoding="utf-8"), "toml")


def _folder(folder: Path) -> str:
    """A page with each file of an example."""
    parts = [f"# {folder.name}\n", f"The folder `examples/{folder.name}`.\n"]
    for path in _files(folder):
        name = str(path.relative_to(folder))
        parts.append(f"## `{name}` {{ #{_anchor(name)} }}\n")
        text = path.read_text(encoding="utf-8")
        language = LANGUAGES.get(path.suffix, "python" if "python" in text.partition("\n")[0] else "text")
        parts.append(fenced(text, language))
    return "\n".join(parts)


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder).parts
        if path.is_file() and not _SKIPPED & set(inside) and not any(part.startswith(".") for part in inside):
            data = path.read_bytes()
            if data and b"\0" not in data and len(data) <= LONGEST:
                yield path


def _anchor(file: str) -> str:
    return re.sub(r"\W+", "-", file.lower()).strip("-")
