"""What the values of options and arguments may be, for completion in a shell: ``shell_complete`` of click."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem


def config_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Config files: the shell proposes what ends in ``.toml``, and directories."""
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type="config")]


def plugin_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem[str]]:
    """Installed plugins, none of which is imported."""
    from click.shell_completion import CompletionItem

    from ..plugins import discovery

    return [CompletionItem(name) for name in sorted(discovery.found_quickly()) if name.startswith(incomplete)]
