"""Describe types and values in words, for error messages and for the list of a plugin's options."""

from __future__ import annotations

import datetime as dt
import enum
import re
import types
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import PurePath
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import msgspec

from ..core.words import DID_YOU_MEAN, MOST_NAMED, counted, did_you_mean, one_of, quoted, shortlist

LISTS = (list, tuple, set, frozenset, Sequence, AbstractSet)
TABLES = (dict, Mapping, MutableMapping)
UNIONS = (Union, types.UnionType)

_TIMES = {"ms": 0.001, "s": 1, "sec": 1, "seconds": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}
_SIZES = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


def unknown(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    """The message for an unknown key."""
    if not known:
        return "unknown key, expected none here"
    return f"unknown key{did_you_mean(name, known)}, expected {shortlist(known)}"


def unknown_option(name: str, known: Sequence[str], plugin: str) -> str:
    """The message for an unknown option of a plugin: where it has many, the list is left to a command.

    :param plugin: as the config names it.
    """
    hint = did_you_mean(name, known)
    if hint and len(known) > MOST_NAMED + 1:
        return f"unknown key{hint}: `poolsrv plugins {plugin}` lists the options"
    return unknown(name, known)


def own_first(schema: type[msgspec.Struct]) -> list[str]:
    """The keys of a struct in the order of interest: those that its class declares before those that it inherits."""
    names = dict(zip(schema.__struct_fields__, schema.__struct_encode_fields__, strict=True))
    classes = schema.__mro__[: schema.__mro__.index(msgspec.Struct)]
    declared = (name for cls in classes for name in getattr(cls, "__annotations__", ()))
    return [names[name] for name in dict.fromkeys((*declared, *names)) if name in names]


def mismatch(annotation: Any, value: object) -> str:
    """The message for a value that does not fit its type."""
    expected = describe(annotation)
    hint = ""
    if isinstance(value, str):
        choices = [choice for choice in _choices(annotation) if isinstance(choice, str) and re.search("[a-z]", choice)]
        hint = _write_number(annotation, value) or did_you_mean(value, choices)
        if expected.startswith("a list"):
            hint = f" (write [{quoted(value)}])"
    if hint.startswith(DID_YOU_MEAN):
        return f"got {show(value, expected)}{hint}, expected {expected}"
    return f"got {show(value, expected)}, expected {expected}{hint}"


def show(value: object, expected: str = "") -> str:
    """Write a value as the config has it, and name its kind if that is not what was expected."""
    if isinstance(value, str):
        return quoted(value) if re.search(r'string|path|"', expected) else f"{quoted(value)} (a string)"
    if isinstance(value, bool):
        return to_toml(value)
    if isinstance(value, int | float):
        return to_toml(value) if "number" in expected else f"{to_toml(value)} (a number)"
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list):
        if value and all(isinstance(member, Mapping) for member in value):
            return "a list of tables (double brackets)"
        return "a list" if value else "an empty list"
    return f"{value} ({describe(type(value))})"


def to_toml(value: object) -> str:
    """Write a value in TOML, on one line, for a reader."""
    match value:
        case bool():
            return "true" if value else "false"
        case float():
            return repr(value)
        case int():
            return str(value) if abs(value) < 1 << 64 else _about(value)
        case enum.Enum():
            return to_toml(value.value)
        case str() | PurePath():
            return quoted(str(value))
        case list() | tuple() | set() | frozenset():
            return f"[{', '.join(map(to_toml, value))}]"
        case dict():
            return "{" + ", ".join(f"{name} = {to_toml(member)}" for name, member in value.items()) + "}"
        case msgspec.Struct():
            members = {name: getattr(value, name) for name in value.__struct_fields__}
            return to_toml({name: member for name, member in members.items() if member is not None})
        case _:
            return str(value)


def _about(value: int) -> str:
    """The size of a number that may have more digits than Python prints, or a float holds."""
    from decimal import Decimal  # only such a mistake needs it

    return f"{Decimal(value):.0e}"


def describe(annotation: Any) -> str:
    """Describe a type: ``a whole number from 1 or "auto"``. ``Meta(extra={"words": ...})`` gives other words."""
    for meta in metas(annotation):
        if meta.extra and "words" in meta.extra:
            return str(meta.extra["words"])
    wanted = plain(annotation)
    origin, members = get_origin(wanted), get_args(wanted)
    kind = origin or wanted
    if origin in UNIONS:
        # Constraints of an annotated union hold for each of its members.
        return one_of([describe(_constrained(m, annotation)) for m in members if m is not types.NoneType])
    if origin is Literal or (isinstance(kind, type) and issubclass(kind, enum.Enum)):
        return one_of([to_toml(choice) for choice in _choices(annotation)])
    if is_struct(kind):
        return "a table"
    if kind in TABLES:
        return f"a table of {_plural(describe(members[1]))}" if members else "a table"
    if kind in LISTS:
        if kind is tuple and members and members[-1] is not Ellipsis:
            return f"a list of {len(members)}: {one_of([describe(member) for member in members], 'and')}"
        return (f"a list of {_plural(describe(members[0]))}" if members else "a list") + _limits(annotation, "member")
    if isinstance(kind, type) and issubclass(kind, PurePath):
        return "a path"
    names: dict[Any, str] = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a string",
        bytes: "a string in base64",
        dt.datetime: "a date with a time",
        dt.date: "a date",
        dt.time: "a time",
        Any: "anything",
    }
    return names.get(kind, getattr(kind, "__name__", str(kind))) + _limits(annotation, "character")


def _limits(annotation: Any, noun: str) -> str:
    text = ""
    for meta in metas(annotation):
        if meta.ge is not None:
            text += f" from {to_toml(meta.ge)}"
        if meta.gt is not None:
            text += f" above {to_toml(meta.gt)}"
        if meta.le is not None:
            text += f" to {to_toml(meta.le)}" if " from " in text else f" of at most {to_toml(meta.le)}"
        if meta.lt is not None:
            text += f" below {to_toml(meta.lt)}"
        if meta.multiple_of is not None:
            text += f" in steps of {to_toml(meta.multiple_of)}"
        if meta.pattern is not None:
            text += f" that matches {meta.pattern}"
        if meta.min_length is not None:
            text += f" with at least {counted(meta.min_length, noun)}"
        if meta.max_length is not None:
            text += f" with at most {counted(meta.max_length, noun)}"
    return text


def _plural(description: str) -> str:
    nouns, found = re.subn(r"^an? (string|whole number|number|path|list|table|date|time)\b", r"\1s", description)
    return nouns if found else f"which each is {description}"


def _write_number(annotation: Any, text: str) -> str:
    """Suggest the number for a string with a number, and perhaps a unit, in it."""
    wanted = plain(annotation)
    numbers = {plain(member) for member in (get_args(wanted) or (wanted,))} & {int, float}
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if not numbers or match is None:
        return ""
    amount, unit = float(match[1]), match[2]
    show_number: Callable[[float], str] = (lambda n: str(n)) if float in numbers else (lambda n: str(round(n)))
    if not unit:
        return f" (write {match[1]}, without quotes)"
    if float in numbers and unit.lower() in _TIMES:
        return f" (times are in seconds: write {show_number(amount * _TIMES[unit.lower()])})"
    if int in numbers and (size := _SIZES.get(unit.lower().removesuffix("b").removesuffix("i"))):
        return f" (sizes are in bytes: write {show_number(amount * size)})"
    return ""


def plain(annotation: Any) -> Any:
    """Strip a type of ``Annotated``, ``NewType`` and type aliases."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__supertype__"):  # NewType
            annotation = annotation.__supertype__
        elif type(annotation).__name__ == "TypeAliasType":
            annotation = annotation.__value__
        else:
            return annotation


def metas(annotation: Any) -> list[msgspec.Meta]:
    """The constraints of an annotated type."""
    if get_origin(annotation) is not Annotated:
        return []
    return [meta for meta in get_args(annotation)[1:] if isinstance(meta, msgspec.Meta)]


def _constrained(member: Any, annotation: Any) -> Any:
    limits = metas(annotation)
    return Annotated[(member, *limits)] if limits else member


def _choices(annotation: Any) -> list[object]:
    """All values that the literals and enums in a type allow."""
    wanted = plain(annotation)
    if get_origin(wanted) is Literal:
        return list(get_args(wanted))
    if isinstance(wanted, type) and issubclass(wanted, enum.Enum):
        return [member.value for member in wanted]
    if get_origin(wanted) in UNIONS:
        return [choice for member in get_args(wanted) for choice in _choices(member)]
    return []


def is_struct(kind: Any) -> bool:
    """Whether a type is a struct that TOML writes as a table."""
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct) and not kind.__struct_config__.array_like
