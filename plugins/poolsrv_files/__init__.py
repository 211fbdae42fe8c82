"""Static files over HTTP: a directory, or several, each below a URL path."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

from poolsrv_http import (
    FileOptions,
    FileService,
    HttpPlugin,
    IndexFiles,
    Request,
    Response,
    UrlDirectories,
    file_problems,
    index_files_problems,
    url_directories_problems,
)

from poolsrv import ConfigError, Worker, hookimpl

__all__ = ["Files"]


class Files(HttpPlugin):
    """Serves static files over HTTP."""

    class Options(FileOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
        """The options of the files plugin, beside those of `FileOptions` and `HttpOptions`.

        :ivar root: the directory of the files, or a table of URL path to directory; nothing outside of them is sent.
        :ivar index: the files that answer for their directory, the first that is there.
        """

        root: UrlDirectories
        index: IndexFiles = ("index.html",)

    options: Options

    def __init__(self, options: Options) -> None:
        for key, message in (
            *url_directories_problems("root", options.root),
            *index_files_problems("index", options.index),
            *file_problems(options),
        ):
            raise ConfigError(key, message)
        super().__init__(options)
        self._service = FileService(options.root, options.index, options)

    def explain(self, question: str) -> Iterator[tuple[str, str]]:
        """Explain what would answer a URL, or its path (for `poolsrv explain`)."""
        return self._service.explain(urlsplit(question).path or "/")

    @hookimpl
    def on_worker_start(self, worker: Worker) -> None:
        super().on_worker_start(worker)
        self._service.open(worker)

    def on_request(self, request: Request, response: Response) -> None:
        self._service.answer(request.head, request.conn, response)
