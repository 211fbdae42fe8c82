"""Parse a TOML file. A syntax error is reported with its place, and with what was probably meant."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

from ..core.text import printable
from .errors import ConfigErrors, Key, Problem

TOO_MANY_DIGITS = "a number with thousands of digits, expected one of at most 64 bits"


def read(path: Path) -> tuple[dict[str, Any], str]:
    """Read a file, with or without a byte order mark.

    :returns: the document and its text.
    :raises ConfigErrors: the file can't be read, or is not TOML.
    """
    import tomli

    try:
        text = path.read_bytes().removeprefix(codecs.BOM_UTF8).decode()
        return tomli.loads(text), text
    except UnicodeDecodeError as error:
        from . import toml_hints  # its expressions take 2 ms to compile

        where, message = toml_hints.explain_encoding(error)
    except tomli.TOMLDecodeError as error:
        from . import toml_hints

        where, message = toml_hints.explain(error, text)
    except FileNotFoundError:
        where, message = "", "no such file, expected a config file"
    except IsADirectoryError:
        where, message = "", "a directory, expected a config file"
    except OSError as error:
        where, message = "", f"can't be read: {error.strerror or error}"
    except RecursionError:
        where, message = "", "can't be read: it is nested too deeply"
    except ValueError as error:  # a NUL in the path; or more digits than Python takes
        has_digits = "digits" in str(error)
        where, message = "", TOO_MANY_DIGITS if has_digits else f"can't be read: {error}"
    raise ConfigErrors([Problem(path, where, printable(message))])


def is_decimal(text: str, keys: Key) -> bool:
    """Whether the file writes a number in decimal digits, which the parsed document does not tell.

    :param text: the file's text, which is valid TOML.
    :param keys: the place of the number.
    """
    import tomli

    marked = re.sub(rf"""({re.escape(str(keys[-1]))}["']?[ \t]*=[ \t]*)(0[box][\da-fA-F_]+)""", r'\1"\2"', text)
    try:
        value: Any = tomli.loads(marked)
        for key in keys:
            value = value[key]
    except (tomli.TOMLDecodeError, LookupError, TypeError):  # the substitution hit some other text too
        return False
    return isinstance(value, int)
