"""Wheels of this tree and of others, and environments that have nothing but them and what they require."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from email.parser import HeaderParser
from importlib import metadata
from pathlib import Path
from typing import Final
from zipfile import ZipFile

from packaging.requirements import Requirement

ROOT: Final = Path(__file__).parents[2]
# The sources of a wheel. A build must not leave anything in the tree, nor pick up what was left there.
SOURCES: Final = ("poolsrv", "plugins", "tools", "pyproject.toml", "README.md", "LICENSE")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a program, without PYTHONPATH: only what is installed counts."""
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def copy_of_the_sources(folder: Path) -> Path:
    """The sources of this tree in a new folder, with what has been compiled of them: their times are the same."""
    folder.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("*.so", "*.pyc.*"))
        else:
            shutil.copy(source, folder / name)
    return folder


def build_wheel(sources: Path, folder: Path) -> Path:
    """Build a wheel in a new folder, by the backend that pip would call."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=sources)
    (built,) = folder.glob("*.whl")
    return built


def environment(folder: Path, *wheels: Path) -> Path:
    """A new virtual environment in which wheels are installed, with what their metadata says that they require.

    That is copied from the environment of the tests, and nothing is taken from the network.

    :returns: its folder of programs.
    """
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    names = {wheel.name.partition("-")[0] for wheel in wheels}
    missing = [requirement for wheel in wheels for requirement in required(wheel)]
    while missing:
        name = missing.pop().replace("-", "_")
        if name not in names:
            names.add(name)
            missing += copy_distribution(name, packages)
    pip_install(folder / "bin", *wheels)
    return folder / "bin"


def pip_install(programs: Path, *wheels: Path) -> None:
    """Install wheels in an environment as pip does, in place of other versions, and nothing else."""
    pip = (sys.executable, "-m", "pip", "--python", programs / "python")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", *wheels, cwd=programs)


def required(wheel: Path) -> list[str]:
    """The names of the distributions that a wheel requires."""
    with ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        headers = HeaderParser().parsestr(archive.read(name).decode())
    return names_of(headers.get_all("Requires-Dist", []))


def names_of(requirements: list[str]) -> list[str]:
    """The names in requirements that hold here, without any extra."""
    parsed = map(Requirement, requirements)
    return [each.name for each in parsed if each.marker is None or each.marker.evaluate({"extra": ""})]


def copy_distribution(name: str, packages: Path) -> list[str]:
    """Copy an installed distribution, and return what it requires."""
    distribution = metadata.distribution(name)
    for file in distribution.files or ():
        if ".." not in file.parts:  # its programs stay where they are
            target = packages / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(distribution.locate_file(file)), target)
    return names_of(distribution.requires or [])
