"""The live page: its sources, put together into one file that needs no other.

Browsers get style and script inline, and run nothing else: the policy names the hashes of these two.
"""

from __future__ import annotations

import base64
import hashlib
from importlib import resources
from typing import Final

__all__ = ["CONTENT_SECURITY_POLICY", "page"]

# In this order; together they are one script.
SCRIPTS: Final = (
    "format.js", "dom.js", "histograms.js", "history.js", "plots.js", "tables.js", "changes.js", "main.js",
)  # fmt: skip


def _source(name: str) -> str:
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")


_STYLE: Final = _source("page.css")
_SCRIPT: Final = "\n".join(map(_source, SCRIPTS))
_PAGE: Final = _source("page.html").replace("{style}", _STYLE).replace("{script}", _SCRIPT).encode()


def _hash(text: str) -> str:
    """What a policy says of an inline style or script (Content Security Policy Level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


# `data:` is for the icon. No script may make markup or code of strings: there is no policy of Trusted Types.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        f"script-src {_hash(_SCRIPT)}",
        f"style-src {_hash(_STYLE)}",
        "img-src data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)


def page() -> bytes:
    """The page, as UTF-8. It asks ``events``, beside its own URL, for what it shows."""
    return _PAGE
