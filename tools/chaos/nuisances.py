"""Clients that behave badly, and those that make plugins do so."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import ClassVar, Final

from .books import Books
from .damage import Damage, Trouble
from .load import BROKEN, Load, VisitOver
from .plan import Event
from .site import DENIED, MOST_PER_SOURCE
from .wire import NotOpen, Wire, WrongAnswer

FLOOD: Final = 40  # clients at once
RESETS: Final = 12
LEAK: Final = 200  # MiB, more than max_worker_memory


class Nuisances:
    """Such clients. What they are told, or not told, is no loss, unless the books say so.

    :ivar failures: answers that they never should have got.
    """

    KINDS: ClassVar[frozenset[str]]

    def __init__(self, books: Books, load: Load) -> None:
        self.failures: list[str] = []
        self._books = books
        self._load = load

    async def run(self, event: Event, trouble: Trouble, damage: Damage) -> None:
        """Do it."""
        await _DO[event.kind](self, event, trouble, damage)

    async def _open(self, listener: str, source: str = "127.0.0.1") -> Wire:
        return await Wire.open(self._books, listener, self._load.addresses[listener], source=source)

    # --- plugins

    async def _tell_imp(self, what: str, answer: bytes = b"") -> int:
        """Tell the imp what to do to its worker, and wait for the end of that.

        :returns: the worker's pid; 0 if that was lost.
        """
        pid = 0
        try:
            wire = await self._open("imp")
            try:
                await wire.send(what.encode() + b"\n")
                pid = int(await wire.line())
                if answer:
                    await wire.expect(answer)
                else:
                    await wire.rest()
            finally:
                wire.close()
        except (*BROKEN, NotOpen):
            pass  # the worker may be killed at the same time
        return pid

    async def _raise(self, event: Event, trouble: Trouble, damage: Damage) -> None:
        trouble.what = "in a hook" if event.pick < 0.5 else "in a callback"
        await self._tell_imp("fail" if event.pick < 0.5 else "fail_later")

    async def _block(self, event: Event, trouble: Trouble, damage: Damage) -> None:
        trouble.what = f"for {event.seconds:.1f} s"
        await self._tell_imp(f"block {event.seconds:.1f}", b"done\n")

    async def _exit(self, event: Event, trouble: Trouble, damage: Damage) -> None:
        pid = await self._tell_imp(f"leave {int(event.pick * 5)}")
        trouble.what = f"{pid} with status {int(event.pick * 5)}"

    async def _fork(self, event: Event, trouble: Trouble, damage: Damage) -> None:
        await self._tell_imp("fork", b"done\n")

    async def _leak(self, event: Event, trouble: Trouble, damage: Damage) -> None:
        trouble.what = f"{LEAK} MiB, in {await self._tell_imp(f'grow {LEAK}', b'done' + bytes((10,)))}"

    async def _hold_descriptors(self, event: Event, trouble: Trouble, damage: Damage) -> None:
        count = 150 + int(event.pick * 60)
        trouble.what = f"{count}, in {await self._tell_imp(f'open {count}', b'done' + bytes((10,)))}"
        await asyncio.sleep(1.2)

    async def eat_memory(self) -> str:
        """Run a program until the kernel ends it.

        :returns: how that was answered.
        """
        try:
            wire = await self._open("www")
            try:
                answer = await wire.request("/run/eat.py?0")
            finally:
                wire.close()
        except (*BROKEN, NotOpen) as error:
            return f"the program's client got no answer: {error}"
        except WrongAnswer as error:
            self.failures.append(f"a program that was ended for its memory: {error}")
            return str(error)
        if answer.status == 200:
            self.failures.append("a program that was ended for its memory was answered with status 200")
        return f"status {answer.status}"

    # --- clients

    async def _reset(self, event: Event, trouble: Trouble, damage: Damage) -> None:
        chance = random.Random(event.pick)
        await asyncio.gather(*(self._reset_one(chance) for _ in range(RESETS)))

    async def _reset_one(self, chance: random.Random) -> None:
        listener = chance.choice(("echo", "www", "raw", "inetd", "tls", "https", "lines", "queue"))
        beginning = {
            "www": chance.choice(
                (b"GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /run/slow.sh?0 HTTP/1.1\r\nHost: x\r\n\r\n")
            ),
            "raw": b"slow.sh\n",
        }.get(listener, chance.randbytes(500) + b"\n")
        with suppress(*BROKEN, NotOpen):
            wire = await self._open(listener)
            try:
                await wire.send(beginning[: chance.randint(1, len(beginning))] if chance.random() < 0.3 else beginning)
                await asyncio.sleep(chance.uniform(0, 0.3))
            finally:
                wire.reset()

    async def _stall(self, event: Event, trouble: Trouble, damage: Damage) -> None:
        """Say half of something and nothing more; and ask for much, and read none of it."""
        halves = {
            "www": b"GET / HT",
            "lines": b"half a li",
            "raw": b"line",
            "https": b"\x16\x03\x01\x02\x00",
            "proxied": b"PROXY TCP4 192",
        }
        wires = []
        for listener, beginning in (*halves.items(), ("www", b"GET /large.bin HTTP/1.1\r\nHost: x\r\n\r\n" * 5)):
            with suppress(*BROKEN, NotOpen):
                wires.append(await self._open(listener))
                wires[-1].writer.transport.pause_reading()  # type: ignore[attr-defined]
                await wires[-1].send(beginning)
        await asyncio.sleep(event.seconds)
        for wire in wires:
            wire.close()

    async def _half_close(self, event: Event, trouble: Trouble, damage: Damage) -> None:
        """Finish sending at once; whoever was asked still answers."""
        for listener, request in (
            ("www", b"GET /small.bin HTTP/1.1\r\nHost: x\r\n\r\n"),
            ("raw", b"line.sh 100\n"),
            ("lines", b"one\ntwo"),
            ("lines", b""),
            ("www", b"POST /run/cold.sh HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nten bytes."),
        ):
            with suppress(*BROKEN, NotOpen):
                wire = await self._open(listener)
                try:
                    await wire.send(request)
                    wire.writer.write_eof()
                    await wire.rest()
                finally:
                    wire.close()

    async def _flood(self, event: Event, trouble: Trouble, damage: Damage) -> None:
        """Come all at once: to a listener that refuses more than its limit, and to one where the others wait."""
        refused = await asyncio.gather(*(self._try("tight") for _ in range(FLOOD)))
        trouble.what = f"{sum(refused)} of {FLOOD} refused"
        await asyncio.gather(*(self._wait_in_queue() for _ in range(FLOOD)))

    async def _wait_in_queue(self) -> None:
        with suppress(VisitOver):
            await self._load.lines("queue", 1)

    async def _be_refused(self, event: Event, trouble: Trouble, damage: Damage) -> None:
        """Come from an address that may not, and too often from one that may."""
        if not await self._try("sources", DENIED) and not any(
            began < time.monotonic() and end > trouble.at for began, end in damage.windows("dispatch")
        ):
            self.failures.append(f"a client at {DENIED} was let in")
        refused = await asyncio.gather(*(self._try("sources", "127.0.0.9") for _ in range(2 * MOST_PER_SOURCE)))
        trouble.what = f"{sum(refused)} of {2 * MOST_PER_SOURCE} from one source"

    async def _try(self, listener: str, source: str = "127.0.0.1") -> bool:
        """Ask one line, and stay for a moment.

        :returns: whether the client was refused.
        """
        try:
            wire = await self._open(listener, source)
        except NotOpen as error:
            if error.was_reset:
                self._books.has_refused(error.visit)
            return True
        try:
            await wire.send(b"hello\n")
            await wire.line()
            await asyncio.sleep(0.2)
        except TimeoutError:
            self.failures.append(f"{listener}: a client has got neither an answer nor a reset")
            return False
        except BROKEN:
            self._books.has_refused(wire.visit)
            return True
        finally:
            wire.close()
            wire.visit.ended = time.monotonic()
        return False


_DO: Final[dict[str, Callable[[Nuisances, Event, Trouble, Damage], Awaitable[None]]]] = {
    "a plugin raises": Nuisances._raise,
    "a plugin blocks": Nuisances._block,
    "a plugin exits": Nuisances._exit,
    "a plugin forks": Nuisances._fork,
    "a plugin leaks": Nuisances._leak,
    "few descriptors: a plugin holds them": Nuisances._hold_descriptors,
    "clients reset": Nuisances._reset,
    "clients stall": Nuisances._stall,
    "clients half-close": Nuisances._half_close,
    "clients flood": Nuisances._flood,
    "refused clients": Nuisances._be_refused,
}
Nuisances.KINDS = frozenset(_DO)
