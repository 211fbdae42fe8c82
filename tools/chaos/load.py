"""The load: clients of every kind, each of which checks every byte of its answers."""

from __future__ import annotations

import asyncio
import hashlib
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Final

from .books import Books, Form, connecting
from .wire import Answer, CutShort, LooksWhole, NotOpen, Refused, Wire, WrongAnswer

BROKEN: Final = (OSError, EOFError, CutShort)  # what a lost connection looks like; OSError includes timeouts

HTTP: Final = frozenset(
    {"keep-alive", "one request", "https", "PROXY", "CGI cold", "CGI slow", "CGI warm", "upload", "download"}
)


class VisitOver(Exception):
    """Nothing more can be asked on this connection; the books know why."""


class Load:
    """Clients of one server.

    :param addresses: of each listener.
    :param files: the server's static files: name to content.
    :ivar in_a_hurry: whether clients pause on no connection.
    """

    def __init__(
        self,
        books: Books,
        addresses: Mapping[str, str],
        files: Mapping[str, bytes],
        trusted: ssl.SSLContext,
        seed: int = 0,
    ) -> None:
        self.books = books
        self.addresses = addresses
        self._files = files
        self._tls = trusted
        self._chance = random.Random(f"load {seed}")
        self.in_a_hurry = False

    # --- the frame of each request

    @asynccontextmanager
    async def _visit(
        self, kind: str, listener: str, *, tls: bool = False, proxy: int = 0, source: str = "127.0.0.1"
    ) -> AsyncIterator[Wire]:
        """Connect, and close at the end. What becomes of the requests is in the books; nothing is raised."""
        context = self._tls if tls else None
        began = self.books.began(connecting(kind))
        try:
            wire = await Wire.open(
                self.books, listener, self.addresses[listener], tls=context, proxy=proxy, source=source
            )
        except NotOpen as error:
            self.books.has_lost(connecting(kind), 0, error.visit, began, str(error))
            raise VisitOver from None
        self.books.has_answered(connecting(kind), wire.visit, began)
        wire.visit.answered_at = 0.0
        try:
            yield wire
        finally:
            wire.close()
            wire.visit.ended = asyncio.get_running_loop().time()

    @asynccontextmanager
    async def _request(self, kind: str, wire: Wire) -> AsyncIterator[int]:
        """Note what becomes of one request.

        :raises VisitOver: it was lost.
        """
        books, number = self.books, self.books.next_number()
        began = books.began(kind)
        try:
            yield number
        except BROKEN as error:
            books.has_lost(kind, number, wire.visit, began, str(error) or type(error).__name__)
            raise VisitOver from None
        except WrongAnswer as error:
            books.has_lost(kind, number, wire.visit, began, str(error), form=Form.WRONG)
            raise VisitOver from None
        except LooksWhole as error:
            books.has_lost(kind, number, wire.visit, began, str(error), form=Form.LOOKS_WHOLE)
            raise VisitOver from None
        except Refused as error:
            books.has_lost(kind, number, wire.visit, began, str(error), form=Form.REFUSED)
            raise VisitOver from None
        except _Status as error:
            books.has_lost(kind, number, wire.visit, began, f"status {error.status}", error.status)
            raise VisitOver from None
        else:
            books.has_answered(kind, wire.visit, began, number if kind in HTTP else 0)

    async def _pause(self, most: float) -> None:
        if not self.in_a_hurry:
            await asyncio.sleep(self._chance.uniform(0, most))

    # --- echo and lines

    async def echo(self, listener: str = "echo", rounds: int = 6) -> None:
        """Several pieces on one connection; the last one with the end of the stream behind it."""
        tls = listener == "tls"
        async with self._visit(listener, listener, tls=tls) as wire:
            for left in reversed(range(rounds)):
                async with self._request(listener, wire):
                    data = self._chance.randbytes(self._chance.choice((10, 1000, 50_000)))
                    await wire.send(data)
                    if not left and not tls:
                        wire.writer.write_eof()
                    await wire.expect(data)
                    if not left and not tls and await wire.rest():
                        raise WrongAnswer("more than was sent")
                await self._pause(0.3 if left else 0)

    async def lines(self, listener: str = "lines", rounds: int = 6, source: str = "127.0.0.1") -> None:
        """Lines, of which one may come in pieces."""
        async with self._visit(listener, listener, source=source) as wire:
            for _ in range(rounds):
                async with self._request(listener, wire) as number:
                    line = b"line %d abcdefghijklmnopqrstuvwxyz\n" % number
                    cut = self._chance.randrange(len(line))
                    await wire.send(line[:cut])
                    await wire.send(line[cut:])
                    pid, _, got = (await wire.line()).partition(b" ")
                    wire.visit.pid = int(pid)
                    if got != line.upper():
                        raise WrongAnswer(f"{got!r} in place of {line.upper()!r}")
                await self._pause(0.3)

    # --- programs without HTTP

    async def raw(self) -> None:
        """The protocol of one line; the program has the connection itself."""
        async with self._visit("raw", "raw") as wire, self._request("raw", wire) as number:
            size = self._chance.choice((0, 100, 30_000))
            await wire.send(b"line.sh %d %d\r\n" % (number, size))
            got, right = await wire.rest(), b"line %d %d\n" % (number, size) + bytes(size)
            if got.startswith(b"refused: "):
                raise Refused(got.decode().strip())
            if len(got) < len(right) and right.startswith(got):  # by this protocol, no client can tell
                raise CutShort(f"{len(got)} of {len(right)} bytes")
            if got != right:
                raise WrongAnswer(f"{got[:60]!r} in place of {right[:60]!r}")

    async def inetd(self) -> None:
        """A program for each connection, which sends back what it gets."""
        async with self._visit("inetd", "inetd") as wire, self._request("inetd", wire):
            data = self._chance.randbytes(self._chance.choice((10, 20_000)))
            await wire.send(data)
            wire.writer.write_eof()
            await wire.expect(data)
            if await wire.rest():
                raise WrongAnswer("more than was sent")

    # --- HTTP

    async def keep_alive(self, listener: str = "www", rounds: int = 5) -> None:
        """Several files on one connection."""
        async with self._visit("keep-alive", listener) as wire:
            for _ in range(rounds):
                async with self._request("keep-alive", wire) as number:
                    closes = await self._get_file(wire, number)
                if closes:
                    return
                await self._pause(0.3)

    async def single(self) -> None:
        """One request on a connection."""
        async with self._visit("one request", "www") as wire, self._request("one request", wire) as number:
            await self._get_file(wire, number, {"Connection": "close"})
            if await wire.rest():
                raise WrongAnswer("something after the response")

    async def https(self) -> None:
        """Files and a program over TLS."""
        async with self._visit("https", "https", tls=True) as wire:
            async with self._request("https", wire) as number:
                closes = await self._get_file(wire, number)
            if not closes:
                async with self._request("https", wire) as number:
                    await self._run_warm(wire, number, "127.0.0.1")

    async def proxied(self) -> None:
        """A request behind a PROXY header, whose program sees the client of the header."""
        version = self._chance.choice((1, 2))
        async with (
            self._visit("PROXY", "proxied", proxy=version) as wire,
            self._request("PROXY", wire) as number,
        ):
            await self._run_warm(wire, number, wire.visit.peer.rpartition(":")[0])

    async def cold(self) -> None:
        """A program that is started for the request."""
        async with self._visit("CGI cold", "www") as wire, self._request("CGI cold", wire) as number:
            answer = await wire.request(f"/run/cold.sh?{number}")
            _check(answer, b"cold %d\n" % number)

    async def slow(self) -> None:
        """A program that takes its time."""
        async with self._visit("CGI slow", "www") as wire, self._request("CGI slow", wire) as number:
            answer = await wire.request(f"/run/slow.sh?{number}")
            right = b"".join(b"slow %d %d\n" % (number, each) for each in range(1, 6))
            _check(answer, right)

    async def warm(self, rounds: int = 3) -> None:
        """A program in a warm interpreter."""
        async with self._visit("CGI warm", "www") as wire:
            for _ in range(rounds):
                async with self._request("CGI warm", wire) as number:
                    closes = await self._run_warm(wire, number, "127.0.0.1")
                if closes:
                    return
                await self._pause(0.3)

    async def failing(self) -> None:
        """A program that fails, as it always does; it is nobody's request."""
        with suppress(*BROKEN, NotOpen):
            wire = await Wire.open(self.books, "www", self.addresses["www"])
            try:
                await wire.request("/run/fail.sh?0")
            finally:
                wire.close()

    async def upload(self) -> None:
        """A body to a program, whole or in chunks; beyond 64 KiB in chunks it goes through a temporary file."""
        async with self._visit("upload", "www") as wire, self._request("upload", wire) as number:
            data = self._chance.randbytes(self._chance.choice((1000, 60_000, 300_000)))
            body = _in_pieces(data) if self._chance.random() < 0.6 else data
            if self._chance.random() < 0.3:
                answer = await wire.request(f"/run/cold.sh?{number}", body)
                right = b"cold %d\n%s  -\n" % (number, hashlib.sha256(data).hexdigest().encode())
            else:
                answer = await wire.request(f"/run/warm.py?{number}", body)
                right = b"warm %d 127.0.0.1 %s\n" % (number, hashlib.sha256(data).hexdigest().encode())
            _check(answer, right)

    async def download(self) -> None:
        """A large file, or a part of it."""
        async with self._visit("download", "www") as wire, self._request("download", wire) as number:
            data = self._files["large.bin"]
            fields = {}
            if self._chance.random() < 0.5:
                first = self._chance.randrange(len(data) - 1)
                last = self._chance.randrange(first, len(data))
                fields["Range"] = f"bytes={first}-{last}"
                data = data[first : last + 1]
            answer = await wire.request(f"/large.bin?{number}", fields=fields)
            _check(answer, data)

    async def status(self) -> None:
        """What a monitoring asks."""
        async with self._visit("status", "status") as wire, self._request("status", wire) as number:
            path = self._chance.choice(("healthz", "metrics", "status.json"))
            answer = await wire.request(f"/{path}?{number}")
            if answer.status not in (200, 503):
                raise _Status(answer.status)

    async def _get_file(self, wire: Wire, number: int, fields: Mapping[str, str] | None = None) -> bool:
        name = self._chance.choice(("small.bin", "page.bin"))
        answer = await wire.request(f"/{name}?{number}", fields=fields)
        _check(answer, self._files[name])
        return answer.closes

    async def _run_warm(self, wire: Wire, number: int, client: str) -> bool:
        answer = await wire.request(f"/run/warm.py?{number}")
        empty = hashlib.sha256().hexdigest()
        _check(answer, f"warm {number} {client} {empty}\n".encode())
        return answer.closes


@dataclass
class _Status(Exception):
    """A whole answer with another status."""

    status: int


def _check(answer: Answer, right: bytes) -> None:
    got = answer.body
    if answer.status not in (200, 206):
        raise _Status(answer.status)
    if got != right:
        if len(got) < len(right) and right.startswith(got):  # a client must be able to tell
            raise LooksWhole(f"{len(got)} of {len(right)} bytes, in a response that looks whole")
        raise WrongAnswer(f"{got[:60]!r} in place of {right[:60]!r}")


async def _in_pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 20_000):
        yield data[start : start + 20_000]


@dataclass(frozen=True)
class Share:
    """So many clients, each of which pauses about this long between two visits."""

    clients: int
    pause: float


SHARES: Final = {  # some 100 requests a second, with those of visits that have several
    "echo": Share(3, 0.3),
    "lines": Share(3, 0.3),
    "local": Share(2, 0.4),
    "tls": Share(2, 0.6),
    "keep_alive": Share(3, 0.3),
    "single": Share(2, 0.3),
    "cold": Share(2, 0.5),
    "slow": Share(2, 0.3),
    "warm": Share(2, 0.4),
    "upload": Share(2, 0.4),
    "download": Share(1, 0.5),
    "https": Share(1, 0.5),
    "proxied": Share(1, 0.4),
    "raw": Share(1, 0.5),
    "inetd": Share(1, 0.5),
    "status": Share(1, 1.0),
}


def client_of(load: Load, name: str) -> Callable[[], Awaitable[None]]:
    """What a client of this share does on each visit."""
    if name == "tls":
        return lambda: load.echo("tls", 4)
    if name == "local":
        return lambda: load.lines("local", 4)
    found: Callable[[], Awaitable[None]] = getattr(load, name)
    return found


async def keep_visiting(load: Load, name: str, share: Share, stop: asyncio.Event, seed: str) -> None:
    """Be one client, until told to stop; what has been begun is finished."""
    visit, chance = client_of(load, name), random.Random(seed)
    while not stop.is_set():
        try:
            await asyncio.wait_for(stop.wait(), chance.uniform(0, 2 * share.pause))
        except TimeoutError:
            try:
                await visit()
            except VisitOver:
                pass
