"""Write the values of a TOML document."""

from __future__ import annotations

import datetime as dt
from typing import Any, Final

from .words import bare_or_quoted, toml_string

DATES: Final = (dt.datetime, dt.date, dt.time)


def toml(value: Any) -> str:
    """Write a value of a TOML document, on one line. Members of tables that are None are left out: TOML has no None."""
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return toml_string(value)
        case int() | float():
            return repr(value)
        case list() | tuple():
            return f"[{', '.join(map(toml, value))}]"
        case dict():
            members = [f"{bare_or_quoted(name)} = {toml(item)}" for name, item in value.items() if item is not None]
            return f"{{{', '.join(members)}}}"
        case _:
            return value.isoformat() if isinstance(value, DATES) else toml(str(value))
