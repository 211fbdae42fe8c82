"""Finding files below a directory and no others, and the pages of directories."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urljoin

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from poolsrv_http.files import listing as module
from poolsrv_http.files.listing import human_size, listing
from poolsrv_http.files.tree import Directory, File, FileError, Tree, Trees, is_hidden
from poolsrv_http.url_path import BadPath, decode_path, encode_path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "file").write_text("inside")
    (tmp_path / "secret").write_text("SECRET")
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2/file").write_text("SECRET")
    for name, target in (("out", "../secret"), ("sibling", "../root2/file"), ("updir", ".."), ("loop", "loop")):
        (root / name).symlink_to(target)
    (root / "absolute").symlink_to(root / "file")
    os.mkfifo(root / "fifo")
    return root


def content(tree: Tree, name: str) -> str:
    found = tree.find(os.fsencode(name))
    assert isinstance(found, File)
    with open(found.fd) as file:
        return file.read()


def status(tree: Tree, name: str) -> int:
    with pytest.raises(FileError) as error:
        tree.find(os.fsencode(name))
    return error.value.status


def test_what_is_found(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("root")
    for tree in (Tree(root), Tree(str(root) + "/"), Tree(tmp_path / "link")):
        assert content(tree, "/file") == content(tree, "/absolute") == "inside"
        for name in ("", "/", "/sub", "/sub/"):
            found = tree.find(os.fsencode(name))
            assert isinstance(found, Directory)
            assert not found.name.endswith(b"/")
    assert content(Tree("/"), f"{root}/file") == "inside"


def test_what_is_not(root: Path) -> None:
    tree = Tree(root)
    refused = ("/out", "/sibling", "/updir", "/updir/secret", "/updir/root2/file", "/loop", "/fifo")
    assert [status(tree, name) for name in refused] == [403] * len(refused)
    gone = ("/nothing", "/file/", "/file/x", "/" + "a" * 300, "/" + "a/" * 5000)
    assert [status(tree, name) for name in gone] == [404] * len(gone)
    assert status(Tree(root / "nothing"), "/file") == 404


def test_nothing_but_regular_files_is_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A FIFO without a writer would block, and a device might do something."""
    real, opened = os.open, []

    def note(name: Any, flags: int, *arguments: Any, **keywords: Any) -> int:
        if not flags & os.O_PATH:
            opened.append(os.path.realpath(name))
        return real(name, flags, *arguments, **keywords)

    monkeypatch.setattr(os, "open", note)
    for name in ("/fifo", "/out", "/sub"):
        try:
            Tree(root).find(os.fsencode(name))
        except FileError:
            pass
    assert opened == []


def test_the_file_that_was_examined_is_the_one_that_is_opened(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may write there can exchange it in between, and gets nothing by that."""
    real = os.readlink

    def exchange(name: Any) -> Any:
        answer = real(name)
        (root / "new").symlink_to("../secret")
        (root / "new").rename(root / "file")
        return answer

    monkeypatch.setattr(os, "readlink", exchange)
    assert content(Tree(root), "/file") == "inside"


def without_proc(monkeypatch: pytest.MonkeyPatch, then: Callable[[], object] = lambda: None) -> None:
    real = os.path.realpath

    def fail(name: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory")

    def realpath(name: Any) -> Any:
        monkeypatch.undo()
        answer = real(name)
        then()
        return answer

    monkeypatch.setattr(os, "readlink", fail)
    monkeypatch.setattr(os.path, "realpath", realpath)


@pytest.mark.parametrize(("name", "expected"), [("/file", "inside"), ("/out", 403)])
def test_without_proc(root: Path, monkeypatch: pytest.MonkeyPatch, name: str, expected: object) -> None:
    tree = Tree(root)
    without_proc(monkeypatch)
    assert (content(tree, name) if name == "/file" else status(tree, name)) == expected


def test_a_file_that_is_exchanged_without_proc(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree = Tree(root)

    def exchange() -> None:
        (root / "file").unlink()
        (root / "file").symlink_to("../secret")

    without_proc(monkeypatch, exchange)
    assert status(tree, "/file") == 404


def test_neighbours(root: Path) -> None:
    tree = Tree(root)
    for name, modified in (("file", 2000), ("file.gz", 2000), ("file.br", 1999), ("file.d", 0)):
        (root / name).write_text(name)
        os.utime(root / name, (modified + 0.5, modified + 0.5))
    os.utime(root / "file", ns=(2000_900_000_000, 2000_900_000_000))
    (root / "file.out").symlink_to("../secret")
    found = tree.find(b"/file")
    assert isinstance(found, File)
    try:
        neighbour = tree.neighbour(found, b".gz")
        assert neighbour is not None
        os.close(neighbour.fd)
        for suffix in (b".br", b".none", b".out", b"/"):
            assert tree.neighbour(found, suffix) is None
    finally:
        os.close(found.fd)


def test_the_longest_url_path_counts(root: Path) -> None:
    trees = Trees({"/": root, "/a/": root / "sub", "/a/b": root})
    found = [trees.match(path) for path in (b"/x", b"/a", b"/a/x", b"/ab", b"/a/b", b"/a/b/c", b"/a/bc")]
    assert [match and match[0] for match in found] == [b"", b"/a", b"/a", b"", b"/a/b", b"/a/b", b"/a"]
    assert Trees({"/a": root}).match(b"/b") is None


def test_names_with_a_dot() -> None:
    """RFC 8615: /.well-known is at the top, and nowhere else."""
    hidden = (b"/.git", b"/a/.b", b"/.well-known/.x", b"/a/.well-known", b"/.well-knowns", b"/.", b"/...")
    assert [is_hidden(path) for path in hidden] == [True] * len(hidden)
    assert not any(is_hidden(path) for path in (b"/", b"/.well-known", b"/.well-known/acme/x", b"/a.b", b"/a./b"))


@given(st.text(alphabet="/.%2eEfF0ab~\\", max_size=30))
def test_decoded_paths_stay_below_the_top(path: str) -> None:
    """RFC 3986 section 5.2.4: whatever comes out has no dot segment and no NUL, and survives a redirect."""
    try:
        decoded = decode_path("/" + path)
    except BadPath:
        return
    assert not {b".", b".."} & set(decoded.split(b"/"))
    assert b"\0" not in decoded
    assert not decoded.startswith(b"//")
    assert decode_path(encode_path(decoded)) == decoded


# --- the page of a directory


class Page(HTMLParser):
    """The links of a page with their texts, and the kinds of elements, as a browser has them."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.kinds: set[str] = set()
        self._href: str | None = None
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.kinds.add(tag)
        self._href = dict(attrs).get("href") if tag == "a" else None

    def handle_data(self, data: str) -> None:
        if self._href is not None:
            self.links.append((self._href, data))
            self._href = None


KINDS = {"html", "meta", "title", "style", "h1", "table", "thead", "tbody", "tr", "th", "td", "a"}
name = st.binary(min_size=1, max_size=20).filter(lambda name: not set(name) & {0, 47} and name[:1] != b".")
HOSTILE = {
    b"javascript:alert(1)", b"<script>alert(1)", b'"onclick="x', b"a\nb", b"\xff\xfe", b"%2e%2e", b"?a", b"#b", b"&lt;",
}  # fmt: skip
BASE = "http://host/%3Csub%3E/"


@settings(max_examples=25, deadline=None)
@given(st.lists(name, max_size=4, unique=True))
def test_any_names(tmp_path_factory: pytest.TempPathFactory, names: list[bytes]) -> None:
    """Each link leads to its file, and no name becomes anything but text."""
    folder = tmp_path_factory.mktemp("names")
    wanted = HOSTILE | set(names)
    for one in wanted:
        Path(os.fsdecode(os.fsencode(folder) + b"/" + one)).write_text("")
    page = Page(listing(Tree(folder), os.fsencode(folder), b"/<sub>/"))
    assert page.kinds <= KINDS
    (up, _), *links = page.links
    assert up == "../"
    led = {unquote_to_bytes(urljoin(BASE, href).removeprefix(BASE)) for href, _ in links}
    assert led == wanted
    assert len(links) == len(wanted)


def test_what_is_on_the_page(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client could get, directories first."""
    (root / ".hidden").write_text("")
    (root / "Big").write_bytes(bytes(3 << 20))
    os.utime(root / "Big", (1_700_000_000, 1_700_000_000))
    text = listing(Tree(root), os.fsencode(root), b"/").decode()
    assert [text for _, text in Page(text.encode()).links] == ["sub/", "absolute", "Big", "file"]
    assert re.search(r'title="3,145,728 bytes">3.0 MiB<td class="n">2023-11-14 22:13', text)
    monkeypatch.setattr(module, "MAX_ENTRIES", 2)
    assert "There is more; the first 2 are shown." in listing(Tree(root), os.fsencode(root), b"/").decode()


def test_sizes() -> None:
    sizes = (0, 999, 1023, 1024, 1536, 1 << 20, 1023 << 20, (1 << 30) - 1, 1 << 60, 1 << 63)
    written = [human_size(size) for size in sizes]
    assert written[:5] == ["0 B", "999 B", "1023 B", "1.0 KiB", "1.5 KiB"]
    assert written[5:] == ["1.0 MiB", "1023 MiB", "1.0 GiB", "1.0 EiB", "8.0 EiB"]
