"""``--print-config``: the config file that says the same as a command's arguments, ready to be edited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from ..config.arguments import Arguments
from ..config.draft import Draft
from ..core.toml import toml
from ..core.words import bare_or_quoted
from ..errors import PoolsrvError

# Of [pool]: relative paths are relative to the config.
COMMENTED_PATHS: Final = """\
# pidfile = "poolsrv.pid"      # for `poolsrv reload` and `poolsrv stop`
# control = "poolsrv.ctl"      # for `poolsrv status` and `poolsrv top`"""


class NotText(PoolsrvError):
    """The arguments have bytes that are no text, which no config file can have."""


def as_toml(draft: Draft, arguments: Arguments) -> str:
    """Write a config that has been loaded.

    Relative paths stay as they were given: the file belongs in the directory where the command was run.

    :raises NotText: it can't be written.
    """
    text = _as_toml(draft, arguments)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise NotText("the arguments have bytes that are not UTF-8, expected names that a config can contain") from None
    return text


def _as_toml(draft: Draft, arguments: Arguments) -> str:
    pool = dict(draft.document.get("pool", {}))
    lines = [
        f"# Made by `{arguments.command}`. Relative paths and modules are relative to this file.",
        "# Every key is explained in docs/configuration.md; `poolsrv config` prints all of them with their defaults.",
        "",
        "[pool]",
        *_lines({"workers": "auto", **pool}),
        *([] if {"pidfile", "control"} & pool.keys() else [COMMENTED_PATHS]),
    ]
    if log := draft.document.get("log"):
        lines += ["", "[log]", *_lines(log)]
    for listener in draft.listeners:
        table = draft.document["listeners"][listener.name]
        lines += ["", listener.header, *_lines({k: v for k, v in table.items() if not isinstance(v, Mapping)})]
        for name, inner in table.items():
            if isinstance(inner, Mapping):
                lines += ["", listener.plugin_header(name), *_lines(inner)]
    return "\n".join(lines)


def _lines(table: Mapping[str, Any]) -> Iterator[str]:
    for name, value in table.items():
        yield f"{bare_or_quoted(name)} = {toml(value)}"
