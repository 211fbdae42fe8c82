"""HTTP/1.1 for plugins."""

from .access_log import Entry, combined, json_line, mask_address
from .authority import host_name, is_authority, port_of
from .body import RequestBody
from .cells import SharedCells
from .decoders import BodyLimits, ChunkedDecoder, LengthDecoder, body_decoder
from .endpoints import Endpoints, endpoints_of
from .error_page import error_page, error_response, prefers_html
from .forwarding import Forwarding, Origin
from .framing import CONTINUE, REASONS, FramedResponse, Framing, ResponseHeader, http_date
from .head import SINGLE_FIELDS, RequestError, RequestHead, RequestLimits, RequestParser
from .headers import Headers
from .options import HttpOptions, http_problems
from .outcome import Outcome
from .request import Request
from .response import Response
from .server import HttpPlugin, HttpServer
from .spool import Spool, SpoolAccount
from .stall import StallTimeout, Watch

__all__ = [
    "CONTINUE",
    "REASONS",
    "SINGLE_FIELDS",
    "BodyLimits",
    "ChunkedDecoder",
    "Endpoints",
    "Entry",
    "Forwarding",
    "FramedResponse",
    "Framing",
    "Headers",
    "HttpOptions",
    "HttpPlugin",
    "HttpServer",
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
    "Watch",
    "body_decoder",
    "combined",
    "endpoints_of",
    "error_page",
    "error_response",
    "host_name",
    "http_date",
    "http_problems",
    "is_authority",
    "json_line",
    "mask_address",
    "port_of",
    "prefers_html",
]
