"""Validators and conditional requests (RFC 9110 sections 8.8 and 13)."""

from __future__ import annotations

import calendar
import re
import time
from collections.abc import Mapping

from ..framing import http_date

__all__ = ["Validators", "allows_range", "parse_date", "precondition_status"]

_TAG = rb'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_find_tags = re.compile(_TAG).findall
_is_list = re.compile(rb"[ \t,]*%b(?:[ \t]*,[ \t,]*%b)*[ \t,]*" % (_TAG, _TAG)).fullmatch

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
# RFC 9110 section 5.6.7: the format of today, that of RFC 850, and that of asctime().
_formats = [
    re.compile(pattern).fullmatch
    for pattern in (
        rf"[A-Z][a-z][a-z], (?P<day>\d\d) (?P<month>[A-Z][a-z][a-z]) (?P<year>\d{{4}}) {_TIME} GMT",
        rf"[A-Z][a-z]+day, (?P<day>\d\d)-(?P<month>[A-Z][a-z][a-z])-(?P<year>\d\d) {_TIME} GMT",
        rf"[A-Z][a-z][a-z] (?P<month>[A-Z][a-z][a-z]) (?P<day>\d\d| \d) {_TIME} (?P<year>\d{{4}})",
    )
]


class Validators:
    """What a file is told from another version of it by.

    :param size: bytes.
    :param modified: nanoseconds since the epoch.
    :param coding: the content coding, "" for none: each form of a file has a tag of its own.
    :ivar tag: the entity tag, a strong one.
    :ivar modified: in whole seconds since the epoch.
    """

    __slots__ = ("modified", "tag")

    def __init__(self, size: int, modified: int, coding: str = "") -> None:
        self.tag = b'"%x-%x%b"' % (modified, size, b"-" + coding.encode() if coding else b"")
        self.modified = max(modified // 10**9, 0)

    @property
    def last_modified(self) -> bytes:
        """The field's value: never later than now (RFC 9110 section 8.8.2.1)."""
        return http_date(self.modified if self.modified <= time.time() else None)


def precondition_status(headers: Mapping[bytes, bytes], validators: Validators) -> int:
    """Evaluate the preconditions of a GET or HEAD in their order (RFC 9110 section 13.2.2).

    :returns: 412, 304, or 200 where the request is to be carried out.
    """
    if (tags := headers.get(b"if-match")) is not None:
        if not _matches(tags, validators.tag, weak=False):
            return 412
    elif (text := headers.get(b"if-unmodified-since")) is not None:
        date = parse_date(text)
        if date is not None and validators.modified > date:
            return 412
    if (tags := headers.get(b"if-none-match")) is not None:
        if _matches(tags, validators.tag, weak=True):
            return 304
    elif (text := headers.get(b"if-modified-since")) is not None:
        date = parse_date(text)
        if date is not None and validators.modified <= date:
            return 304
    return 200


def allows_range(headers: Mapping[bytes, bytes], validators: Validators) -> bool:
    """Whether an If-Range, where there is one, lets the Range field count (RFC 9110 section 13.1.5)."""
    condition = headers.get(b"if-range")
    if condition is None:
        return True
    if condition.startswith((b'"', b"W/")):
        return condition == validators.tag  # a strong comparison: ours is strong
    # A date is a strong validator only if the file can't have changed twice in its second (section 8.8.2.2).
    date = parse_date(condition)
    return date is not None and date == validators.modified < int(time.time())


def _matches(tags: bytes, tag: bytes, weak: bool) -> bool:
    """Whether `tag` is in a list of entity tags, or the list is `*`; a malformed list has none."""
    if tags.strip(b" \t") == b"*":
        return True
    if not _is_list(tags):
        return False
    found = _find_tags(tags)
    return tag in found or (weak and b"W/" + tag in found)


def parse_date(text: bytes) -> int | None:
    """An HTTP-date in seconds since the epoch; None where it is none, and has to be ignored."""
    written = text.decode("latin-1")
    for match in (fits(written) for fits in _formats):
        if match is not None:
            break
    else:
        return None
    month, year = match["month"].lower(), int(match["year"])
    if month not in _MONTHS:
        return None
    if len(match["year"]) == 2:
        # RFC 9110 section 5.6.7: what seems to be more than 50 years in the future is in the past.
        year += time.gmtime().tm_year // 100 * 100
        if year > time.gmtime().tm_year + 50:
            year -= 100
    day, hour, minute, second = (int(match[name]) for name in ("day", "hour", "minute", "second"))
    number = _MONTHS.index(month) + 1
    if not (year and 1 <= day <= calendar.monthrange(year, number)[1]) or hour > 23 or minute > 59 or second > 60:
        return None
    return calendar.timegm((year, number, day, hour, minute, second))
