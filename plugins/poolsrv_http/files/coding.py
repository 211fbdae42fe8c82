"""The content codings that a client takes (RFC 9110 section 12.5.3)."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["chosen_coding"]


def chosen_coding(accept: bytes | None, offered: Sequence[str]) -> str:
    """Choose a content coding.

    :param accept: the Accept-Encoding field; None where there was none.
    :param offered: codings that there are, the preferred one first.
    :returns: one of `offered`, or "" for the file as it is, which is sent also where the client would rather not.
    """
    if not accept:
        return ""
    quality = _qualities(accept.decode("latin-1").lower())
    anything = quality.get("*", 0.0)
    # A client that names codings prefers them to none, unless it says otherwise.
    best, most = "", quality.get("identity", 0.0)
    for coding in offered:
        q = quality.get(coding, anything)
        if q > 0 and (q > most or (q == most and not best)):
            best, most = coding, q
    return best


def _qualities(accept: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in accept.split(","):
        coding, _, parameters = part.partition(";")
        coding = coding.strip()
        if coding:
            found["gzip" if coding == "x-gzip" else coding] = _quality(parameters)
    return found


def _quality(parameters: str) -> float:
    for parameter in parameters.split(";"):
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                return 0.0
            return quality if 0 <= quality <= 1 else 0.0
    return 1.0
