"""Decode the values of a TOML document to the types that a ``msgspec.Struct`` declares, with every error.

msgspec decides what fits and does the decoding. But it stops at the first error, and its messages name Python types.
So the decoder first walks a value and its type together, piece by piece, to find all errors and their places.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path, PurePath
from typing import Any, get_args, get_origin

import msgspec

from .describe import LISTS, TABLES, UNIONS, describe, is_struct, metas, mismatch, plain, to_toml, unknown
from .errors import Key, Problems

LARGEST = (1 << 63) - 1  # TOML's whole numbers have 64 bits; a longer one would fail later, where it is used


class Decoder:
    """Decodes parts of one document.

    :param problems: receives the errors.
    :param base: the directory that relative paths are relative to.
    """

    def __init__(self, problems: Problems, base: Path) -> None:
        self.problems = problems
        self.base = base

    def decode(self, annotation: Any, value: object, key: Key) -> Any:
        """Decode a value to a type.

        :returns: None if the value does not fit; the errors are in ``problems``.
        :raises TypeError: msgspec can't decode to such a type at all.
        """
        before = len(self.problems)
        value = _in_full(annotation, value)
        self._walk(annotation, value, key)
        if len(self.problems) > before:
            return None
        try:
            return self._convert(annotation, value)
        except msgspec.ValidationError as error:
            # Errors that only the whole value shows: from __post_init__, the length of a list, tagged unions.
            message, where = _split_error(error)
            self.problems.add((*key, *where), message)
            return None

    def decode_table(self, schema: type[msgspec.Struct], table: Mapping[str, object], key: Key) -> dict[str, Any]:
        """Decode the fields of a table, and return those that fit.

        Unknown and missing fields are left to the caller.
        """
        decoded = {}
        for field in _fields(schema) if table else ():
            if field.encode_name in table:
                before = len(self.problems)
                value = self.decode(field.type, table[field.encode_name], (*key, field.encode_name))
                if len(self.problems) == before:
                    decoded[field.name] = value
        return decoded

    def _convert(self, annotation: Any, value: object) -> Any:
        return msgspec.convert(value, annotation, dec_hook=self._decode_path)

    def _decode_path(self, wanted: type, value: object) -> object:
        if not issubclass(wanted, PurePath):
            raise NotImplementedError
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError
        return wanted(self.base / value)

    def _walk(self, annotation: Any, value: object, key: Key) -> None:
        wanted = plain(annotation)
        origin = get_origin(wanted)
        kind = origin or wanted
        before = len(self.problems)
        if origin in UNIONS:
            # A table or a list can only be meant for the one member that takes a table or a list.
            members = [m for m in get_args(wanted) if _takes(m, value)]
            if len(members) == 1:
                self._walk(members[0], value, key)
                return
        elif is_struct(kind) and isinstance(value, Mapping):
            self._walk_struct(kind, wanted, value, key)
            return
        elif kind in LISTS and isinstance(value, list):
            members = list(get_args(wanted)) or [Any]
            fixed = kind is tuple and members[-1] is not Ellipsis
            if not fixed or len(members) == len(value):
                for index, member in enumerate(value):
                    self._walk(members[index if fixed else 0], member, (*key, index))
                if len(self.problems) > before or not metas(annotation):
                    return
        elif kind in TABLES and isinstance(value, Mapping):
            _, member_type = get_args(wanted) or (str, Any)
            for name, member in value.items():
                self._walk(member_type, member, (*key, name))
            if len(self.problems) > before or not metas(annotation):
                return
        self._check_leaf(annotation, value, key)

    def _walk_struct(self, schema: type[msgspec.Struct], wanted: Any, table: Mapping[str, Any], key: Key) -> None:
        fields = {field.encode_name: field for field in _fields(wanted)}
        tag = schema.__struct_config__.tag_field
        for name in table:
            if name not in fields and name != tag:
                self.problems.add((*key, name), unknown(name, fields))
        for name, field in fields.items():
            if name in table:
                self._walk(field.type, table[name], (*key, name))
            elif field.required:
                self.problems.add((*key, name), f"missing, expected {describe(field.type)}")

    def _check_leaf(self, annotation: Any, value: object, key: Key) -> None:
        if isinstance(value, float) and not math.isfinite(value) and plain(annotation) is not Any:
            self.problems.add(key, mismatch(annotation, value))
            return
        if isinstance(value, int) and not -LARGEST <= value <= LARGEST:
            self.problems.add(key, f"got {to_toml(value)}, expected a number of at most 64 bits")
            return
        try:
            self._convert(annotation, value)
        except msgspec.ValidationError:
            self.problems.add(key, mismatch(annotation, value))


def keys(schema: type[msgspec.Struct]) -> tuple[str, ...]:
    """The keys that a table of this type may have."""
    return schema.__struct_encode_fields__


@lru_cache(maxsize=64)
def _fields(schema: Any) -> tuple[msgspec.structs.FieldInfo, ...]:
    """The fields of a type of structs, such as ``Options`` or ``Range[int]``."""
    return msgspec.structs.fields(schema)  # resolves the annotations, which takes a while


def _in_full(annotation: Any, value: object) -> object:
    """The value with a table in the place of each string that is short for it: ``Meta(extra={"short_for": KEY})``."""
    if isinstance(value, str):
        for meta in metas(annotation):
            if meta.extra and "short_for" in meta.extra:
                return {meta.extra["short_for"]: value}
    elif isinstance(value, Mapping) and is_struct(kind := plain(annotation)):
        types = {field.encode_name: field.type for field in _fields(kind)}
        return {name: _in_full(types.get(name, Any), member) for name, member in value.items()}
    return value


def _split_error(error: msgspec.ValidationError) -> tuple[str, Key]:
    """Split off the place at the end of msgspec's message: ``... - at `$.limits.cpu```."""
    message, _, place = str(error).partition(" - at `$")
    names: list[str | int] = []
    for name, index in re.findall(r"\.([^.\[`]+)|\[(\d+)\]", place.removesuffix("`")):
        names.append(name or int(index))
    return (message if error.__cause__ is not None else message.replace("`", "")), tuple(names)


def _takes(annotation: Any, value: object) -> bool:
    kind = get_origin(plain(annotation)) or plain(annotation)
    if isinstance(value, Mapping):
        return kind in TABLES or is_struct(kind)
    return isinstance(value, list) and kind in LISTS
