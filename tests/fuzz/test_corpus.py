"""The kept inputs of each fuzz target break no rule. atheris is not needed for that: ``make fuzz`` looks for others."""

from __future__ import annotations

import gc

import pytest

from . import kept
from .source import Source, cut
from .targets import NAMES, load

MOST_KEPT = 60


@pytest.mark.parametrize("name", NAMES)
def test_no_kept_input_breaks_a_rule(name: str) -> None:
    target = load(name)
    inputs = kept.read(name)
    assert inputs
    for data in (b"", *inputs):
        try:
            target.run(data)
        except BaseException as error:
            error.add_note(f"the input: {kept.escaped(data)}")
            raise
    gc.collect()  # configs that were loaded have descriptors


@pytest.mark.parametrize("name", NAMES)
def test_the_corpus_is_small_and_each_input_is_kept_once(name: str) -> None:
    inputs = kept.read(name)
    assert len(inputs) == len(set(inputs)) < MOST_KEPT
    assert max(map(len, inputs)) <= load(name).longest


def test_an_input_is_kept_as_it_is() -> None:
    for data in (b"# not a note\n", bytes(range(256)), b"\\x41'\""):
        line = kept.escaped(data)
        assert line.isascii()
        assert line.isprintable()
        assert not line.startswith("#")
        assert kept.unescaped(line) == data


def test_decisions_and_pieces_are_made_of_the_bytes() -> None:
    source = Source(b"\3\2ab\1\0\7rest")
    assert [source.number(4), source.text(), source.number(300), source.choice("xyz")] == [3, "ab", 256, "y"]
    assert (source.rest(), source.is_empty, source.number(9)) == (b"rest", True, 0)
    for seed in (0, 1, 77):
        assert b"".join(cut(bytes(range(200)), seed)) == bytes(range(200))
