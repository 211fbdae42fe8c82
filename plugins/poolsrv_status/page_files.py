"""The page and its files, from the folder `page` of this package: read once, before the fork.

`page/index.html` is `/`; a file `page/NAME` is `/NAME`. The page may load nothing from elsewhere. Its inline scripts
and styles run because the policy has their hashes: whatever else got into the page would not.
"""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from poolsrv_http import Request, Response

__all__ = ["PageFile", "PageFiles"]

TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}
_INLINE = re.compile(rb"<(script|style)(?:\s[^>]*)?>(.*?)</\1\s*>", re.DOTALL | re.IGNORECASE)
_WITHOUT_PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>poolsrv</title>
<ul><li><a href="/status.json">/status.json</a><li><a href="/metrics">/metrics</a>
<li><a href="/healthz">/healthz</a><li><a href="/readyz">/readyz</a><li><a href="/events">/events</a></ul></html>
"""


class PageFile:
    """A file as it is sent.

    :ivar content: the file's bytes.
    :ivar headers: with its type, its ETag, and for a page the policy.
    """

    def __init__(self, content: bytes, suffix: str) -> None:
        self.content = content
        self._etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
        self.headers = {
            "Content-Type": TYPES[suffix],
            "ETag": self._etag,
            "Cache-Control": "no-cache",  # kept, and asked for again
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Referrer-Policy": "no-referrer",
            "Content-Security-Policy": policy(content if suffix == ".html" else b""),
        }

    def answer(self, request: Request, response: Response) -> None:
        """Send it, unless the client has it."""
        known = {tag.strip().removeprefix("W/") for tag in (request.header("if-none-match") or "").split(",")}
        if known & {self._etag, "*"}:
            response.respond(304, b"", {name: value for name, value in self.headers.items() if name != "Content-Type"})
        else:
            response.respond(200, self.content, self.headers)


class PageFiles:
    """All files of a folder.

    :ivar files: by the path of their URL.
    """

    def __init__(self, folder: Path) -> None:
        found = sorted(folder.iterdir()) if folder.is_dir() else []
        self.files = {
            f"/{path.name}": PageFile(path.read_bytes(), path.suffix) for path in found if path.suffix in TYPES
        }
        self.files.setdefault("/index.html", PageFile(_WITHOUT_PAGE, ".html"))
        self.files["/"] = self.files.pop("/index.html")


def policy(page: bytes) -> str:
    """Make the Content-Security-Policy of a page (CSP Level 3): only what it came with, and only to this server."""
    sources = {b"script": ["'self'"], b"style": ["'self'"]}
    for kind, text in _INLINE.findall(page):
        if text.strip():
            digest = base64.b64encode(hashlib.sha256(text).digest()).decode()
            sources[kind.lower()].append(f"'sha256-{digest}'")
    return (
        "default-src 'none'; "
        f"script-src {' '.join(sources[b'script'])}; style-src {' '.join(sources[b'style'])}; "
        "connect-src 'self'; img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
