"""Plugin distributions as pip leaves them in a directory, without an installation."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path


def install(site: Path, name: str, entry_points: Mapping[str, str], module: str = "", version: str = "1.0") -> None:
    """Put a distribution into a directory that is, or will be, on ``sys.path``.

    :param entry_points: of the group ``poolsrv``: plugin name to ``module:Class``.
    :param module: the text of the module that has the distribution's name (``-`` as ``_``).
    """
    info = site / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = "".join(f"{plugin} = {target}\n" for plugin, target in entry_points.items())
    (info / "entry_points.txt").write_text(f"[poolsrv]\n{lines}")
    (site / f"{name.replace('-', '_')}.py").write_text(textwrap.dedent(module))
