"""``python -m tools.compiled_checkout FOLDER``: a checkout whose packages are the compiled wheel's, for its tests.

Run by the Python in which the wheel is installed. Tests import from the checkout that they are in, and read its
sources. So this one has everything as it is here, but the packages are what is installed.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("tests", "docs", "examples", "bench", "tools", ".ci")
IGNORED = shutil.ignore_patterns("__pycache__", ".venv", "build", "dist")


def main() -> None:
    """Make it, in place of an older one."""
    folder = Path(sys.argv[1])
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, ignore=IGNORED, symlinks=True)
    for file in ROOT.iterdir():
        if file.is_file():
            shutil.copy(file, folder / file.name)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (folder / "plugins").mkdir()
    for package in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]:
        installed = Path(sysconfig.get_path("platlib")) / Path(package).name
        if not list(installed.glob("*.py")):
            sys.exit(f"{installed} is not there: is the wheel installed in {sys.prefix}?")
        if package.startswith("plugins/"):
            shutil.copytree(installed, folder / package, ignore=IGNORED)  # only read; they are imported where they are
        else:
            (folder / package).symlink_to(installed)


if __name__ == "__main__":
    main()
