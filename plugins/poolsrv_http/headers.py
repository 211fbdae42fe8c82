"""The header of a response, as a handler gives it, checked: no part of it may end a line early."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TypeAlias

import msgspec

from .request_head import CONNECTION_FIELDS

__all__ = ["Headers", "ResponseHeader", "made_header"]

Headers: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]

_match_name = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_match_value = re.compile(rb"[\t -~\x80-\xff]*").fullmatch


class ResponseHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a response begins with, checked: no CR, LF or NUL in any part of it.

    :ivar status: 200 to 599.
    :ivar reason: the text after the status; b"" for the usual one.
    :ivar fields: name and value of each field, in order; without those that the framing makes.
    :ivar content_length: bytes of the body; None where that is not known yet.
    """

    status: int
    reason: bytes = b""
    fields: tuple[tuple[bytes, bytes], ...] = ()
    content_length: int | None = None


def made_header(status: int, headers: Headers, length: int | None) -> ResponseHeader:
    """Make the header of a response.

    :param headers: names and values, in ISO 8859-1.
    :param length: bytes of the body, None where that is not known yet.
    :raises ValueError: something in it can't be sent.
    """
    if not 200 <= status <= 599:
        raise ValueError(f"status {status}, expected one from 200 to 599")
    if length is not None and length < 0:
        raise ValueError(f"length {length}, expected 0 or more")
    fields: list[tuple[bytes, bytes]] = []
    for name, value in headers.items() if isinstance(headers, Mapping) else headers:
        sent = name.encode("ascii", "replace"), value.encode("latin-1")
        if not _match_name(sent[0]) or not _match_value(sent[1]):
            raise ValueError(f"{name!r}: {value!r} can't be a header field")
        if sent[0].lower() in CONNECTION_FIELDS:
            raise ValueError(f"{name} is the library's to send")
        fields.append(sent)
    return ResponseHeader(status=status, fields=tuple(fields), content_length=length)
