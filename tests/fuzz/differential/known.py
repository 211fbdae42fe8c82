"""What other readers are known to do, with the section of RFC 9112 by which poolsrv is right to go on."""

from __future__ import annotations

from .reading import Reading


def known(name: str, data: bytes, ours: Reading, theirs: Reading) -> str:
    """Why a disagreement is no fault of poolsrv; "" if that is not known."""
    return ""
