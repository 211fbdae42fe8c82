"""Answers requests with the files below directories."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final

from poolsrv import Connection, Worker

from ..request_head import RequestHead
from ..response import Response
from ..stall import StallTimeout
from ..url_path import BadPath, decode_path, encode_path
from .answer import Answer, find
from .media_types import MediaTypes
from .options import FileOptions, IndexFiles
from .tree import Directory, File, FileError, Trees

__all__ = ["FileService"]

ALLOWED: Final = "GET, HEAD, OPTIONS"


class FileService:
    """The files of one listener.

    :param directories: URL path to directory; the longest that fits counts.
    :param index: the names of files that answer for their directory, the preferred one first.
    :param options: all else.
    :param closed: directories of programs, and programs, whose source is not shown, by whatever name.
    :param suffixes: of files in such directories that are programs without being executable.
    """

    def __init__(
        self,
        directories: Mapping[str, str | os.PathLike[str]],
        index: IndexFiles,
        options: FileOptions,
        closed: Sequence[str | bytes | os.PathLike[str]] = (),
        suffixes: Sequence[str] = (),
    ) -> None:
        self.trees = Trees(directories, closed, suffixes)
        self.index = tuple(os.fsencode(name) for name in index)
        self.media_types = MediaTypes(options.media_types, options.default_media_type, options.charset)
        self.precompressed = options.precompressed
        self.listings = options.listings
        self.stalled = StallTimeout(options.send_timeout)
        rules = options.cache_control
        self._same = rules.encode("ascii") if isinstance(rules, str) else b""  # for all files
        self._rules = [] if isinstance(rules, str) else [(key, value.encode("ascii")) for key, value in rules.items()]

    def open(self, worker: Worker) -> None:
        """Prepare a worker, before its first connection."""
        self.stalled.open(worker)

    def prefix_of(self, path: bytes) -> bytes | None:
        """The URL path, without a slash at its end, of the directory that a decoded path is below; None if it is below
        none."""
        matched = self.trees.match(path)
        return None if matched is None else matched[0]

    def answer(self, head: RequestHead, conn: Connection, response: Response) -> None:
        """Answer a request: with a file, or with the reason why there is none."""
        if head.method in ("GET", "HEAD"):
            answer = Answer(self, head, conn, response)
            if not response.await_body(answer.begin):
                answer.begin()
        elif head.method == "OPTIONS":
            response.respond(204, headers={"Allow": ALLOWED})
        else:
            response.error(405, headers={"Allow": ALLOWED})

    def explain(self, path: str) -> Iterator[tuple[str, str]]:
        """Explain what would answer a GET of a path, percent-encoded, in pairs of a label and a text."""
        try:
            decoded = decode_path(path)
            _, found = find(self, decoded)
        except BadPath as error:
            yield "refused", f"400: {error}"
        except FileError as error:
            yield "refused", f"{error.status}: {error}"
        else:
            if isinstance(found, Directory) and not decoded.endswith(b"/"):
                yield "redirect", encode_path(decoded + b"/")
            else:
                yield from self._explain_found(found)

    def _explain_found(self, found: File | Directory) -> Iterator[tuple[str, str]]:
        name = os.fsdecode(found.name)
        if isinstance(found, File):
            os.close(found.fd)
            yield "file", name
            yield "size", f"{found.size} bytes"
            yield "media type", self.media_types.of(found.name).decode()
        elif self.listings:
            yield "directory", f"{name}, as a listing"
        else:
            yield "refused", f"403: {name} is a directory"

    def cache_control(self, path: bytes) -> bytes:
        """The Cache-Control field of a file, by its decoded URL path; empty for none."""
        if self._rules:
            text = os.fsdecode(path)
            return next((value for pattern, value in self._rules if fnmatchcase(text, pattern)), b"")
        return self._same
