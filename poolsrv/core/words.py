"""Put together the words of messages: quoted names, lists of names, "did you mean", and nouns with their number."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final

DID_YOU_MEAN: Final = " (did you mean"
MOST_NAMED: Final = 6  # names that a message shows of a long list


def bare_or_quoted(name: str) -> str:
    """Write a key in TOML: bare where TOML allows it, else quoted."""
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else toml_string(name)


def quoted(text: str) -> str:
    """Write a string in TOML, shortened to 80 characters."""
    return toml_string(text if len(text) <= 80 else text[:77] + "...")


def toml_string(text: str) -> str:
    """Write a string in TOML. All that can't be seen is escaped; lone surrogates stay, as TOML has no word for them."""
    string = json.dumps(text, ensure_ascii=False)
    return string if string.isprintable() else "".join(map(_visible, string))


def _visible(character: str) -> str:
    code = ord(character)
    if character.isprintable() or 0xD800 <= code <= 0xDFFF:
        return character
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Find the known name that a misspelt one was probably meant to be."""
    import difflib  # only a config with an error needs it

    by_folded = {candidate.casefold().replace("-", "_"): candidate for candidate in known}
    matches = difflib.get_close_matches(name.casefold().replace("-", "_"), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Suggest the nearest known name: `` (did you mean "echo"?)``; empty where none is near."""
    match = nearest(name, known)
    return "" if match is None else f"{DID_YOU_MEAN} {quoted(match)}?)"


def one_of(names: Iterable[str], joined_by: str = "or") -> str:
    """Join names: ``a, b or c``."""
    *most, last = names
    return f"{', '.join(most)} {joined_by} {last}" if most else last


def shortlist(names: Iterable[str]) -> str:
    """Join names, but show only the first few of many: ``a, b, c or one of 27 others``."""
    several = list(names)
    if len(several) <= MOST_NAMED + 1:
        return one_of(several)
    return f"{', '.join(several[:MOST_NAMED])} or one of {len(several) - MOST_NAMED} others"


def counted(number: int, noun: str, plural: str = "") -> str:
    """Put a number before its noun: ``1 worker``, ``2 workers``.

    :param plural: the plural, if it is not the noun with an s.
    """
    return f"{number} {noun}" if number == 1 else f"{number} {plural or noun + 's'}"
