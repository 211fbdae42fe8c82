"""Make the distribution of a new plugin: `poolsrv new`."""

from __future__ import annotations

import importlib.util
import keyword
import os
import re
import shutil
import string
from pathlib import Path
from typing import Final, NamedTuple

from ..config.model import RESERVED_NAMES
from ..core.words import quoted
from ..plugins import discovery, entry_points
from .printed_config import COMMENTED_PATHS

LONGEST_NAME: Final = 40
PREFIX: Final = "poolsrv-"

_TEMPLATES: Final = Path(__file__).with_name("templates")
# What the modules of the templates import: a class of that name would hide it.
_TAKEN: Final = (
    *("Annotated", "ConfigError", "Connection", "LineTooLong", "Options"),
    *("HttpOptions", "HttpPlugin", "Request", "Response"),
)


class BadName(ValueError):
    """A name that no plugin can have. The message says why, and what was expected."""


class Names(NamedTuple):
    """What a new plugin is called.

    :ivar distribution: as pip has it, and the directory: ``poolsrv-my-protocol``.
    :ivar module: ``poolsrv_my_protocol``.
    :ivar cls: the class: ``MyProtocol``.
    :ivar plugin: in configs: ``myprotocol``, as also ``module:Class`` is known there.
    """

    distribution: str
    module: str
    cls: str
    plugin: str


def names_for(name: str) -> Names:
    """The names of a new plugin.

    :param name: what the user calls it, with or without ``poolsrv-`` in front.
    :raises BadName: it can't be called so.
    """
    short = name.removeprefix(PREFIX)
    if not re.fullmatch(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*", short):
        meant = re.sub(r"[^a-z0-9]+", "-", short.lower()).strip("-")
        hint = f" (did you mean {quoted(meant)}?)" if re.match("[a-z]", meant) else ""
        raise BadName(
            f"{quoted(name)} is not a plugin name{hint}, expected small letters, digits and -, with a letter first"
        )
    if len(short) > LONGEST_NAME:
        raise BadName(f"the name has {len(short)} characters, expected at most {LONGEST_NAME}")
    cls = "".join(part[:1].upper() + part[1:] for part in re.split("[-_]", short))
    if cls in _TAKEN or keyword.iskeyword(cls):
        cls += "Plugin"
    plugin = cls.lower()
    if plugin in RESERVED_NAMES or short in RESERVED_NAMES:
        raise BadName(f"{quoted(short)} is one of a listener's own keys, expected another name")
    distribution = PREFIX + short.replace("_", "-")
    module = distribution.replace("-", "_")
    installed = discovery.installed().get(plugin)
    if installed is not None:
        raise BadName(f"{installed} is installed already, expected another name")
    if importlib.util.find_spec(module) is not None:
        raise BadName(f"a module {quoted(module)} is installed already, expected another name")
    return Names(distribution, module, cls, plugin)


def make(names: Names, parent: Path, http: bool) -> list[Path]:
    """Write the distribution's files into a new directory.

    :param parent: where that directory is to be.
    :param http: whether the plugin is an HTTP service.
    :returns: the files, in the order in which somebody would read them.
    :raises OSError: the directory exists, or a file can't be written; then nothing is left of what has been written.
    """
    directory = parent / names.distribution
    os.mkdir(directory)
    kind = "http" if http else "lines"
    made = []
    try:
        for template, target in (
            ("both/README.md", "README.md"),
            (f"{kind}/module.py", f"{names.module}/__init__.py"),
            (None, f"{names.module}/py.typed"),
            (f"{kind}/test.py", f"tests/test_{names.plugin}.py"),
            ("both/poolsrv.toml", "poolsrv.toml"),
            ("both/pyproject.toml", "pyproject.toml"),
            ("both/gitignore", ".gitignore"),
        ):
            file = directory / target
            file.parent.mkdir(exist_ok=True)
            file.write_text("" if template is None else _filled(template, names, http), encoding="utf-8")
            made.append(file)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
    return made


def command_to_run(names: Names) -> str:
    """The command that serves the plugin from its directory. ``--dev`` needs what may not be installed."""
    return f"{f'poolsrv run {names.module}:{names.cls}':<41} # with --dev it reloads whenever a file is saved"


def _filled(template: str, names: Names, http: bool) -> str:
    text = (_TEMPLATES / f"{template}.tmpl").read_text(encoding="utf-8")
    return string.Template(text).substitute(
        dict(zip(Names.__annotations__, names, strict=True)),
        description=f"{names.cls}, {'an HTTP service' if http else 'a server that answers every line'}",
        requirement=_requirement(),
        paths=COMMENTED_PATHS,
        run_it=command_to_run(names),
        try_it=(
            "curl http://127.0.0.1:7007/               # hello, world"
            if http
            else "printf 'world\\n' | nc -N 127.0.0.1 7007   # hello, world"
        ),
    )


def _requirement() -> str:
    """This version and those that keep to what it promises: ``poolsrv>=0.1,<0.2``."""
    major, minor, *_ = (entry_points.version_of("poolsrv") or "0.1").split(".")
    next_one = f"0.{int(minor) + 1}" if major == "0" else str(int(major) + 1)
    return f"poolsrv>={major}.{minor},<{next_one}"
