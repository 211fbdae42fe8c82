"""Clients' connections: open, exchange, HTTP by h11. Everything raises; the load notes it."""

from __future__ import annotations

import asyncio
import random
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import h11

from .books import NAMELESS, Books, Visit

TIMEOUT: Final = 120.0  # seconds that a client waits for anything: busy machines are slow, and that is no loss
PIECE: Final = 65536
IP_BIND_ADDRESS_NO_PORT: Final = 24  # ip(7)
RESET: Final = struct.pack("ii", 1, 0)  # SO_LINGER: close with a reset


class WrongAnswer(Exception):
    """The server has sent what it never may: other bytes than the right ones."""


class CutShort(Exception):
    """The server has ended the connection before the whole answer was there."""


class LooksWhole(Exception):
    """The answer is too short, and yet nothing tells the client so."""


class Refused(Exception):
    """The server says that it can't do it."""


class NotOpen(Exception):
    """There is no connection: refused, or its handshake has failed.

    :ivar visit: what the books have of it.
    :ivar was_reset: it had been made, and the server has reset it at once.
    """

    def __init__(self, visit: Visit, why: str, was_reset: bool = False) -> None:
        super().__init__(why)
        visit.ended = time.monotonic()  # later another client may have the same port
        self.visit = visit
        self.was_reset = was_reset


@dataclass
class Answer:
    """An HTTP response with its whole body."""

    status: int
    body: bytes
    closes: bool


class Wire:
    """One connection of a client.

    :ivar visit: what the books have of it.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, visit: Visit) -> None:
        self.visit = visit
        self.reader = reader
        self.writer = writer
        self._http = h11.Connection(h11.CLIENT)

    @classmethod
    async def open(
        cls,
        books: Books,
        listener: str,
        address: str,
        *,
        source: str = "127.0.0.1",
        tls: ssl.SSLContext | None = None,
        proxy: int = 0,
    ) -> Wire:
        """Connect.

        :param source: the client's own address.
        :param proxy: the version of the PROXY header to begin with; 0: none.
        :raises NotOpen: that fails.
        """
        if address.startswith("unix:"):
            try:
                reader, writer = await asyncio.open_unix_connection(address.removeprefix("unix:"), limit=1 << 18)
            except OSError as error:
                raise NotOpen(Visit(listener, "", time.monotonic()), f"can't connect: {error}") from None
            return cls(reader, writer, books.connected(listener, NAMELESS))
        host, _, port = address.rpartition(":")
        sock = _client_socket(source)
        tried = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT):
                await asyncio.get_running_loop().sock_connect(sock, (host, int(port)))
        except OSError as error:
            own, own_port = sock.getsockname()
            sock.close()
            if isinstance(error, ConnectionResetError):  # since it was made: the server has counted it
                raise NotOpen(books.connected(listener, f"{own}:{own_port}", tried), "reset at once", True) from None
            raise NotOpen(Visit(listener, "", time.monotonic()), f"can't connect: {error!r}") from None
        own, own_port = sock.getsockname()
        claimed = f"192.0.2.{random.randint(1, 250)}" if proxy else own
        visit = books.connected(listener, f"{claimed}:{own_port}", tried)
        try:
            if proxy:
                await asyncio.get_running_loop().sock_sendall(sock, _proxy_header(proxy, claimed, own_port, int(port)))
            name = "localhost" if tls else None
            reader, writer = await asyncio.open_connection(
                sock=sock, ssl=tls, server_hostname=name, limit=1 << 18, ssl_handshake_timeout=TIMEOUT if tls else None
            )
        except (OSError, EOFError) as error:
            sock.close()
            raise NotOpen(visit, f"in the handshake: {error!r}") from None
        except BaseException:
            sock.close()
            raise
        return cls(reader, writer, visit)

    async def send(self, data: bytes) -> None:
        """Send it all."""
        self.writer.write(data)
        async with asyncio.timeout(TIMEOUT):
            await self.writer.drain()

    async def expect(self, right: bytes) -> None:
        """Receive exactly these bytes."""
        async with asyncio.timeout(TIMEOUT):
            try:
                got = await self.reader.readexactly(len(right))
            except asyncio.IncompleteReadError as error:
                if not right.startswith(error.partial):
                    raise WrongAnswer(f"{error.partial[:60]!r} in place of {right[:60]!r}") from None
                raise CutShort(f"{len(error.partial)} of {len(right)} bytes") from None
        if got != right:
            raise WrongAnswer(f"{got[:60]!r} in place of {right[:60]!r}")

    async def line(self) -> bytes:
        """Receive a line."""
        async with asyncio.timeout(TIMEOUT):
            line = await self.reader.readline()
        if not line.endswith(b"\n"):
            raise CutShort(f"{len(line)} bytes of a line")
        return line

    async def rest(self) -> bytes:
        """Receive until the end of the stream."""
        async with asyncio.timeout(TIMEOUT):
            return await self.reader.read()

    async def request(
        self,
        target: str,
        body: bytes | AsyncIterable[bytes] | None = None,
        fields: Mapping[str, str] | None = None,
    ) -> Answer:
        """Send an HTTP request and receive its whole response.

        :param body: None: GET; bytes: POST with a Content-Length; pieces: POST in chunks.
        """
        http = self._http
        if http.our_state is h11.DONE:
            http.start_next_cycle()
        headers = {"Host": "localhost", **(fields or {})}
        if isinstance(body, bytes):
            headers["Content-Length"] = str(len(body))
        elif body is not None:
            headers["Transfer-Encoding"] = "chunked"
        method = "GET" if body is None else "POST"
        head = http.send(h11.Request(method=method, target=target, headers=list(headers.items())))
        assert head is not None
        await self.send(head)
        # A server may answer and close before it has the whole body; the client then reads the answer all the same.
        sending = asyncio.create_task(self._send_body(body))
        try:
            return await self._receive()
        finally:
            if not sending.done() and http.our_state is not h11.DONE:
                sending.cancel()
            with suppress(asyncio.CancelledError, OSError, TimeoutError):
                await sending

    async def _send_body(self, body: bytes | AsyncIterable[bytes] | None) -> None:
        if isinstance(body, bytes):
            await self.send(self._http.send(h11.Data(data=body)) or b"")
        elif body is not None:
            async for piece in body:
                await self.send(self._http.send(h11.Data(data=piece)) or b"")
        await self.send(self._http.send(h11.EndOfMessage()) or b"")

    async def _receive(self) -> Answer:
        status, pieces, begun = 0, [], False
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as error:
                if any(word in str(error) for word in ("closed", "ConnectionClosed", "incomplete")):
                    raise CutShort(f"{'in' if begun else 'before'} a response") from None
                raise WrongAnswer(str(error)) from None
            if event is h11.NEED_DATA:
                async with asyncio.timeout(TIMEOUT):
                    data = await self.reader.read(PIECE)
                begun = begun or bool(data)
                self._http.receive_data(data)
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                pieces.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, b"".join(pieces), self._http.their_state is not h11.DONE)
            elif isinstance(event, h11.ConnectionClosed):
                raise CutShort("before a response")

    def reset(self) -> None:
        """Close with a reset."""
        sock = self.writer.get_extra_info("socket")
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.writer.transport.abort()

    def close(self) -> None:
        """Close, whatever has happened."""
        with suppress(OSError, RuntimeError):
            self.writer.close()


def _client_socket(source: str) -> socket.socket:
    sock = socket.socket()
    sock.setblocking(False)
    # Without it, bind takes a port for this address alone, and there are fewer.
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.bind((source, 0))
    return sock


def _proxy_header(version: int, client: str, client_port: int, port: int) -> bytes:
    if version == 1:
        return f"PROXY TCP4 {client} 127.0.0.1 {client_port} {port}\r\n".encode()
    addresses = socket.inet_aton(client) + socket.inet_aton("127.0.0.1") + struct.pack("!HH", client_port, port)
    return b"\r\n\r\n\0\r\nQUIT\n" + bytes((0x21, 0x11)) + struct.pack("!H", len(addresses)) + addresses
