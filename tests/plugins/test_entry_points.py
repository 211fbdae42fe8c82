from __future__ import annotations

from importlib import metadata
from pathlib import Path

import pytest

from poolsrv.plugins import entry_points

FILE = """
[console_scripts]
a = a:main

# a comment
[poolsrv]
a = a:A
# b = b:B
 c=c:C.D
d = d : D

[poolsrv.more]
e = e:E
"""


def distribution(folder: Path, name: str, entry_points: str | None) -> Path:
    info = folder / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    if entry_points is not None:
        (info / "entry_points.txt").write_text(entry_points)
    return info


def test_entry_points_are_found_as_importlib_finds_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = distribution(tmp_path / "site", "one", FILE)
    distribution(tmp_path / "site", "none", None)
    monkeypatch.setattr("sys.path", [str(tmp_path / "site"), str(tmp_path / "absent"), str(info / "METADATA")])
    found = entry_points.find("poolsrv")
    assert found == {name: (target, str(info)) for name, target in [("a", "a:A"), ("c", "c:C.D"), ("d", "d : D")]}
    assert {name: target for name, (target, _) in found.items()} == {
        entry_point.name: entry_point.value for entry_point in metadata.entry_points(group="poolsrv")
    }


def test_a_name_that_exists_twice_is_not_found_quickly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path / "site", "one", "[poolsrv]\na = a:A\nb = b:B\n")
    distribution(tmp_path / "more", "two", "[poolsrv]\na = other:A\n")
    monkeypatch.setattr("sys.path", [str(tmp_path / "site"), str(tmp_path / "more"), str(tmp_path / "site")])
    assert list(entry_points.find("poolsrv")) == ["b"]


def test_the_current_directory_is_searched_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(tmp_path, "one", "[poolsrv]\na = a:A\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [""])
    assert entry_points.find("poolsrv") == {"a": ("a:A", "one-1.0.dist-info")}
