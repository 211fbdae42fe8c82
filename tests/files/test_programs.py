"""Files beside programs: the source of a program is not sent, by whatever name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from poolsrv_http.files.tree import Directory, File, FileError, Tree


@pytest.fixture
def site(tmp_path: Path) -> Path:
    site = tmp_path / "site"
    for name in ("cgi-bin/run.sh", "cgi-bin/data", "cgi-binary/a", "page.html", "page.php", "program"):
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(name)
    (site / "cgi-bin" / "run.sh").chmod(0o755)
    (site / "linked").symlink_to("cgi-bin")
    (site / "linked.sh").symlink_to("cgi-bin/run.sh")
    return site


def found(tree: Tree, name: str) -> int:
    """The status of a name."""
    try:
        answer = tree.find(name.encode())
    except FileError as error:
        return error.status
    if isinstance(answer, File):
        os.close(answer.fd)
    assert isinstance(answer, File | Directory)
    return 200


@pytest.mark.parametrize(
    ("name", "status"),
    [
        ("/cgi-bin/run.sh", 403),
        ("/cgi-bin/data", 403),
        ("/cgi-bin", 403),
        ("/linked", 403),
        ("/linked/data", 403),
        ("/linked.sh", 403),
        ("/program", 403),
        ("/cgi-binary/a", 200),
        ("/page.html", 200),
        ("", 200),
    ],
)
def test_programs_among_the_files(site: Path, name: str, status: int) -> None:
    """A directory of programs, and a program alone, are closed; so is one that does not exist yet."""
    assert found(Tree(site, [site / "cgi-bin", site / "program", site / "later"]), name) == status


@pytest.mark.parametrize(
    ("name", "status"),
    [("/run.sh", 403), ("/data", 200), ("/page.php", 403), ("", 200)],
)
@pytest.mark.parametrize("programs", ["site", "site/cgi-bin"])
def test_files_among_the_programs(site: Path, programs: str, name: str, status: int) -> None:
    """What could run there is not sent."""
    (site / "cgi-bin" / "page.php").write_text("")
    tree = Tree(site / "cgi-bin", [site.parent / programs], (".php",))
    assert found(tree, name) == status
