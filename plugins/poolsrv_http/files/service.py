"""Answers requests with the files below directories."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from fnmatch import fnmatchcase
from typing import Final

from poolsrv import Connection, Worker

from ..framing import ResponseHeader
from ..head import RequestHead
from ..response import Response
from ..stall import StallTimeout
from ..url_path import BadPath, decode_path, encode_path
from .coding import chosen_coding
from .conditions import Validators, allows_range, precondition_status
from .listing import LISTING_FIELDS, listing
from .media_types import MediaTypes
from .options import FileOptions, IndexFiles
from .ranges import Multipart, Range, parse_ranges
from .transfer import Part, Transfer
from .tree import Directory, File, FileError, Tree, Trees, is_hidden

__all__ = ["FileService"]

ALLOWED: Final = "GET, HEAD, OPTIONS"
RETRY_AFTER: Final = 5  # seconds, where there are no descriptors left
NEIGHBOURS: Final = {"br": b".br", "gzip": b".gz"}  # by preference

Fields = list[tuple[bytes, bytes]]


class FileService:
    """The files of one listener.

    :param directories: URL path to directory; the longest that fits counts.
    :param index: the names of files that answer for their directory, the preferred one first.
    :param options: all else.
    :param closed: directories and files in these directories that are not shown, by whatever name.
    """

    def __init__(
        self,
        directories: Mapping[str, str | os.PathLike[str]],
        index: IndexFiles,
        options: FileOptions,
        closed: Sequence[str | bytes | os.PathLike[str]] = (),
    ) -> None:
        self._trees = Trees(directories, closed)
        self._index = tuple(os.fsencode(name) for name in index)
        self._media_types = MediaTypes(options.media_types, options.default_media_type, options.charset)
        rules = {"*": options.cache_control} if isinstance(options.cache_control, str) else options.cache_control
        self._cache_control = [(pattern, value.encode("ascii")) for pattern, value in rules.items()]
        self._caches = any(value for _, value in self._cache_control)
        self._precompressed = options.precompressed
        self._listings = options.listings
        self._stalled = StallTimeout(options.send_timeout)

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection."""
        self._stalled.open(worker)

    def prefix_of(self, path: bytes) -> bytes | None:
        """The URL path, without a slash at its end, of the directory that a decoded path is below; None if it is below
        none."""
        matched = self._trees.match(path)
        return None if matched is None else matched[0]

    def answer(self, head: RequestHead, conn: Connection, response: Response) -> None:
        """Answer a request: with a file, or with the reason why there is none."""
        if head.method in ("GET", "HEAD"):
            if not response.await_body(lambda: self._get(head, conn, response)):
                self._get(head, conn, response)
        elif head.method == "OPTIONS":
            response.respond(204, headers={"Allow": ALLOWED})
        else:
            response.error(405, headers={"Allow": ALLOWED})

    def explain(self, path: str) -> Iterator[tuple[str, str]]:
        """Explain what would answer a GET of a path, percent-encoded, in pairs of a label and a text."""
        try:
            decoded = decode_path(path)
            matched = self._trees.match(decoded)
            if matched is None or is_hidden(decoded):
                raise FileError(404, "no such path, or a name with a dot in front")
            prefix, tree = matched
            found = tree.find(decoded[len(prefix) :])
            if isinstance(found, Directory) and not decoded.endswith(b"/"):
                yield "redirect", encode_path(decoded + b"/")
                return
            found = self._index_file(tree, decoded[len(prefix) :]) or found if isinstance(found, Directory) else found
        except BadPath as error:
            yield "refused", f"400: {error}"
        except FileError as error:
            yield "refused", f"{error.status}: {error}"
        else:
            yield from self._explain_found(found)

    def _explain_found(self, found: File | Directory) -> Iterator[tuple[str, str]]:
        name = os.fsdecode(found.name)
        if isinstance(found, File):
            os.close(found.fd)
            yield "file", name
            yield "size", f"{found.size} bytes"
            yield "media type", self._media_types.of(found.name).decode()
        elif self._listings:
            yield "directory", f"{name}, as a listing"
        else:
            yield "refused", f"403: {name} is a directory"

    # --- what answers

    def _get(self, head: RequestHead, conn: Connection, response: Response) -> None:
        try:
            path = decode_path(head.path)
            matched = self._trees.match(path)
            if matched is None or is_hidden(path):
                raise FileError(404, "no such path, or a name with a dot in front")
            prefix, tree = matched
            found = tree.find(path[len(prefix) :])
            if isinstance(found, File):
                self._send(head, conn, response, tree, found, path)
            elif not path.endswith(b"/"):
                query = f"?{head.query}" if head.query else ""
                response.error(301, location=encode_path(path + b"/") + query)
            else:
                self._answer_for_directory(head, conn, response, tree, found, path, prefix)
        except BadPath as error:
            _refuse(conn, response, 400, str(error))
        except FileError as error:
            _refuse(conn, response, error.status, str(error))

    def _answer_for_directory(
        self,
        head: RequestHead,
        conn: Connection,
        response: Response,
        tree: Tree,
        directory: Directory,
        path: bytes,
        prefix: bytes,
    ) -> None:
        """Send its index file, or what is in it."""
        if (index := self._index_file(tree, path[len(prefix) :])) is not None:
            self._send(head, conn, response, tree, index, path + index.name.rpartition(b"/")[2])
            return
        if not self._listings:
            raise FileError(403, f"{os.fsdecode(directory.name)} is a directory")
        conn.run_blocking(
            listing, tree, directory.name, path, done=lambda page: _send_listing(conn, response, page, directory.name)
        )

    def _index_file(self, tree: Tree, relative: bytes) -> File | None:
        for name in self._index:
            try:
                found = tree.find(relative + name)
            except FileError as error:
                if error.status == 404:
                    continue
                raise
            if isinstance(found, File):
                return found
        return None

    # --- a file

    def _send(
        self, head: RequestHead, conn: Connection, response: Response, tree: Tree, file: File, path: bytes
    ) -> None:
        try:
            fields = [(b"Content-Type", self._media_types.of(file.name))]
            coding = ""
            if self._precompressed:
                file, coding = self._form(head, tree, file, fields)
            if self._caches:
                self._add_cache_control(fields, path)
            validators = Validators(file.size, file.modified, coding)
            fields.append((b"ETag", validators.tag))
            status = precondition_status(head.headers, validators)
            if status == 200:
                fd, file = file.fd, File(-1, file.name, file.size, file.modified)
                self._send_parts(head, conn, response, fd, file.size, fields, validators)
            elif status == 304:
                kept = tuple(field for field in fields if not field[0].startswith(b"Content-"))
                response.start_with(ResponseHeader(status=304, fields=kept), whole=True)
                response.end()
            else:
                response.error(status)
        finally:
            if file.fd >= 0:
                os.close(file.fd)

    def _form(self, head: RequestHead, tree: Tree, file: File, fields: Fields) -> tuple[File, str]:
        """The precompressed form of a file that the client prefers, and its coding; or the file itself, and ""."""
        offered = [coding for coding, suffix in NEIGHBOURS.items() if os.access(file.name + suffix, os.F_OK)]
        if not offered:
            return file, ""
        fields.append((b"Vary", b"Accept-Encoding"))
        while coding := chosen_coding(head.headers.get(b"accept-encoding"), offered):
            neighbour = tree.neighbour(file, NEIGHBOURS[coding])
            if neighbour is not None:
                os.close(file.fd)
                fields.append((b"Content-Encoding", coding.encode("ascii")))
                return neighbour, coding
            offered.remove(coding)
        return file, ""

    def _add_cache_control(self, fields: Fields, path: bytes) -> None:
        text = os.fsdecode(path)
        for pattern, value in self._cache_control:
            if fnmatchcase(text, pattern):
                if value:
                    fields.append((b"Cache-Control", value))
                return

    def _send_parts(
        self,
        head: RequestHead,
        conn: Connection,
        response: Response,
        fd: int,
        size: int,
        fields: Fields,
        validators: Validators,
    ) -> None:
        """Send the file, or the ranges of it that were asked for. The descriptor is closed in any case."""
        fields += [(b"Last-Modified", validators.last_modified), (b"Accept-Ranges", b"bytes")]
        wanted = head.headers.get(b"range") if head.method == "GET" and size else None
        ranges: list[Range] | None = None
        if wanted is not None and allows_range(head.headers, validators):
            ranges = parse_ranges(wanted, size)
        status, end = 206, b""
        if ranges is None:
            status, length, parts = 200, size, [Part(b"", 0, size)]
        elif not ranges:
            os.close(fd)
            response.error(416, headers={"Content-Range": f"bytes */{size}"})
            return
        elif len(ranges) == 1:
            one = ranges[0]
            fields.append((b"Content-Range", one.of(size)))
            length, parts = one.length, [Part(b"", one.first, one.length)]
        else:
            body = Multipart(ranges, size, fields[0][1])
            fields[0] = (b"Content-Type", body.content_type)
            length, end = body.length, body.end
            parts = [Part(before, one.first, one.length) for before, one in body.parts]
        header = ResponseHeader(status=status, fields=tuple(fields), content_length=length)
        if head.method == "HEAD":
            os.close(fd)
            response.start_with(header, whole=True)
            response.end()
        else:
            Transfer(conn, response, fd, parts, end, self._stalled).start(header)


def _send_listing(conn: Connection, response: Response, page: Future[bytes], name: bytes) -> None:
    try:
        body = page.result()
    except OSError as error:
        status = 403 if isinstance(error, PermissionError) else 404
        _refuse(conn, response, status, f"{os.fsdecode(name)}: {error.strerror}")
        return
    response.respond(200, body, LISTING_FIELDS)


def _refuse(conn: Connection, response: Response, status: int, reason: str) -> None:
    """Log the reason; the client gets the status alone."""
    conn.log.info("%d: %s", status, reason)
    response.error(status, retry_after=RETRY_AFTER if status == 503 else None)
