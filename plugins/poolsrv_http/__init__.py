"""HTTP/1.1 for plugins: a server as a library, which runs in a worker and imports only public names of `poolsrv`.

`docs/http.md` documents it. The order of the parts, each of which knows only those before it:

- `head` (into a `request_head`) and `decoders` read requests; `headers`, `framing` and `error_page` make responses;
  `access_log` makes lines; `forwarding` and `authority` read what proxies say. These know of no connection.
- `options`, `stall`, `spool` (over `cells`), `log_file` and `shared` are what the connections of a listener share.
- `body` (with `rest`), `request`, `outcome` and `response` are one exchange.
- `connection` reads one request after another; `server` is all of it, with the base class of plugins.
- `url_path` reads the path of a URL; `files` answers with static files. They are imported when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .access_log import Entry, combined, json_line, mask_address
from .authority import host_name, is_authority, port_of
from .body import RequestBody
from .cells import SharedCells
from .decoders import BodyLimits, ChunkedDecoder, LengthDecoder, body_decoder
from .endpoints import Endpoints, endpoints_of
from .error_page import error_page, error_response, prefers_html
from .files.options import (
    FileOptions,
    IndexFiles,
    UrlDirectories,
    file_problems,
    index_files_problems,
    url_directories_problems,
)
from .forwarding import Forwarding, Origin
from .framing import CONTINUE, REASONS, FramedResponse, Framing, http_date
from .head import RequestParser
from .headers import Headers, ResponseHeader
from .options import HttpOptions, http_problems
from .outcome import Outcome
from .request import Request
from .request_head import CONNECTION_FIELDS, SINGLE_FIELDS, RequestError, RequestHead, RequestLimits
from .response import Response
from .server import HttpPlugin, HttpServer
from .spool import Spool, SpoolAccount
from .stall import StallTimeout, Watch
from .url_path import BadPath, decode_path, encode_path, is_below

if TYPE_CHECKING:
    from .files.service import FileService

__all__ = [
    "CONNECTION_FIELDS",
    "CONTINUE",
    "REASONS",
    "SINGLE_FIELDS",
    "BadPath",
    "BodyLimits",
    "ChunkedDecoder",
    "Endpoints",
    "Entry",
    "FileOptions",
    "FileService",
    "Forwarding",
    "FramedResponse",
    "Framing",
    "Headers",
    "HttpOptions",
    "HttpPlugin",
    "HttpServer",
    "IndexFiles",
    "LengthDecoder",
    "Origin",
    "Outcome",
    "Request",
    "RequestBody",
    "RequestError",
    "RequestHead",
    "RequestLimits",
    "RequestParser",
    "Response",
    "ResponseHeader",
    "SharedCells",
    "Spool",
    "SpoolAccount",
    "StallTimeout",
    "UrlDirectories",
    "Watch",
    "body_decoder",
    "combined",
    "decode_path",
    "encode_path",
    "endpoints_of",
    "error_page",
    "error_response",
    "file_problems",
    "host_name",
    "http_date",
    "http_problems",
    "index_files_problems",
    "is_authority",
    "is_below",
    "json_line",
    "mask_address",
    "port_of",
    "prefers_html",
    "url_directories_problems",
]


def __getattr__(name: str) -> Any:
    if name == "FileService":
        from .files.service import FileService

        return FileService
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
