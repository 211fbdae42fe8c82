"""The header of a CGI program.

The rules: the answer does not depend on how the bytes were split. What is accepted makes a response head that an
independent parser reads as exactly these fields, and means the same when a program prints it again. What is refused has
a reason that may go into a log.
"""

from __future__ import annotations

from typing import Any

import h11
from poolsrv_cgi.cgi_header import BadResponse, CgiHeader, CgiHeaderParser, encoded_location
from poolsrv_http.framing import FramedResponse

from ..bounds import check_work
from ..source import Source, cut
from . import Target

LIMITS = ((32768, 500), (64, 3))
MADE = (b"date", b"server", b"content-length", b"transfer-encoding", b"connection")

Outcome = tuple[Any, ...]


def run(data: bytes) -> None:
    source = Source(data)
    limits = source.choice(LIMITS)
    seed = source.number(256)
    text = source.rest()
    whole = outcome([text], limits)
    for pieces in ([text[:1], text[1:]], cut(text, seed), cut(text, 0)):
        assert outcome(pieces, limits) == whole, pieces
    if len(whole) == 2:
        check_accepted(whole[0])
    check_work(lambda pieces: outcome(pieces, (1 << 20, 1 << 16)), text)


def outcome(pieces: list[bytes], limits: tuple[int, int]) -> Outcome:
    """Header and what is behind it; or that it is refused; or nothing yet."""
    parser = CgiHeaderParser(*limits)
    for number, piece in enumerate(pieces):
        try:
            header = parser.feed(piece)
        except BadResponse as error:
            check_reason(error)
            return (502,)
        if header is not None:
            return header, b"".join([parser.surplus, *pieces[number + 1 :]])
    check_reason(parser.end())
    return ()


def check_reason(error: BadResponse) -> None:
    assert str(error).isascii(), error
    assert str(error).isprintable(), error


def check_accepted(header: CgiHeader) -> None:
    assert 200 <= header.status <= 599
    if header.local:
        assert header.location.startswith("/")
        assert encoded_location(header.location.encode("ascii")).decode("ascii") == header.location
        return
    framed = FramedResponse(header, method="GET", version=(1, 1), keep_alive=True, date=b"today")
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    client.receive_data(framed.head)
    response = client.next_event()
    assert isinstance(response, h11.Response), framed.head
    assert response.status_code == header.status
    assert [(name.lower(), value) for name, value in header.fields if name.lower() not in MADE] == [
        (name, value) for name, value in response.headers if name not in MADE
    ]
    check_printed_again(header)


def check_printed_again(header: CgiHeader) -> None:
    lines = [b"Status: %d %b" % (header.status, header.reason)]
    lines += [b"%b: %b" % field for field in header.fields]
    if header.content_length is not None:
        lines.append(b"Content-Length: %d" % header.content_length)
    again = outcome([b"\n".join([*lines, b"", b""])], (1 << 20, 1 << 16))
    assert again == (header, b"")


TARGET = Target(
    run,
    1024,
    (
        b"Status: ", b"Location: ", b"Content-Type: ", b"Content-Length: ", b"Connection: ", b"X-CGI-A: ", b"\r\n",
        b"\n", b"Transfer-Encoding: chunked", b"200 OK", b"/", b"#", b"%2f", b"\\", b"http://", b"Date: ",
    ),
)  # fmt: skip
