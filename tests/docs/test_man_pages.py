"""The man pages that the wheel installs: each command has one, with each of its options, and none has a mistake."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from poolsrv.cli.main import COMMANDS, cli
from tests.helpers.shells import require
from tools import command_help, man_pages

NAMES = [name for names in COMMANDS.values() for name in names]
HELP = {command.page: command for command in command_help.all_commands()}
PAGES = man_pages.pages("1.2.3", 1795651200)


def plain(page: str) -> str:
    """The text of a page without its requests, fonts and escapes, on one line."""
    text = re.sub(r"^\.[A-Z]\w* ?", "", PAGES[page], flags=re.MULTILINE)
    text = re.sub(r"\\f.|\\&", "", text).replace("\\-", "-").replace("\\(aq", "'").replace("\\e", "\\")
    return " ".join(text.split())


def test_every_command_has_a_page() -> None:
    assert set(PAGES) == {"poolsrv.1", *(f"poolsrv-{name}.1" for name in NAMES)}
    assert set(cli.commands) <= set(NAMES)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_what_the_help_has(page: str) -> None:
    command = HELP[page.removesuffix(".1")]
    text = plain(page)
    assert f"SYNOPSIS {command.path} {command.usage} DESCRIPTION" in text.replace('"', "").replace(".B ", "")
    for block in command.blocks:
        for line in [block.text] if block.columns() is None else [cell for row in block.columns()[0] for cell in row]:  # type: ignore[index]
            assert " ".join(line.split()) in text
    for names, meaning in command.options:
        assert f"{names} {meaning}" in text
    assert "-h, --help" in text
    assert text.startswith(f'"{page.removesuffix(".1").upper()}" "1" "2026-11-26" "poolsrv 1.2.3"')


def test_the_environment_is_on_the_page() -> None:
    assert "ENVIRONMENT POOLSRV_CONFIG The value of --config" in plain("poolsrv-check.1")


def test_a_preformatted_block_keeps_its_lines() -> None:
    page = PAGES["poolsrv.1"]
    assert '\n.nf\n[pool]\nworkers = 4                  # the default is "auto"' in page
    assert "\\fBprintf \\(aqhello\\en\\(aq | nc \\-N 127.0.0.1 7007\\fR\n" in page


def test_mandoc_finds_no_mistake(tmp_path: Path) -> None:
    for name, text in PAGES.items():
        (tmp_path / name).write_text(text, encoding="ascii")
    result = subprocess.run(
        [require("mandoc"), "-T", "lint", "-W", "all", *PAGES],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stdout + result.stderr) == (0, "")
