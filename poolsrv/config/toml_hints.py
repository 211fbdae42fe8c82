"""What is wrong with a file that is not TOML, and what was probably meant. Imported when a file has an error."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from ..core.words import toml_string

_KEY: Final = r"""(?P<key>[\w.-]+|"[^"]*"|'[^']*')"""
_STATEMENT: Final = re.compile(rf"\s*(?:{_KEY}\s*=\s*)?(?P<value>\S.*?)\s*,?\s*")
_COLON: Final = re.compile(rf"\s*{_KEY}\s*:\s*(?P<value>\S.*?)\s*")
_COMMENT: Final = re.compile(r"\s+#[^\"']*$")
_WITH_UNIT: Final = re.compile(r"(?P<number>\d[\d_]*(?:\.\d+)?)\s*[A-Za-z]+")
_ADDRESS: Final = re.compile(
    r"(?:\d+(?:\.\d+){3}|\[[\da-fA-F:.]+(?:%\w+)?\]|\*?):\d+|unix:\S+|[\da-fA-F:.]+/\d+|\d+(?:\.\d+){3}"
)
_BARE: Final = re.compile(r"[\w./:*~@\[-][^\"'{}=]*")
_BOOLEANS: Final = {**dict.fromkeys(("true", "yes", "on"), "true"), **dict.fromkeys(("false", "no", "off"), "false")}
_ENCODINGS: Final = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
_MARK: Final = "\N{ZERO WIDTH NO-BREAK SPACE}"  # a byte order mark in the middle of a file
_QUOTES: Final = "\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}\N{DOUBLE LOW-9 QUOTATION MARK}"


def explain_encoding(error: UnicodeDecodeError) -> tuple[str, str]:
    """Return the place of bytes that are not UTF-8, and what is wrong with them."""
    data: bytes = error.object
    name = _ENCODINGS.get(data[:2])
    if name is not None:
        return "line 1, column 1", f"in {name}, expected TOML, which is always in UTF-8"
    before = data[: error.start]
    line, column = before.count(b"\n") + 1, len(before) - (before.rfind(b"\n") + 1) + 1
    return f"line {line}, column {column}", "not UTF-8, expected TOML, which is always in UTF-8"


def explain(error: Exception, text: str) -> tuple[str, str]:
    """Return the place of a syntax error, and what is wrong there.

    :param error: tomli's.
    """
    message = str(error)
    place = re.search(r" \(at (?:line (\d+), column (\d+)|end of document)\)$", message)
    lines = text.replace("\r\n", "\n").split("\n")  # as tomli counts
    line, column = len(lines), len(lines[-1]) + 1
    if place is not None:
        message = message[: place.start()]
        line, column = int(place[1] or line), int(place[2] or column)
    if message == "Cannot overwrite a value":
        from . import toml_duplicates

        if (found := toml_duplicates.explain(lines, line, column)) is not None:
            return f"line {found[0]}, column {found[1]}", found[2]
    if match := re.fullmatch("Duplicate inline table key '(.*)'", message):
        return f"line {line}, column {column}", f"the key `{match[1]}` is there twice, expected it once"
    # tomli shows the key of a double declaration as a Python tuple.
    message = re.sub(r"\(('[^)]*')\)", lambda m: ".".join(re.findall(r"'([^']*)'", m[1])), message)
    return f"line {line}, column {column}", _meant(lines[line - 1], column) or message


def _meant(line: str, column: int) -> str:
    """What is wrong with a line, and what was probably meant; empty if that is unclear."""
    if _MARK in line:
        return "a byte order mark (U+FEFF), expected none, or one at the start of the file"
    if not line.replace("\t", " ").isprintable():  # what is shown of it could not be copied
        return _character(line, column)
    if any(quote in line for quote in _QUOTES):
        return f'typographic quotation marks, expected straight ones: "{_example(line)}"'
    bare = _COMMENT.sub("", line)
    if match := _STATEMENT.fullmatch(bare):
        statement, value = f"{match['key']} = " if match["key"] else "", match["value"]
        if (statement or _ADDRESS.fullmatch(value)) and (guess := _guess(value)):
            return f"{guess[0]}, expected {statement}{guess[1]}"
    if match := _COLON.fullmatch(bare):
        key, value = match["key"], match["value"]
        corrected = value if _is_toml(f"x = {value}") else (_guess(value) or ("", ""))[1]
        if corrected:
            return f"a colon after the key, expected {key} = {corrected}"
    return _character(line, column)


def _character(line: str, column: int) -> str:
    character = line[column - 1 : column]
    if character and not character.isascii():
        name = unicodedata.name(character, "a character without a name")
        return f"U+{ord(character):04X} ({name.lower()}), expected TOML: `key = value`, or a [table]"
    return ""


def _guess(value: str) -> tuple[str, str] | None:
    """What is wrong with a value, and how to write it; None if it is right, or that is unclear."""
    if _is_toml(f"x = {value}"):
        return None
    if (folded := value.lower()) in _BOOLEANS:
        return f"{value} is no value", _BOOLEANS[folded]
    if re.fullmatch(r"0[0-7]+", value):
        return "a number with a zero in front", f"0o{value[1:]}"
    if match := _WITH_UNIT.fullmatch(value):
        return "a number with a unit (times are in seconds, sizes in bytes)", match["number"]
    if value.startswith("[") and value.endswith("]"):
        members = ", ".join(map(_quoted, filter(None, map(str.strip, value[1:-1].split(",")))))
        return ("text without quotes", f"[{members}]") if _is_toml(f"x = [{members}]") else None
    return ("text without quotes", _quoted(value)) if _BARE.fullmatch(value) and value.isprintable() else None


def _quoted(value: str) -> str:
    return value if _is_toml(f"x = {value}") else toml_string(value)


def _is_toml(text: str) -> bool:
    import tomli

    try:
        tomli.loads(text)
    except (tomli.TOMLDecodeError, ValueError, RecursionError):
        return False
    return True


def _example(line: str) -> str:
    text = re.search(f"[{_QUOTES}]([^{_QUOTES}]*)", line)
    return text[1] if text is not None else "..."
