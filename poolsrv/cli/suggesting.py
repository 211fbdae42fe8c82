"""Commands whose errors about arguments say what was probably meant."""

from __future__ import annotations

import os

import click

from ..core.words import quoted


class ConfigCommand(click.Command):
    """A command with ``--config``: suggests it where a config file stands as an argument of its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.UsageError:
            options, left, _ = self.make_parser(ctx).parse_args(given)
            # A .toml that an argument has taken counts too: the config may be missing for that reason.
            taken = [options.get(param.name) for param in self.params if isinstance(param, click.Argument)]
            words = [word for word in left if is_config(word)]
            words += [word for word in taken if isinstance(word, str) and word.endswith(".toml")]
            if words and "config" not in options:
                ctx.fail(f"unexpected argument {quoted(words[0])}{meant_config(words[0])}")
            raise


class ServingCommand(click.Command):
    """A command with ``--bind``: suggests it where a port stands as an option of its own."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if error.option_name in ("--port", "-p"):
                ctx.fail(f"no option {error.option_name}{meant_bind(_value_of(error.option_name, given))}")
            raise


class Directory(click.Path):
    """An existing directory; for a port in its place, ``--bind`` is suggested."""

    def __init__(self) -> None:
        super().__init__(exists=True, file_okay=False)

    def convert(
        self, value: str | os.PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> str | bytes | os.PathLike[str]:
        text = os.fspath(value)
        if _is_port(text) and not os.path.exists(text):
            self.fail(f"there is no directory {quoted(text)}{meant_bind(text)}", param, ctx)
        return super().convert(value, param, ctx)


def is_config(word: str) -> bool:
    """Whether a word on the command line looks like a config file."""
    return word.endswith(".toml") or os.path.isfile(word)


def meant_config(word: str) -> str:
    """The suggestion."""
    return f" (did you mean --config {word}?)"


def meant_bind(port: str) -> str:
    """The suggestion for a port; for what is none, an example."""
    return f" (did you mean --bind :{port if _is_port(port) else 'PORT'}?)"


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text[:6]) < 65536


def _value_of(option: str, given: list[str]) -> str:
    for at, word in enumerate(given):
        if word == option:
            return given[at + 1] if given[at + 1 :] else ""
        if word.startswith(option):
            return word[len(option) :].removeprefix("=")
    return ""
