"""Text as it leaves the process, and the words of messages."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import tomli

from poolsrv.core.text import encodable, encodable_in, lines, one_line, printable
from poolsrv.core.words import bare_or_quoted, counted, quoted, toml_string
from tests.helpers.sources import nodes

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("number", "words", "text"),
    [
        (0, ("worker",), "0 workers"),
        (1, ("worker",), "1 worker"),
        (2, ("worker",), "2 workers"),
        (1, ("address", "addresses"), "1 address"),
        (3, ("address", "addresses"), "3 addresses"),
        (1, ("connection is", "connections are"), "1 connection is"),
    ],
)
def test_a_number_agrees_with_its_noun(number: int, words: tuple[str, ...], text: str) -> None:
    assert counted(number, *words) == text


def texts() -> list[tuple[str, str]]:
    """Every string of the sources, with ``%d`` for each number that may be 1."""
    found = []
    for path in sorted([*(ROOT / "poolsrv").rglob("*.py"), *(ROOT / "plugins").rglob("*.py")]):
        for node in nodes(path):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append((f"{path.name}:{node.lineno}", node.value))
    return found


# Numbers that are never 1, or that follow a limit that never is, or whose noun is the same for 1.
ALWAYS_MORE = re.compile(r"%d (open descriptors|times in a row|of %d bytes|series)")


def test_no_message_has_a_plural_behind_a_number_that_may_be_one() -> None:
    wrong = [
        (place, text)
        for place, text in texts()
        if re.search(r"%d \w+s\b", ALWAYS_MORE.sub("", text)) and not re.search(r"%d (was|has|is|does|takes)\b", text)
    ]
    assert wrong == []


def test_what_can_not_be_encoded_is_escaped() -> None:
    assert encodable("caf\udce9 \ud800 é") == "caf\\xe9 \\ud800 é"
    assert one_line("a\tb\n\x1b[1m\x85\udcff") == "a\tb\\x0a\\x1b[1m\\x85\\xff"
    assert lines("a\nb\x1b\udcff") == "a\nb\\x1b\\xff"
    assert encodable_in({"\udce9": ["\udce9", {"a": 1.5}, None, True]}) == {"\\xe9": ["\\xe9", {"a": 1.5}, None, True]}
    assert printable("a\tb\n\x1b[1m\x85\udcff\u2028\U000e0001é") == "a\\tb\\n\\x1b[1m\\x85\\xff\\u2028\\U000e0001é"


@pytest.mark.parametrize(
    "text", ["", "é \N{GRINNING FACE}", '"\\', "\x1b[1m\x7f\x85\x9b", "\u200b\u2028\u202e\ufeff", "\U000e0001"]
)
def test_a_toml_string_has_nothing_that_can_not_be_seen(text: str) -> None:
    string = toml_string(text)
    assert string.isprintable()
    assert tomli.loads(f"x = {string}\n{string} = 1\n") == {"x": text} | {text: 1}
    assert quoted(text) == string == bare_or_quoted(text)


def test_a_lone_surrogate_stays_for_what_prints_it() -> None:
    assert one_line(quoted("caf\udce9\x9b")) == '"caf\\xe9\\u009b"'
