"""The request that a program's local redirect stands for (RFC 3875 section 6.2.2)."""

from __future__ import annotations

import msgspec
from poolsrv_http import RequestHead

__all__ = ["redirected"]


def redirected(request: RequestHead, location: str) -> RequestHead:
    """The request that a program's local redirect stands for: a GET (of a HEAD: a HEAD) without a body.

    :param location: path and query, as `CgiHeader.location` has them.
    """
    path, _, query = location.partition("?")
    headers = {name: value for name, value in request.headers.items() if not name.startswith(b"content-")}
    headers.pop(b"transfer-encoding", None)
    return msgspec.structs.replace(
        request,
        method="HEAD" if request.method == "HEAD" else "GET",
        target=location,
        path=path,
        query=query,
        headers=headers,
        content_length=None,
        chunked=False,
        expect_continue=False,
    )
