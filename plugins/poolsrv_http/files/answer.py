"""The answer to one GET or HEAD: a file, parts of it, a page of a directory, or the reason why there is none."""

from __future__ import annotations

import os
from concurrent.futures import Future
from typing import Final, Protocol

from poolsrv import Connection

from ..headers import ResponseHeader
from ..request_head import RequestHead
from ..response import Response
from ..stall import StallTimeout
from ..url_path import BadPath, decode_path, encode_path
from .coding import chosen_coding
from .conditions import Validators, allows_range, precondition_status
from .listing import LISTING_FIELDS, listing
from .media_types import MediaTypes
from .ranges import Multipart, parse_ranges
from .transfer import Part, Transfer
from .tree import Directory, File, FileError, Tree, Trees, is_hidden, refusal

__all__ = ["Answer", "Site", "find"]

RETRY_AFTER: Final = 5  # seconds, where there are no descriptors or threads left
NEIGHBOURS: Final = {"br": b".br", "gzip": b".gz"}  # by preference


class Site(Protocol):
    """What all answers of a listener have in common.

    :ivar index: the names of files that answer for their directory, the preferred one first.
    :ivar stalled: watches clients that take nothing.
    """

    trees: Trees
    index: tuple[bytes, ...]
    media_types: MediaTypes
    precompressed: bool
    listings: bool
    stalled: StallTimeout

    def cache_control(self, path: bytes) -> bytes:
        """The Cache-Control field of a file; empty for none."""


def find(site: Site, path: bytes) -> tuple[Tree, File | Directory]:
    """Find what a decoded path stands for, and the tree that it is in; the index file of a directory that has its slash
    and one.

    :raises FileError: nothing that may be shown.
    """
    matched = site.trees.match(path)
    if matched is None:
        raise FileError(404, "the path is below none of the directories")
    if is_hidden(path):
        raise FileError(404, "a name with a dot in front")
    prefix, tree = matched
    found = tree.find(path[len(prefix) :])
    if isinstance(found, Directory) and path.endswith(b"/"):
        return tree, _index_file(site, tree, path[len(prefix) :]) or found
    return tree, found


def _index_file(site: Site, tree: Tree, relative: bytes) -> File | None:
    for name in site.index:
        try:
            found = tree.find(relative + name)
        except FileError as error:
            if error.status == 404:
                continue
            raise
        if isinstance(found, File):
            return found
    return None


class Answer:
    """See above. Nothing refers to it once `begin` has returned, but a listing that is being made."""

    __slots__ = ("_conn", "_fields", "_head", "_path", "_response", "_site", "_tree")

    def __init__(self, site: Site, head: RequestHead, conn: Connection, response: Response) -> None:
        self._site = site
        self._head = head
        self._conn = conn
        self._response = response
        self._tree: Tree
        self._path = b""  # decoded
        self._fields: list[tuple[bytes, bytes]] = []

    def begin(self) -> None:
        """Find what answers, and send it."""
        try:
            self._path = decode_path(self._head.path)
            self._tree, found = find(self._site, self._path)
            if isinstance(found, File):
                if self._path.endswith(b"/"):
                    self._path += found.name.rpartition(b"/")[2]
                self._send(found)
            elif self._path.endswith(b"/"):
                self._send_directory(found)
            else:
                query = f"?{self._head.query}" if self._head.query else ""
                self._response.error(301, location=encode_path(self._path + b"/") + query)
        except BadPath as error:
            self._refuse(400, str(error))
        except FileError as error:
            self._refuse(error.status, str(error))

    def _refuse(self, status: int, reason: str) -> None:
        """Log the reason; the client gets the status alone."""
        self._conn.log.info("%d: %s", status, reason)
        self._response.error(status, retry_after=RETRY_AFTER if status == 503 else None)

    # --- a directory

    def _send_directory(self, directory: Directory) -> None:
        """Send what is in it."""
        if not self._site.listings:
            raise FileError(403, f"{os.fsdecode(directory.name)} is a directory")
        self._conn.run_blocking(listing, self._tree, directory.name, self._path, done=self._send_listing)

    def _send_listing(self, page: Future[bytes]) -> None:
        try:
            body = page.result()
        except OSError as error:
            refused = refusal(error, b"the directory of " + self._path)
            self._refuse(refused.status, str(refused))
            return
        self._response.respond(200, body, LISTING_FIELDS)

    # --- a file

    def _send(self, file: File) -> None:
        """Send a file, unless the client has it already. Its descriptor is closed in any case."""
        fields, response = self._fields, self._response
        fields.append((b"Content-Type", self._site.media_types.of(file.name)))
        file, coding = self._form(file) if self._site.precompressed else (file, "")
        if control := self._site.cache_control(self._path):
            fields.append((b"Cache-Control", control))
        validators = Validators(file.size, file.modified, coding)
        fields.append((b"ETag", validators.tag))
        status = precondition_status(self._head.headers, validators)
        if status == 200:
            self._send_parts(file, validators, coding)
            return
        os.close(file.fd)
        if status == 304:
            kept = tuple(field for field in fields if not field[0].startswith(b"Content-"))
            response.start_with(ResponseHeader(status=304, fields=kept), whole=True)
            response.end()
        else:
            response.error(status)

    def _form(self, file: File) -> tuple[File, str]:
        """The precompressed form of a file that the client prefers, and its coding; or the file itself, and ""."""
        offered = [coding for coding, suffix in NEIGHBOURS.items() if os.access(file.name + suffix, os.F_OK)]
        if not offered:
            return file, ""
        self._fields.append((b"Vary", b"Accept-Encoding"))
        while coding := chosen_coding(self._head.headers.get(b"accept-encoding"), offered):
            neighbour = self._tree.neighbour(file, NEIGHBOURS[coding])
            if neighbour is not None:
                os.close(file.fd)
                self._fields.append((b"Content-Encoding", coding.encode("ascii")))
                return neighbour, coding
            offered.remove(coding)
        return file, ""

    def _send_parts(self, file: File, validators: Validators, coding: str) -> None:
        """Send the file, or the ranges of it that were asked for."""
        fields, size = self._fields, file.size
        fields += [(b"Last-Modified", validators.last_modified), (b"Accept-Ranges", b"bytes")]
        wanted = self._head.headers.get(b"range") if self._head.method == "GET" and size else None
        ranges = None
        if wanted is not None and allows_range(self._head.headers, validators):
            ranges = parse_ranges(wanted, size)
        if ranges is None or (len(ranges) > 1 and coding):  # a coding of several parts would be that of the whole body
            self._transfer(200, file, [Part(b"", 0, size)])
        elif not ranges:
            os.close(file.fd)
            self._response.error(416, headers={"Content-Range": f"bytes */{size}"})
        elif len(ranges) == 1:
            (one,) = ranges
            fields.append((b"Content-Range", one.of(size)))
            self._transfer(206, file, [Part(b"", one.first, one.length)])
        else:
            body = Multipart(ranges, size, fields[0][1])
            fields[0] = (b"Content-Type", body.content_type)
            parts = [Part(before, one.first, one.length) for before, one in body.parts]
            self._transfer(206, file, parts, body.end)

    def _transfer(self, status: int, file: File, parts: list[Part], end: bytes = b"") -> None:
        length = sum(len(part.before) + part.count for part in parts) + len(end)
        header = ResponseHeader(status=status, fields=tuple(self._fields), content_length=length)
        if self._head.method == "HEAD":
            os.close(file.fd)
            self._response.start_with(header, whole=True)
            self._response.end()
        else:
            Transfer(self._conn, self._response, file.fd, parts, end, self._site.stalled).start(header)
