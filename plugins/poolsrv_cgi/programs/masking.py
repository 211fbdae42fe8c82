"""Which values of a program's environment are secrets, and how they are masked in records and captures.

A variable is masked if its name matches one of `MASKED_NAMES`, or of the option `mask`; patterns as in a shell, without
regard to case. The name of a header field stands for its variable. In what has a query string (the request line,
QUERY_STRING, REQUEST_URI, HTTP_REFERER), the values of parameters with such names are masked. Standard error and the
request's body are kept as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from urllib.parse import unquote_plus

__all__ = ["MASK", "Masking"]

MASK = "(masked)"
MASKED_NAMES = (
    "*AUTHORIZATION*",
    "*COOKIE*",
    "*TOKEN*",
    "*SECRET*",
    "*PASSW*",
    "*PASSPHRASE*",
    "*CREDENTIAL*",
    "*KEY*",
)
_WITH_QUERY = ("QUERY_STRING", "REQUEST_URI", "HTTP_REFERER")
_LONGEST_NAME = 200  # characters of a name that is remembered
_split = re.compile(r"([?&;\s])").split


class Masking:
    """The names that are masked on one listener.

    :param names: further patterns.
    """

    def __init__(self, names: Iterable[str] = ()) -> None:
        patterns = [*MASKED_NAMES, *map(_variable, names)]
        self._matches = re.compile("|".join(map(_expression, patterns)), re.DOTALL).fullmatch
        self._remembered = lru_cache(maxsize=1024)(self._hides)

    def hides(self, name: str) -> bool:
        """Whether a variable, a header field or a parameter of this name is masked."""
        return self._remembered(name) if len(name) <= _LONGEST_NAME else self._hides(name)

    def _hides(self, name: str) -> bool:
        variable = _variable(name)
        return any(self._matches(one) is not None for one in (variable, variable.removeprefix("HTTP_")))

    def environment(
        self, environment: Mapping[str, str], longest: int | None = None
    ) -> tuple[dict[str, str], list[str]]:
        """Mask an environment.

        :param longest: characters of a value that are of use; None: all.

        :returns: a copy, and the names of the variables in which something is masked.
        """
        copy = dict(environment)
        masked = [name for name in copy if self.hides(name)]
        for name in masked:
            copy[name] = MASK
        for name in _WITH_QUERY:
            value = copy.get(name, "")[:longest]
            if name not in masked and (clean := self.parameters(value)) != value:
                copy[name] = clean
                masked.append(name)
        return copy, masked

    def parameters(self, text: str) -> str:
        """Mask parameters in a text with a query string, in a time that grows with its length alone."""
        if "=" not in text:
            return text
        clean: list[str] = []
        is_hidden = False  # all up to the next delimiter but a question mark, which a value may have
        for number, part in enumerate(_split(text)):
            if number % 2:
                is_hidden = is_hidden and part == "?"
            if is_hidden:
                continue
            name, _, value = part.partition("=")
            if value and self.hides(unquote_plus(name)):
                is_hidden = True
                part = f"{name}={MASK}"
            clean.append(part)
        return "".join(clean)


def _variable(name: str) -> str:
    return name.upper().replace("-", "_")


def _expression(pattern: str) -> str:
    """A pattern with `*` and `?` as a regular expression."""
    return "".join({"*": ".*", "?": "."}.get(letter, re.escape(letter)) for letter in pattern)
